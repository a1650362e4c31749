"""Runs in which each head and MLP reads only chosen changes: one at a time, those of a kept graph, or all but those of it.

Nodes are directions that an edit writes, and heads and MLPs, each at one token. A run holds every
head and MLP to given outputs, so a component answers to exactly those changes that are put into the
stream, and nothing goes on by itself. The writes of the edit are those of the edited run. (How
earlier sites change what later ones write is part of these writes, and no edge.) With all edges,
every component so reads the stream of the edited run.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, final

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from reftlens.analysis.engine.activations import edited_activations
from reftlens.analysis.engine.sweep import TOKENS, writing
from reftlens.analysis.metrics import Metric
from reftlens.bridge import activation_shape, hooked, is_resid_mid, layer_of
from reftlens.cone.hold import boundary_of, run_cone
from reftlens.cone.light_cone import run_blocks
from reftlens.cone.recording import Recording, rows_that_fit
from reftlens.data import Batch
from reftlens.edit.hooks import Edit
from reftlens.edit.reft import Reft

ANSWER = "answer"
_USED = 1e-12
"""Part of a site's energy below which a direction, or what is left beside given ones, is rounding."""


@final
@dataclass(frozen=True, eq=False)
class Node:
    """A direction that the edit writes, or a head or an MLP, at one token."""

    name: str
    point: str
    """The hook where its output is."""
    layer: int
    """The block of a component; the first block that can read what the edit writes."""
    pos: int
    head: int | None = None
    site: int | None = None
    """Which of the edit's sites it belongs to; None for a component."""
    write: Float[Tensor, "pair width"] | None = None
    """What a direction of the edit adds to the activation, with all heads side by side."""

    @property
    def rank(self) -> tuple[int, bool]:
        """Order among components: heads before the MLP of their block."""
        return self.layer, self.head is None

    def leads_to(self, reader: Node) -> bool:
        """Whether a component can read this node's output. (Of parallel blocks, an MLP does not read its block's heads.)

        Args:
            reader: the component.
        """
        first = self.layer <= reader.layer if self.site is not None else self.rank < reader.rank
        # Only attention carries anything from one token to another.
        return first and (self.pos == reader.pos if reader.head is None else self.pos <= reader.pos)


Outputs = Mapping[str, Float[Tensor, "pair pos *axes"]]
"""Point -> output of the heads or the MLP of a block."""


class Stream(NamedTuple):
    """What one reader finds in the residual stream."""

    outputs: Outputs | None
    """Outputs to which every component is held; None lets all respond."""
    writes: Collection[Node]
    """Directions of the edit that are written."""


@torch.no_grad()
def directions_of(
    bridge: TransformerBridge, reft: Reft, batch: Batch, given: Sequence[Float[Tensor, "k width"]] | None = None
) -> list[Node]:
    """Splits what each site writes at each token into directions. The parts of a token sum to its change.

    Args:
        bridge: the base.
        reft: the edit.
        batch: the prompts.
        given: directions of each site; what they leave is one more node. By default the write
            directions of these prompts, which are the eigenvectors of E[delta delta^T], as in
            `decompose`.

    Raises:
        ValueError: If `given` does not have directions of each site's width.
    """
    seen = edited_activations(bridge, reft, batch)
    if given is not None and [rows.shape[-1] for rows in given] != [h.shape[1] for _, h in seen]:
        raise ValueError(
            f"directions must be one matrix [k, width] for each of {len(seen)} sites, of widths "
            f"{[h.shape[1] for _, h in seen]}, got {[list(rows.shape) for rows in given]}"
        )
    return [
        node
        for site, (edit, h) in enumerate(seen)
        for node in _of_site(bridge, site, edit, edit.change(h).double(), None if given is None else given[site])
    ]


def _of_site(
    bridge: TransformerBridge,
    site: int,
    edit: Edit,
    change: Float[Tensor, "tokens width"],
    given: Float[Tensor, "k width"] | None,
) -> Iterable[Node]:
    rows, columns = edit.read.nonzero(as_tuple=True)
    if given is None:
        _, strength, given = torch.linalg.svd(change, full_matrices=False)
        given = given[strength.square() > _USED * strength[0].square()]
        # A direction has no sign of its own: the mean change is made positive along each.
        given = torch.where((given @ change.mean(0))[:, None] < 0, -given, given)
    given = given.to(change)
    amount = change @ torch.linalg.pinv(given)
    parts = einsum(amount, given, "token k, k width -> k token width")
    left = change - parts.sum(0)
    if float(left.square().sum()) > _USED * float(change.square().sum()):
        parts = torch.cat([parts, left[None]])
    shape = activation_shape(bridge, edit.hook_name)
    layer = 1 + boundary_of(bridge, [edit.hook_name])
    for k, part in enumerate(parts):
        label = f"{k}" if k < len(given) else "rest"
        for pos in columns.unique().tolist():
            there = columns == pos
            write = part.new_zeros(len(edit.mask), *shape)
            if edit.head is None:
                write[rows[there]] = part[there].unflatten(1, shape)
            else:
                write[rows[there], edit.head] = part[there]
            yield Node(f"e{site}.{label}@{pos}", edit.hook_name, layer, pos, site=site, write=write.flatten(1).float())


@final
class Circuit:
    """Runs of one edit on one batch, all prompts of one length."""

    def __init__(
        self,
        bridge: TransformerBridge,
        base: Recording,
        edited: Recording,
        writes: Sequence[Node],
        metric: Metric,
        *,
        memory_bytes: int,
    ) -> None:
        """Args: base, edited: recordings with the outputs of all heads and MLPs. writes: from `directions_of`."""
        self.bridge, self.base, self.edited, self.metric = bridge, base, edited, metric
        self.writes, self.memory_bytes = tuple(writes), memory_bytes
        self.boundary = boundary_of(bridge, [node.point for node in writes])
        self.start = min(node.pos for node in writes)
        self.columns = base.batch.prompt_mask.any(0).nonzero().flatten().tolist()
        self.last = max(self.columns)
        self.points = tuple(base.activations)

    def components(self) -> list[Node]:
        """Every head and MLP that the edit can change, at each of these tokens, in the order of execution."""
        cfg = self.bridge.cfg
        return [
            Node(f"{layer}.{head}@{pos}" if head is not None else f"mlp{layer}@{pos}", point, layer, pos, head)
            for layer in range(self.boundary + 1, cfg.n_layers)
            for head in (*range(cfg.n_heads), None)
            for point in (f"blocks.{layer}." + ("hook_mlp_out" if head is None else "attn.hook_z"),)
            for pos in self.columns
            if pos >= self.start
        ]

    def one(self, node: Node) -> Stream:
        """The base's stream with this node's output of the edited run.

        Args:
            node: the sender.
        """
        return self._only([node], {node.name: self._at(self.edited.activations, node)})

    def alone(self, kept: Mapping[str, Sequence[Node]], readers: Sequence[Node]) -> Float[Tensor, " pair"]:
        """Computes the metric of the graph with only these edges; all others carry what they carry in the base.

        Args:
            kept: reader, by name, or "answer" -> senders that it reads.
            readers: the components among them.
        """
        values: dict[str, Tensor] = {}
        for level, group in _levels(readers):
            found = self.respond([self._only(kept[r.name], values) for r in group], until=level[0]).outputs
            for place, reader in enumerate(group):
                values[reader.name] = self._at({reader.point: found[reader.point][place]}, reader)
        return self.respond([self._only(kept.get(ANSWER, ()), values)]).values[0]

    def without(self, kept: Mapping[str, Sequence[Node]], readers: Sequence[Node]) -> Float[Tensor, " pair"]:
        """Computes the metric of the edited run without these edges, which carry what they carry in the base.

        Args:
            kept: reader, by name, or "answer" -> senders that it reads as in the base.
            readers: the components among them.
        """
        state = dict(self.base.activations)
        own = dict(_levels(readers))
        levels = [(layer, mlp) for layer in range(self.boundary + 1, self.bridge.cfg.n_layers) for mlp in (False, True)]
        for level in levels:
            group = own.get(level, [])
            # The first stream is what all other readers of this level find.
            streams = [Stream(state, self.writes), *(self._but(kept[r.name], state) for r in group)]
            point = f"blocks.{level[0]}." + ("hook_mlp_out" if level[1] else "attn.hook_z")
            found = self.respond(streams, until=level[0]).outputs[point]
            new = found[0].clone()
            for place, reader in enumerate(group, start=1):
                new[_place(reader)] = found[place][_place(reader)]
            state = {**state, point: new}
        return self.respond([self._but(kept.get(ANSWER, ()), state)]).values[0]

    @torch.no_grad()
    def respond(self, streams: Sequence[Stream], *, until: int | None = None) -> _Responses:
        """Runs these streams, as many at a time as fit.

        Args:
            streams: what is in the stream, all with held outputs, or none.
            until: the last block that runs; None for all, and the metric.
        """
        n_pairs, width = self.base.batch.tokens.shape
        fit = rows_that_fit(self.bridge, width, self.start, self.memory_bytes)
        if self.base.logits.device.type == "cpu":
            # As in `sweep`: on a CPU, runs of more tokens are not faster per token.
            fit = min(fit, -(-TOKENS // (width - self.start)))
        each = max(1, fit // n_pairs)
        found = [self._run(streams[first : first + each], until) for first in range(0, len(streams), each)]
        outputs = {name: torch.cat([part.outputs[name] for part in found]) for name in found[0].outputs}
        return _Responses(
            outputs, torch.cat([part.logits for part in found]), torch.cat([part.values for part in found])
        )

    def _run(self, streams: Sequence[Stream], until: int | None) -> _Responses:
        n, n_pairs = len(streams), len(self.base.batch)
        pairs = torch.arange(n_pairs).repeat(n)
        held = self.base.cone(self.boundary, self.start, pairs)
        seen: dict[str, Tensor] = {}

        def keep(name: str) -> Any:
            given = [stream.outputs[name] for stream in streams if stream.outputs is not None]
            # Some models take views of what goes on, which need it in one piece.
            goes_on = torch.cat(given)[:, held.start :].contiguous() if given else None

            def hook_fn(activation: Tensor, hook: Any) -> Tensor | None:
                before = self.base.activations[name][:, : held.start].repeat(n, *(1,) * (activation.ndim - 1))
                # Cloned: what goes on is another tensor, but the model may reuse this one.
                seen[name] = torch.cat([before, activation.clone()], dim=1).unflatten(0, (n, n_pairs))
                return goes_on

            return hook_fn

        behind = self.bridge.cfg.n_layers if until is None else until + 1
        run = [name for name in self.points if (layer_of(name) or 0) in range(held.boundary + 1, behind)]
        last = held.batch.last_prompt_mask
        with hooked(self.bridge, [*self._writing(streams, held.start), *((name, keep(name)) for name in run)]):
            if until is not None:
                run_blocks(self.bridge, held, [], until=until)
                return _Responses(seen, self.base.logits[:0], torch.zeros(0, n_pairs))
            logits = run_cone(self.bridge, held, [], logits_at=last)
        values = self.metric(logits, pairs.to(logits.device)).float().cpu()
        return _Responses(seen, logits.unflatten(0, (n, n_pairs)), values.unflatten(0, (n, n_pairs)))

    def _writing(self, streams: Sequence[Stream], start: int) -> list[tuple[str, Any]]:
        """Returns the hooks that add what the edit writes."""
        n_pairs, width = self.base.batch.tokens.shape
        # By point and site: of two sites at one point, the second adds to what the first made.
        added: dict[str, dict[int | None, Tensor]] = defaultdict(dict)
        for place, stream in enumerate(streams):
            for node in stream.writes:
                assert node.write is not None
                at_point = added[node.point]
                if node.site not in at_point:
                    at_point[node.site] = node.write.new_zeros(len(streams), n_pairs, width, node.write.shape[1])
                at_point[node.site][place, :, node.pos] += node.write

        def adding(changes: Iterable[Tensor]) -> Any:
            def hook_fn(activation: Tensor, hook: Any) -> Tensor:
                for change in changes:
                    activation = activation + change.flatten(0, 1)[:, start:].to(activation).view_as(activation)
                return activation

            return hook_fn

        # As in an edited run: hooks of resid_mid use other points, and come last.
        points = sorted(added, key=is_resid_mid)
        return [hook for name in points for hook in writing(self.bridge, name, adding(added[name].values()))]

    def _at(self, outputs: Outputs, node: Node) -> Tensor:
        """The output of a component at its token; nothing for a direction of the edit."""
        return torch.zeros(0) if node.site is not None else outputs[node.point][_place(node)]

    def _only(self, senders: Sequence[Node], values: Mapping[str, Tensor]) -> Stream:
        """The base's stream with these senders' values; a sender without one puts out what it does in the base."""
        outputs = self._changed(self.base.activations, [(s, values[s.name]) for s in senders if s.name in values])
        return Stream(outputs, [sender for sender in senders if sender.site is not None])

    def _but(self, senders: Sequence[Node], state: Outputs) -> Stream:
        """A stream with everything but the changes of these senders."""
        outputs = self._changed(state, [(sender, self._at(self.base.activations, sender)) for sender in senders])
        left_out = {sender.name for sender in senders}
        return Stream(outputs, [write for write in self.writes if write.name not in left_out])

    def _changed(self, outputs: Outputs, values: Iterable[tuple[Node, Tensor]]) -> Outputs:
        new = dict(outputs)
        for node, value in values:
            if node.site is None:
                if new[node.point] is outputs[node.point]:
                    new[node.point] = outputs[node.point].clone()
                new[node.point][_place(node)] = value
        return new


@final
class _Responses(NamedTuple):
    """What components put out in reply to streams."""

    outputs: Mapping[str, Float[Tensor, "stream pair pos *axes"]]
    logits: Float[Tensor, "stream pair d_vocab"]
    values: Float[Tensor, "stream pair"]


def _place(node: Node) -> tuple[slice | int, ...]:
    """Where its output is in the activation of all prompts."""
    return (slice(None), node.pos) if node.head is None else (slice(None), node.pos, node.head)


def _levels(readers: Sequence[Node]) -> list[tuple[tuple[int, bool], list[Node]]]:
    """Groups components that do not read one another, in the order of execution."""
    groups: dict[tuple[int, bool], list[Node]] = defaultdict(list)
    for reader in readers:
        groups[reader.rank].append(reader)
    return sorted(groups.items())
