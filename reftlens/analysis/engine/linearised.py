r"""The best small edit of one cell, by a quadratic model of the loss that only looks at the base.

An affine edit changes the state h of a token by $\delta = W x$, where x is h minus its mean, with a 1 appended, and W = [A, c]
has rank r. With g the gradient of the wanted loss by the state, and M the curvature of an upper bound of the loss,

$$ loss(W) \approx loss(0) + \langle G, W\rangle + \tfrac12 \mathrm{tr}(W^T M W S), \qquad G = E[g x^T],\ S = E[x x^T]. $$

Cross-entropy is curved by F = diag(p) - p p^T in the logits. A base that is sure of another answer has F near 0, and a step by F
would be endless. So M uses the bound F <= (I - 1 1^T / n) / 2, which holds for any p (Böhning 1992): where logits are linear in
the state, the model is an upper bound of the loss, and the gain it promises is kept. M = E[J^T (I - 1 1^T / n) J] / 2 comes
from random probes: z ~ N(0, I) minus its mean, over the square root of 2, goes backwards through the run once.

With V = M^(1/2) W S^(1/2), this is <Z, V> + |V|^2 / 2 for Z = M^(-1/2) G S^(-1/2). The best V of rank r is minus the r largest
singular parts of Z. (M S stands for the mean of products, as in K-FAC: Martens & Grosse 2015, arXiv:1503.05671.) Both M and S
get a multiple of the identity, a share of their mean eigenvalue. The length of the step then comes from the curvature of each
example, which is measured along the edit, without that approximation, by probes that the edit was not fitted to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from reftlens.analysis.engine.output_metric import added
from reftlens.cone.answers import Answers
from reftlens.data import Batch
from reftlens.edit.hooks import Watch
from reftlens.edit.reft import Reft
from reftlens.interventions import Affine
from reftlens.training.objectives.base import completion_logprobs, predictions

_ROUNDING = 1e-8
"""Variance beside the mean square below which states count as equal: the first token of all prompts differs by rounding."""


@final
@dataclass(frozen=True, eq=False)
class Slopes:
    """What the loss of some examples does when the states of one cell are pushed. One row per edited token, in float64."""

    h: Float[Tensor, "token d_model"]
    example: Int[Tensor, " token"]
    g: Float[Tensor, "token d_model"]
    """Gradient of its example's loss; the mean over examples is the loss in nats per completion token."""
    probes: Float[Tensor, "probe token d_model"]
    """Random backward passes q. The square of q . change, summed over the tokens of an example, is the curvature along it."""
    n: int
    """Number of examples."""

    def along(self, change: Float[Tensor, "token d_model"]) -> tuple[float, float]:
        """Returns slope and curvature of the mean loss along a change of the tokens."""
        felt = (self.probes * change).sum(-1)
        of_example = felt.new_zeros(len(self.probes), self.n).index_add(1, self.example, felt)
        return float((self.g * change).sum() / self.n), float(of_example.square().sum() / (self.n * max(1, len(felt))))


def slopes(
    bridge: TransformerBridge,
    cells: Sequence[Reft],
    batches: Sequence[Batch],
    *,
    n_probes: int,
    generator: torch.Generator,
) -> tuple[list[Slopes], float]:
    """Pushes the states of all cells at once, by zero: one run and 1 + n_probes backward passes of each batch.

    Args:
        bridge: the base.
        cells: layouts with one site each; their weights do not matter.
        batches: prompts with their completions.
        n_probes: random probes of each example; 0 leaves the curvature out.
        generator: of the probes.

    Returns:
        One result per cell, in order, and the loss of the base in nats per completion token.
    """
    parts, losses, n_tokens = [], 0.0, 0
    for batch in batches:
        of_batch, loss = _slopes(bridge, cells, batch, n_probes, generator)
        parts.append(of_batch)
        losses, n_tokens = losses + loss, n_tokens + int(predictions(batch).sum())
    n = sum(map(len, batches))
    scale = n / n_tokens
    firsts = torch.tensor([0, *(len(batch) for batch in batches)]).cumsum(0).tolist()
    found = [
        Slopes(
            h=torch.cat([part[place].h for part in parts]),
            example=torch.cat([part[place].example + first for part, first in zip(parts, firsts, strict=False)]),
            g=scale * torch.cat([part[place].g for part in parts]),
            probes=scale**0.5 * torch.cat([part[place].probes for part in parts], dim=1),
            n=n,
        )
        for place in range(len(cells))
    ]
    return found, losses / n_tokens


def _slopes(
    bridge: TransformerBridge, cells: Sequence[Reft], batch: Batch, n_probes: int, generator: torch.Generator
) -> tuple[list[Slopes], float]:
    seen: dict[int, tuple[Tensor, Tensor]] = {}

    def keep(place: int) -> Watch:
        return lambda tokens, example: seen.update({place: (tokens.detach(), example)})

    edits = [edit for cell in cells for edit in cell.edits(batch)]
    leaves = [
        torch.zeros(int(edit.read.sum()), edit.intervention.d_model, device=batch.tokens.device, requires_grad=True)
        for edit in edits
    ]
    # Pushes of zero change no run, so one run serves all cells.
    pushed = [
        replace(added(replace(edit, scale=0.0), _constant(leaf)), watch=keep(place))
        for place, (edit, leaf) in enumerate(zip(edits, leaves, strict=True))
    ]
    with torch.enable_grad():
        logits = Answers(bridge, batch, edits, at=predictions(batch)).logits(pushed)
        loss = -completion_logprobs(logits, batch).sum()
        wanted = _back(loss, leaves)
        probes = []
        for _ in range(n_probes):
            z = torch.randn(logits.shape, generator=generator).to(logits)
            probes.append(_back(logits, leaves, (z - z.mean(-1, keepdim=True)) / 2**0.5))
    found = []
    for place, g in enumerate(wanted):
        h, example = (tensor.cpu() for tensor in seen[place])
        of_cell = [probe[place] for probe in probes]
        stacked = torch.stack(of_cell) if of_cell else g.new_zeros(0, *g.shape)
        found.append(Slopes(h.double(), example, g, stacked, len(batch)))
    return found, float(loss.detach())


def _back(output: Tensor, leaves: Sequence[Tensor], by: Tensor | None = None) -> list[Tensor]:
    # A cell that nothing reads has no path to the output.
    grads = torch.autograd.grad(output, leaves, by, retain_graph=True, allow_unused=True, materialize_grads=True)
    return [g.double().cpu() for g in grads]


def _constant(push: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda _tokens: push


@final
@dataclass(frozen=True, eq=False)
class Fit:
    """An affine edit of rank r, h -> h + W x, found from slopes alone."""

    write: Float[Tensor, "rank d_model"]
    read: Float[Tensor, "rank d_model"]
    """Of h minus its mean."""
    push: Float[Tensor, " rank"]
    mean: Float[Tensor, " d_model"]
    values: Float[Tensor, " rank"]
    """The singular values it was made of."""

    def change(self, h: Float[Tensor, "token d_model"]) -> Float[Tensor, "token d_model"]:
        """Computes the change of each state."""
        return ((h - self.mean) @ self.read.T + self.push) @ self.write

    def affine(self) -> Affine:
        """Returns the same edit with its constant for h itself."""
        return Affine(self.write, self.read, (self.push - self.read @ self.mean) @ self.write)


def fit(at: Slopes, *, rank: int, damping: float, curves: Float[Tensor, "n d_model"] | None) -> Fit:
    """Finds the best edit of one cell.

    Args:
        at: slopes of the examples.
        rank: of the edit.
        damping: share of the mean eigenvalue that is added to M and S.
        curves: probes whose mean square is M. None takes the identity, which bounds the size of the
            change alone.
    """
    mean = at.h.mean(0)
    inward, read_by = _whitened(at.h - mean, at.h - mean, damping, least=_ROUNDING * float(at.h.square().mean()))
    outward, write_by = (at.g, _unchanged) if curves is None else _whitened(at.g, curves, damping)
    # The mean is free to move: its column has no damping.
    x = torch.cat([inward, torch.ones_like(inward[:, :1])], dim=1)
    # Z = outward^T x / n has at most as many singular values as there are tokens.
    left, right = torch.linalg.qr(outward.T), torch.linalg.qr(x.T)
    u, values, v = torch.linalg.svd(left.R @ right.R.T / at.n, full_matrices=False)
    write = (left.Q @ u[:, :rank]).T
    read = v[:rank] @ right.Q.T
    return Fit(
        write=write_by(-values[:rank, None] * write),
        read=read_by(read[:, :-1]),
        push=read[:, -1],
        mean=mean,
        values=values[:rank],
    )


def _unchanged(rows: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    return rows


def _whitened(
    rows: Float[Tensor, "n d"], of: Float[Tensor, "m d"], damping: float, *, least: float = 0.0
) -> tuple[Float[Tensor, "n d"], Callable[[Tensor], Tensor]]:
    """Returns rows C^(-1/2), and a function that does the same to others, for C = E[of of^T] + max(damping tr / d, least)."""
    _, sizes, basis = torch.linalg.svd(of / max(1, len(of)) ** 0.5, full_matrices=False)
    added_to = (damping * sizes.square().sum() / of.shape[1]).clamp(min=least)
    # Without curvature there is no gradient either, so that any scale will do.
    added_to = added_to if float(added_to) > 0 else torch.ones_like(added_to)
    inside = (sizes.square() + added_to).rsqrt()
    outside = added_to.rsqrt()

    def scaled(given: Tensor) -> Tensor:
        coordinates = given @ basis.T
        return outside * given + ((inside - outside) * coordinates) @ basis

    return scaled(rows), scaled
