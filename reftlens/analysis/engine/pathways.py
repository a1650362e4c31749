"""Finds the units through which a write at one point reaches an answer, and the directions that these units read there.

Units are MLP neurons (`mlp.hook_post`) and heads (`attn.hook_z`) after the point, and the point's
own coordinates if it is one of these. A unit's part in a run is its change times the gradient of D
= logit(new answer) - logit(old answer). The gradient is averaged over both runs: the part is exact
for units on which D depends linearly, otherwise first order. Parts of one layer pass through those
of the next, so they are compared unit by unit and never summed to an effect.

Reading is weighted by G = E[g g^T] for gradients g of sums of units with random signs, each unit
weighted by its gradient of D. So directions that only affect other tokens' logits have no weight,
and directions that D hardly depends on have little.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from reftlens.bridge import canonical_hook, each, hooked
from reftlens.cone.hold import Held, hold_from, run_cone
from reftlens.cone.recording import repeated
from reftlens.cone.variants import side_by_side
from reftlens.data import Batch

UNITS = ("mlp.hook_post", "attn.hook_z")
SOFT = 1e-3
"""Part of the largest eigenvalue at which a direction counts as half read, or half active."""
PROBES = 8
"""Random sums of units for each run."""


@final
@dataclass(frozen=True, eq=False)
class Passed:
    """One write of all pairs: each unit's value and gradient of D, and gradients at the point itself."""

    units: Float[Tensor, "pair unit"]
    gradients: Float[Tensor, "pair unit"]
    own: Float[Tensor, "pair width"]
    """Gradient of D at the point."""
    read: Float[Tensor, "width width"]
    """G of this run."""

    def parts(self, other: Passed) -> Float[Tensor, " unit"]:
        """Each unit's part in going from this run to another, mean over pairs."""
        return ((other.units - self.units) * (self.gradients + other.gradients) / 2).mean(0)


@final
class Pathways:
    """Runs of one set of prompts under writes at one token of each."""

    def __init__(
        self,
        bridge: TransformerBridge,
        hook_name: str,
        batch: Batch,
        places: Int[Tensor, " pair"],
        answers: Int[Tensor, "pair 2"],
        *,
        rows: Int[Tensor, " some"],
        batch_size: int,
        seed: int,
    ) -> None:
        """Args: rows: the pairs that are looked at. answers: new and old token of every pair."""
        self.bridge, self.hook_name, self.places, self.answers = bridge, hook_name, places, answers
        names = [f"blocks.{layer}.{unit}" for layer in range(bridge.cfg.n_layers) for unit in UNITS]
        self.names = [name for name in names if name in bridge.hook_dict]
        here = canonical_hook(bridge, hook_name)
        self.is_unit = any(canonical_hook(bridge, name) == here for name in self.names)
        # The written point is the leaf of the graph, so no hook reads it.
        self.names = [name for name in self.names if canonical_hook(bridge, name) != here]
        self.generator = torch.Generator().manual_seed(seed)
        self.batch, self.rows = batch, rows.split(batch_size)
        written = torch.zeros_like(batch.prompt_mask).scatter(1, places[:, None].to(batch.tokens.device), True)
        self.needed = written | batch.last_prompt_mask

    def _held(self, rows: Int[Tensor, " n"]) -> Held:
        return hold_from(self.bridge, repeated(self.batch, rows), [self.hook_name], self.needed[rows])

    def under(self, *written: Float[Tensor, "pair width"]) -> list[Passed]:
        """The runs with these activations written at the token, of the rows that are looked at: one for each write."""
        n = len(written)
        # The generator's state before each group that follows one that was run here.
        states = {0: self.generator.get_state()}

        def run(group: int) -> list[Tensor]:
            some = self.rows[group]
            known = max(states)
            self.generator.set_state(states[known])
            before = [n * len(rows) for rows in self.rows[known:group]]
            held = side_by_side(self._held(some), n)
            found = self._run(some.repeat(n), held, torch.cat([w[some] for w in written]), before)
            states[group + 1] = found[-1]
            return found

        runs = list(each(self.bridge, run, range(len(self.rows))))
        # Whichever process ran the last group, the next signs are those behind it.
        self.generator.set_state(runs[-1][-1])
        found = [
            # Rows go write by write. Read gradients stack 1 + PROBES such blocks, hence the -1.
            [tensor.unflatten(0, (-1, n, len(some))) for tensor in tensors[:-1]]
            for some, tensors in zip(self.rows, runs, strict=True)
        ]
        columns = [torch.cat(parts, dim=2) for parts in zip(*found, strict=True)]
        return [
            Passed(units[0], gradients[0], own[0], (reads := read.flatten(0, 1)).T @ reads / len(reads))
            for units, gradients, own, read in zip(*(column.unbind(1) for column in columns), strict=True)
        ]

    def _run(self, rows: Tensor, held: Held, written: Tensor, before: Sequence[int]) -> list[Tensor]:
        """Runs one group. `before` has the rows of groups before it whose signs another process has drawn."""
        kept: dict[str, Tensor] = {}
        inside = torch.arange(len(rows))

        def write(activation: Tensor, hook: Any) -> Tensor:
            kept["leaf"] = written.to(activation).reshape(len(rows), *activation.shape[2:]).detach().requires_grad_()
            return activation.detach().index_put((inside, self.places[rows] - held.start), kept["leaf"])

        def keep(name: str) -> Any:
            def hook_fn(activation: Tensor, hook: Any) -> Tensor:
                # Given back, since a hook may see a reshaped copy, which the run goes on with only
                # then.
                kept[name] = activation
                return activation

            return hook_fn

        hooks = [(self.hook_name, write), *((name, keep(name)) for name in self.names)]
        with torch.enable_grad(), hooked(self.bridge, hooks):
            logits = run_cone(self.bridge, held, [], logits_at=held.batch.last_prompt_mask).float()
            pair = logits.gather(1, self.answers[rows].to(logits.device))
            D = (pair[:, 0] - pair[:, 1]).sum()
            behind = [kept[name] for name in self.names if name in kept and kept[name].requires_grad]
            leaf = kept["leaf"]
            own, *slopes = torch.autograd.grad(D, [leaf, *behind], retain_graph=True, allow_unused=True)
            slopes = [
                torch.zeros_like(unit) if slope is None else slope for unit, slope in zip(behind, slopes, strict=True)
            ]
            reads = [own.flatten(1)]
            self._skip(before, leaf, behind, held.start)
            for _ in range(PROBES):
                reads.append(self._probe(leaf, own, behind, slopes, held.start))
        if self.is_unit:
            behind, slopes = [leaf, *behind], [own, *slopes]
        nothing = [torch.zeros(len(rows), 0)]
        values = [unit.detach().flatten(1) for unit in behind] or nothing
        gradients = [slope.flatten(1) for slope in slopes] or nothing
        shaped = (torch.cat(kind, 1).double().cpu() for kind in (values, gradients))
        return [*shaped, own.flatten(1).double().cpu(), torch.cat(reads).double().cpu(), self.generator.get_state()]

    def _probe(
        self, leaf: Tensor, own: Tensor, behind: Sequence[Tensor], slopes: Sequence[Tensor], start: int
    ) -> Tensor:
        """Gradient at the point of a sum of units with random signs, each by its slope of D."""
        read = self._signs(leaf) * own if self.is_unit else torch.zeros_like(leaf)
        if behind:
            total = sum(
                # The slope is a weight here; only the unit is differentiated.
                (self._signs(unit[:1], start) * slope.detach() * unit).sum()
                for unit, slope in zip(behind, slopes, strict=True)
            )
            assert isinstance(total, Tensor)
            # Every probe goes back through the same graph, so it is kept.
            (through,) = torch.autograd.grad(total, leaf, retain_graph=True)
            read = read + through
        return read.flatten(1)

    def _skip(self, before: Sequence[int], leaf: Tensor, behind: Sequence[Tensor], start: int) -> None:
        """Draws the signs of earlier groups of these sizes."""
        shared = sum((start + unit.shape[1]) * unit[0, 0].numel() for unit in behind)
        for rows in before:
            own = rows * leaf[0].numel() if self.is_unit else 0
            for _ in range(PROBES):
                torch.randint(2, (own + shared,), generator=self.generator, dtype=torch.uint8)

    def _signs(self, like: Tensor, start: int = 0) -> Tensor:
        """Drawn for whole prompts, so that they do not depend on where the cone begins."""
        whole = torch.randint(2, (like.shape[0], start + like.shape[1], *like.shape[2:]), generator=self.generator)
        # Signs of mean 0 and variance 1, so that products of two units cancel in E[g g^T].
        return (2 * whole[:, start:] - 1).to(like)


def dormant_share(natural: Float[Tensor, " unit"], found: Float[Tensor, " unit"]) -> float:
    """Computes the share of the effect in `found` that passes through units without effect in `natural`.

    max(part, 0) of each unit is scaled down to the natural sum if its sum is larger. It counts as
    covered up to the natural part of that unit. NaN if nothing changes the answer, or there is no
    unit after the point.

    Args:
        natural: parts of the units when the whole activation is the source's.
        found: parts of the units under the write that is tested.
    """
    toward, known = found.clamp(min=0), natural.clamp(min=0)
    if not float(toward.sum()) > 0 or not float(known.sum()) > 0:
        return float("nan")
    toward = toward * min(1.0, float(known.sum() / toward.sum()))
    return float(1 - torch.minimum(toward, known).sum() / toward.sum())


def weight_of(moments: Float[Tensor, "width width"]) -> Float[Tensor, "width width"]:
    """Computes the soft projector M (M + SOFT max I)^-1: about 1 on large eigendirections of M, about 0 on small ones.

    Args:
        moments: symmetric and positive: the moments of what is read (G), or of what varies.
    """
    values, vectors = torch.linalg.eigh(moments)
    values = values.clamp(min=0)
    # 1e-30 keeps M = 0 from giving 0 / 0.
    return vectors * (values / (values + SOFT * values[-1].clamp(min=1e-30))) @ vectors.T


def reference_illusion(
    gap: Float[Tensor, "pair width"], own: Float[Tensor, "pair width"], read: Float[Tensor, "width width"]
) -> Float[Tensor, "width"]:
    """Constructs an illusory direction: half of it varies and is not read, half of it is read and does not vary.

    It starts from the strongest pair of a varying direction and a correlated gradient, E[gap
    own^T]. It keeps the unread part of the first and the part of the second that does not vary.

    Args:
        gap: source minus base at the point.
        own: gradient of D there.
        read: G.
    """
    left, _, right = torch.linalg.svd(gap.T @ own / len(gap))
    eye = torch.eye(gap.shape[1], dtype=gap.dtype)
    unread = (eye - weight_of(read)) @ left[:, 0]
    still = (eye - weight_of(gap.T @ gap / len(gap))) @ right[0]
    mixed = torch.nn.functional.normalize(unread, dim=0) + torch.nn.functional.normalize(still, dim=0)
    return torch.nn.functional.normalize(mixed, dim=0)
