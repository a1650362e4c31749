"""Along which paths does an edit reach the answer? Path patching: one component's change, read by only one later component.

The path from a sender s to a receiver r (Wang et al. 2022, arXiv:2211.00593, section 3.1;
Goldowsky-Dill et al. 2023, arXiv:2304.05969) is the change that s makes to the residual stream, as
r reads it, with all other components fixed:

    1. a_s = output of s in the edited run
    2. a_r = output of r in the base run with the output of s set to a_s, and every other head and
       MLP fixed to the base
    3. value = the metric of the base run with the output of r set to a_r, and all components after
       r recomputed

Senders are heads, MLPs, and the edit itself. In step 2 the edit then acts while no component has
changed. A receiver may be the logits. Step 3 is then the same as step 2, and the value is the
sender's direct effect. MLPs in between are fixed like heads, unlike in Wang et al., who recompute
them. So a path through an MLP counts as that MLP's path. If an edit acts inside a component (such
as at its q), its paths begin at that component, including the path "edit -> that component".

Not evidence: values do not sum to the effect, because a receiver may respond to two changes
together differently than to each alone. A receiver that responds in the base run may not respond in
the edited run. The control follows the same paths under changes of the same norm in random
directions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from reftlens.analysis.controls.turned import turned
from reftlens.analysis.engine.grid import Cell
from reftlens.analysis.engine.sweep import sweep
from reftlens.analysis.mediate import edited_run, require_elsewhere
from reftlens.analysis.metrics import Metric
from reftlens.analysis.patch import metric_of, require_pairs, token_labels
from reftlens.bridge import hooked, is_main_process, require_heads_alone_mix
from reftlens.cone.hold import boundary_of, run_cone
from reftlens.cone.recording import Recording, record
from reftlens.data import Given, as_batch
from reftlens.edit.hooks import Edit
from reftlens.edit.reft import Reft
from reftlens.results import PatchMap

EDIT, LOGITS = "edit", "logits"
_OVER = ("components", "sender positions", "receiver positions")


@final
@dataclass(frozen=True)
class Component:
    """A head or an MLP."""

    layer: int
    head: int | None = None
    """None for the MLP."""

    @property
    def name(self) -> str:
        """The name used in the literature: "2.3" is head 3 of block 2, "mlp2" its MLP."""
        return f"mlp{self.layer}" if self.head is None else f"{self.layer}.{self.head}"

    @property
    def point(self) -> str:
        """The hook point of its output."""
        return f"blocks.{self.layer}." + ("hook_mlp_out" if self.head is None else "attn.hook_z")


def paths(
    bridge: TransformerBridge,
    reft: Reft,
    prompts: Given,
    metric: Metric,
    *,
    senders: Sequence[str] | None = None,
    receivers: Sequence[str] | None = None,
    over: str = "components",
    through: str = "qkv",
    seed: int = 0,
    memory_bytes: int = 1 << 30,
    progress: bool = True,
) -> PatchMap:
    """Computes the metric with one sender's change read by only one receiver, for each path and example.

    One cone is run for each path and example, and one more for the control. A model as small as
    GPT-2 has 157 x 157 / 2 paths. Run `mediate` first, and follow only the paths among the
    components that it finds.

    Args:
        bridge: the base; causal.
        reft: the edit.
        prompts: texts, conversations or one batch, without completions.
        metric: of the logits after each prompt.
        senders: "edit", heads such as "2.3" and MLPs such as "mlp2"; by default all from the first
            edited block on.
        receivers: the same without "edit", and with "logits".
        over: "components"; or "sender positions" or "receiver positions", where the output of a
            sender or a receiver is patched at one token at a time.
        through: the inputs through which receiving heads read, of "q", "k" and "v". The others are
            fixed to the base.
        seed: seed of the control's random directions.
        memory_bytes: approximate limit for the activations of one run.
        progress: show a progress bar over senders.

    Returns:
        `base` is the base run, `source` the edited run, and `restored` the part of the effect that
        a path carries. Rows are senders and columns receivers, NaN where the receiver does not come
        after the sender. Over positions, rows are paths such as "edit->2.3" and columns are tokens.

    Raises:
        ValueError: If a component is unknown, there is no path, the edit acts at the output of a
            head or MLP, or the model has a recurrent part.
    """
    if over not in _OVER:
        raise ValueError(f"over must be one of {', '.join(_OVER)}, got {over!r}")
    if not through or set(through) - set("qkv"):
        raise ValueError(f"through must consist of the letters q, k and v, got {through!r}")
    batch = as_batch(bridge, prompts)
    require_pairs(batch)
    known = _components(bridge)
    sending, receiving, ways = _ways(bridge, reft, known, senders, receivers)
    points = tuple(dict.fromkeys(component.point for component in known.values()))
    unread = tuple(
        f"blocks.{layer}.attn.hook_{part}"
        for layer in range(bridge.cfg.n_layers)
        for part in "qkv"
        if part not in through
    )
    require_elsewhere(bridge, reft, points)
    require_heads_alone_mix(bridge, points)
    base, edited = record(bridge, batch, (*points, *unread)), edited_run(bridge, reft, batch, points)
    maps = []
    for number, source in enumerate((reft, turned(reft, seed=seed))):
        run = edited_run(bridge, source, batch, points) if number else edited
        reader = _Reader(bridge, base, run, tuple(source.edits(batch)), known, unread)
        bar = ("paths", "control")[number] if progress else ""
        maps.append(_follow(reader, ways, metric, over=over, memory_bytes=memory_bytes, progress=bar))
    said = token_labels(bridge, batch)
    if over == "components":
        rows, columns = sending, receiving
        maps = [_as_table(values[..., 0], ways, rows, columns) for values in maps]
    else:
        rows, columns = tuple(f"{s}->{r}" for s, r in ways), said[0]
    return PatchMap(
        values=maps[0],
        control=maps[1],
        base=metric_of(metric, base),
        source=metric_of(metric, edited),
        rows=rows,
        columns=columns,
        axes=("sender", "receiver") if over == "components" else ("path", "pos"),
        control_name="the same paths under the edit turned to random directions",
        direction="edited into base",
        prompts=said,
    )


@final
@dataclass(frozen=True, eq=False)
class _Reader:
    """Step 2 for any sender: the output of every receiver when it reads only this sender's change."""

    bridge: TransformerBridge
    base: Recording
    edited: Recording
    edits: tuple[Edit, ...]
    known: dict[str, Component]
    unread: tuple[str, ...]
    """Inputs of heads that are fixed to the base."""

    @torch.no_grad()
    def read(self, sender: str, pos: int | None) -> Recording:
        """Runs step 2 and returns its logits and, as activations, the components' outputs, which are not propagated.

        Args:
            sender: a component, or the edit.
            pos: the only column at which the sender changes; None for all.
        """
        component = self.known.get(sender)
        batch, seen = self.base.batch, dict[str, Tensor]()
        hooks = [(name, self._hold(name)) for name in self.unread]
        hooks += [(name, self._keep(name, seen, component, pos)) for name in self.edited.activations]
        edits = [replace(edit, lands=_only(edit.mask, pos)) for edit in self.edits] if component is None else []
        # From column 0: the hooks give back whole recorded activations.
        held = self.base.cone(-1 if component is None else component.layer - 1, 0)
        last = batch.last_prompt_mask
        with hooked(self.bridge, hooks):
            logits = run_cone(self.bridge, held, edits, logits_at=last)
        return Recording(batch, (), (), logits, seen, self.base.as_tuple)

    def _hold(self, name: str) -> Any:
        return lambda activation, hook: self.base.activations[name]

    def _keep(self, name: str, seen: dict[str, Tensor], sender: Component | None, pos: int | None) -> Any:
        goes_on = self.base.activations[name]
        if sender is not None and sender.point == name:
            changed = _only(torch.ones_like(self.base.batch.prompt_mask), pos)
            changed = changed.to(goes_on.device).view(*changed.shape, *(1,) * (goes_on.ndim - 2))
            if sender.head is not None:
                heads = torch.arange(goes_on.shape[2], device=changed.device)
                changed = changed & (heads == sender.head)[:, None]
            goes_on = torch.where(changed, self.edited.activations[name], goes_on)

        def hook_fn(activation: Tensor, hook: Any) -> Tensor:
            # Only the base's output goes on, so nothing reads the component's response.
            seen[name] = activation.clone()
            return goes_on

        return hook_fn


def _follow(
    reader: _Reader, ways: Sequence[tuple[str, str]], metric: Metric, *, over: str, memory_bytes: int, progress: str
) -> Float[Tensor, "pair way pos"]:
    """Runs step 3 of every path, sender by sender. The result has one column if positions are not distinguished."""
    base, batch = reader.base, reader.base.batch
    prompt, last = batch.prompt_mask.cpu(), batch.last_prompt_index.cpu()
    each: list[int | None] = list(range(prompt.shape[1]))
    sent, written = (each if over == what else [None] for what in _OVER[1:])
    n_columns = len(sent) * len(written)
    # A path whose sender changes nothing keeps the base's value.
    values = repeat(metric_of(metric, base), "pair -> pair way column", way=len(ways), column=n_columns).clone()
    numbers = {way: number for number, way in enumerate(ways)}
    runs = [(sender, pos) for sender in dict.fromkeys(sender for sender, _ in ways) for pos in sent]
    for sender, pos in tqdm(runs, desc=progress, unit="sender", disable=not (progress and is_main_process())):
        read = reader.read(sender, pos)
        receivers = [receiver for s, receiver in ways if s == sender]
        if (sender, LOGITS) in numbers:
            # The metric reads the logits after the last token.
            column = last if over == "receiver positions" else torch.full_like(last, pos or 0)
            values[torch.arange(len(last)), numbers[sender, LOGITS], column] = metric_of(metric, read)
        behind = [receiver for receiver in receivers if receiver != LOGITS]
        cells = [Cell((c.point,), at, c.head) for c in map(reader.known.__getitem__, behind) for at in written]
        if cells:
            found = sweep(reader.bridge, base, read, cells, metric, memory_bytes=memory_bytes)
            columns = slice(None) if over == "receiver positions" else slice(pos or 0, (pos or 0) + 1)
            places = [numbers[sender, receiver] for receiver in behind]
            values[:, places, columns] = rearrange(found, "pair (way column) -> pair way column", way=len(behind))
    return values if over == "components" else torch.where(prompt[:, None], values, torch.nan)


def _as_table(
    values: Float[Tensor, "pair way"], ways: Sequence[tuple[str, str]], rows: Sequence[str], columns: Sequence[str]
) -> Float[Tensor, "pair rows columns"]:
    out = torch.full((len(values), len(rows), len(columns)), torch.nan)
    for number, (sender, receiver) in enumerate(ways):
        out[:, rows.index(sender), columns.index(receiver)] = values[:, number]
    return out


def _only(mask: Bool[Tensor, "batch pos"], pos: int | None) -> Bool[Tensor, "batch pos"]:
    """Restricts the mask to one column; None returns it unchanged."""
    return mask if pos is None else mask & (torch.arange(mask.shape[1], device=mask.device) == pos)


def _components(bridge: TransformerBridge) -> dict[str, Component]:
    """Returns every head and MLP by name, in execution order."""
    found = [
        Component(layer, head) for layer in range(bridge.cfg.n_layers) for head in (*range(bridge.cfg.n_heads), None)
    ]
    return {component.name: component for component in found}


def _ways(
    bridge: TransformerBridge,
    reft: Reft,
    known: dict[str, Component],
    senders: Sequence[str] | None,
    receivers: Sequence[str] | None,
) -> tuple[tuple[str, ...], tuple[str, ...], list[tuple[str, str]]]:
    """Returns senders, receivers, and the pairs that have a path."""
    first = 1 + boundary_of(bridge, [site.hook_name for site in reft.sites])
    later = [name for name, component in known.items() if component.layer >= first]
    sending = _chosen(senders, of=[EDIT, *known], all_of=[EDIT, *later], what="senders")
    receiving = _chosen(receivers, of=[*known, LOGITS], all_of=[*later, LOGITS], what="receivers")
    ways = [(s, r) for s in sending for r in receiving if _leads(s, r, known)]
    if not ways:
        raise ValueError(f"no receiver comes after a sender: got senders {sending} and receivers {receiving}")
    return sending, receiving, ways


def _chosen(names: Sequence[str] | None, *, of: Sequence[str], all_of: Sequence[str], what: str) -> tuple[str, ...]:
    chosen = tuple(all_of if names is None else names)
    for name in chosen:
        if name not in of:
            raise ValueError(f"Unknown {what.removesuffix('s')} {name!r}. Choose from: {', '.join(of)}")
    if not chosen or len(set(chosen)) < len(chosen):
        raise ValueError(f"{what} must be at least one name, each named once, got {', '.join(chosen) or 'none'}")
    return chosen


def _leads(sender: str, receiver: str, known: dict[str, Component]) -> bool:
    """Returns whether there is a path. (In a block with parallel attention and MLP, neither reads the other.)"""
    if sender == EDIT or receiver == LOGITS:
        return True
    (a, b) = known[sender], known[receiver]
    # Heads before the MLP of their block. Heads of one block do not read each other.
    return (a.layer, a.head is None) < (b.layer, b.head is None)
