"""How much the outputs change when an edited activation is pushed: E[M], from random probes on the light cone.

Let J be the Jacobian of a prompt's logits at the wanted tokens with respect to an edited
activation, in the edited run, and F = diag(p) - p p^T the Fisher information of the logits. A small
push v changes the next-token distribution by a KL of 1/2 v^T M v with M = J^T F J. M is never
formed. For z ~ N(0, I), q = sqrt(p) z - p (sqrt(p) . z) has E[q q^T] = F, so one backward pass
gives g = J^T q with E[g g^T] = M. (Answers drawn from p also give F in expectation, but p is
peaked: few draws miss the rare tokens, and then directions look free that are not.)

A prompt with several edited tokens has one g per token. The tokens of one prompt move together
under a change of the edit, so their contributions are summed before they are squared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from reftlens.cone.answers import Answers
from reftlens.data import IGNORE, Batch
from reftlens.edit.hooks import Edit, Watch
from reftlens.edit.reft import Reft
from reftlens.interventions import Affine, Intervention
from reftlens.results import Operator
from reftlens.training.objectives import predictions


@final
class Added(Intervention):
    """An edit, and a further change of its tokens: scale * delta(h) + extra(h), for derivatives and trial steps."""

    kind = "added"

    def __init__(self, edit: Edit, extra: Callable[[Tensor], Tensor]) -> None:
        super().__init__(edit.intervention.d_model, edit.intervention.rank)
        self.inner, self.scale, self.extra = edit.intervention, edit.scale, extra

    def delta(self, resid: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        return self.scale * self.inner.delta(resid) + self.extra(resid).to(resid)

    @property
    def across_tokens(self) -> bool:
        return self.inner.across_tokens

    def delta_of(self, tokens: Float[Tensor, "n d_model"], example: Int[Tensor, " n"]) -> Float[Tensor, "n d_model"]:
        return self.scale * self.inner.delta_of(tokens, example) + self.extra(tokens).to(tokens)

    def affine(self) -> Affine:
        raise NotImplementedError("only for derivatives and trial steps")


def added(edit: Edit, extra: Callable[[Tensor], Tensor]) -> Edit:
    """Returns the edit with a further change of its tokens.

    Args:
        edit: of a batch.
        extra: activations `[n, d_model]` before the edit -> the further change, of this shape.
    """
    return replace(edit, intervention=Added(edit, extra), scale=1.0)


@final
@dataclass(frozen=True, eq=False)
class Pulls:
    """Derivatives of the outputs by one site's edit. Each row is one probe of one prompt; row .
    change, squared and summed over rows, is twice the KL that the change costs, averaged over
    wanted tokens.
    """

    push: Float[Tensor, "row d_model"]
    """By a steady push of all edited tokens; the squares sum to E[M]."""
    write: Float[Tensor, "row direction d_model"]
    """By the write directions u_k, where the change is sum_k u_k (r_k . h + c_k)."""
    read: Float[Tensor, "row direction d_model"]
    """By the read directions r_k."""
    constant: Float[Tensor, "row direction"]
    """By the constants c_k."""
    inputs: Float[Tensor, "token d_model"]
    """The edit's inputs; none without operators."""


def wanted_tokens(batch: Batch) -> Bool[Tensor, "batch pos"]:
    """Returns the tokens whose outputs count: those that predict a completion, or the last prompt token where there is none.

    Args:
        batch: prompts with or without completions.
    """
    alone = (batch.labels == IGNORE).all(1, keepdim=True)
    return predictions(batch) | (batch.last_prompt_mask & alone)


def pulls(
    bridge: TransformerBridge,
    reft: Reft,
    batches: Sequence[Batch],
    *,
    operators: Sequence[Operator] | None = None,
    n_probes: int = 16,
    seed: int = 0,
) -> list[Pulls]:
    """Probes the outputs of an edited model. One forward pass and `n_probes` backward passes of the cone for each batch.

    Args:
        bridge: the base.
        reft: the edit.
        batches: prompts with or without completions.
        operators: the edit in directions, from `decompose`; without them, only `push` is computed.
        n_probes: random probes of each prompt.
        seed: seed of the probes.

    Returns:
        One result per site, in order, in float64 on the CPU.
    """
    generator = torch.Generator().manual_seed(seed)
    n_outputs = sum(int(wanted_tokens(batch).sum()) for batch in batches)
    found = [_probe(bridge, reft, batch, operators, n_probes, generator) for batch in batches]
    # Squares of rows then sum to a mean over probes and wanted tokens.
    scale = (n_probes * n_outputs) ** -0.5
    of_site = [[of_batch[site] for of_batch in found] for site in range(len(reft))]
    return [_joined(parts, torch.cat([part.inputs for part in parts]), scale) for parts in of_site]


def push_roots(
    bridge: TransformerBridge, reft: Reft, batches: Sequence[Batch], *, n_probes: int = 16, seed: int = 0
) -> list[Float[Tensor, "_row _d_model"]]:
    """Returns rows with the squares of `Pulls.push`, fewer of them: their number does not grow with the prompts.

    Args:
        bridge: the base.
        reft: the edit.
        batches: prompts with or without completions.
        n_probes: as for `pulls`.
        seed: as for `pulls`.

    Returns:
        One matrix per site, in order, in float64 on the CPU. Angles and squares in the output
        metric are those of `push`.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.zeros(0, intervention.d_model, dtype=torch.float64) for _, intervention in reft]
    n_outputs = 0
    for batch in batches:
        n_outputs += int(wanted_tokens(batch).sum())
        found = _probe(bridge, reft, batch, None, n_probes, generator)
        rows = [torch.cat([kept, of_site.push]) for kept, of_site in zip(rows, found, strict=True)]
        # R of a QR decomposition has the same squares, in as many rows as there are columns.
        rows = [torch.linalg.qr(some, mode="r").R if len(some) > 2 * some.shape[1] else some for some in rows]
    return [(n_probes * n_outputs) ** -0.5 * some for some in rows]


def _probe(
    bridge: TransformerBridge,
    reft: Reft,
    batch: Batch,
    operators: Sequence[Operator] | None,
    n_probes: int,
    generator: torch.Generator,
) -> list[Pulls]:
    edits = reft.edits(batch)
    seen: dict[int, tuple[Tensor, Tensor]] = {}

    def keep(place: int) -> Watch:
        return lambda tokens, example: seen.update({place: (tokens.detach(), example)})

    # Pushes of zero: their gradients are J^T q at every edited token.
    leaves = [
        torch.zeros(int(edit.read.sum()), edit.intervention.d_model, device=batch.tokens.device, requires_grad=True)
        for edit in edits
    ]
    pushed = [
        replace(added(edit, _constant(leaf)), watch=keep(place))
        for place, (edit, leaf) in enumerate(zip(edits, leaves, strict=True))
    ]
    with torch.enable_grad():
        logits = Answers(bridge, batch, edits, at=wanted_tokens(batch)).logits(pushed)
    # In float64: rare tokens count by the root of their probability.
    p = logits.detach().double().softmax(-1)
    roots = p.sqrt()
    parts: list[list[Pulls]] = [[] for _ in edits]
    for _ in range(n_probes):
        z = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p)
        q = roots * z - p * (roots * z).sum(-1, keepdim=True)
        grads = torch.autograd.grad(logits, leaves, q.to(logits), retain_graph=True)
        for place, g in enumerate(grads):
            operator = None if operators is None else operators[place]
            parts[place].append(_summed(g, *seen[place], len(batch), operator))
    # Every probe of a batch has the same inputs.
    return [_joined(some, some[0].inputs, 1.0) for some in parts]


def _constant(push: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda _tokens: push


def _summed(
    g: Float[Tensor, "token d_model"],
    h: Float[Tensor, "token d_model"],
    example: Int[Tensor, " token"],
    n: int,
    operator: Operator | None,
) -> Pulls:
    """Sums over the tokens of each prompt."""
    g, h, example = g.double().cpu(), h.double().cpu(), example.cpu()

    def by_prompt(values: Tensor) -> Tensor:
        return values.new_zeros(n, *values.shape[1:]).index_add(0, example, values)

    width = h.shape[1]
    if operator is None:
        nothing = h.new_zeros(n, 0, width)
        return Pulls(by_prompt(g), nothing, nothing, h.new_zeros(n, 0), h[:0])
    write, read, constant = (t.double() for t in (operator.write, operator.read, operator.constant))
    moves, felt = h @ read.T + constant, g @ write.T
    return Pulls(
        push=by_prompt(g),
        write=torch.stack([by_prompt(move[:, None] * g) for move in moves.T], dim=1),
        read=torch.stack([by_prompt(f[:, None] * h) for f in felt.T], dim=1),
        constant=by_prompt(felt),
        inputs=h,
    )


def _joined(parts: Sequence[Pulls], inputs: Tensor, scale: float) -> Pulls:
    names = ("push", "write", "read", "constant")
    return Pulls(**{name: scale * torch.cat([getattr(part, name) for part in parts]) for name in names}, inputs=inputs)


def output_angles(
    first: Float[Tensor, "k d_model"], second: Float[Tensor, "m d_model"], push: Float[Tensor, "row d_model"]
) -> Float[Tensor, " angle"]:
    """Computes the principal angles of two subspaces in the output metric, in degrees.

    They are the angles of E[M]^(1/2) u: 0 where two pushes do the same to the outputs, whatever
    their plain angle.

    Args:
        first: rows that span one subspace.
        second: rows that span the other.
        push: from `Pulls`.
    """
    # |push u|^2 = u^T E[M] u, so an isometry takes E[M]^(1/2) u to push @ u, and angles stay the
    # same.
    spans = [torch.linalg.qr(push @ rows.double().cpu().T).Q for rows in (first, second)]
    cosines = torch.linalg.svdvals(spans[0].T @ spans[1]).clamp(max=1)
    return torch.rad2deg(torch.acos(cosines))
