"""What is the effect of scaling an edit? Log-probability of the answer, and KL on other prompts, for h + alpha * delta(h).

The slope at alpha = 0 is exact (reverse-mode differentiation through alpha). Where the curve leaves
the straight line, the edit's effect is not linear in its size. Where the curve falls again, alpha =
1 is a point that training found, not a direction that can be followed further. The control is
changes of the same norm in random directions.

With several sites, alpha scales all of them, and later sites receive activations already changed by
earlier ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from reftlens.analysis.controls.turned import turned_draws
from reftlens.bridge import each, side_for_ends
from reftlens.cone.answers import Answers
from reftlens.cone.shared import sharing
from reftlens.data import Batch, Prompt, as_batches, as_prompts, first_tokens
from reftlens.edit.reft import Reft
from reftlens.interventions import Affine, Intervention
from reftlens.results import Dose

ALPHAS = (-0.5, 0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)


@sharing
def dose(
    bridge: TransformerBridge,
    reft: Reft,
    examples: Sequence[tuple[str, str]],
    *,
    kept: Iterable[Prompt] = (),
    alphas: Sequence[float] = ALPHAS,
    n_control: int = 3,
    batch_size: int = 64,
    seed: int = 0,
) -> Dose:
    """Computes the dose curve of an edit.

    Args:
        bridge: the base.
        reft: the edit; alpha multiplies its scales.
        examples: (prompt, desired completion) pairs; the completion's first token is scored.
        kept: prompts whose answers should not change.
        alphas: doses; 0 is added if it is missing.
        n_control: random-direction controls to average over.
        batch_size: prompts in one forward pass.
        seed: seed of the control.

    Raises:
        ValueError: If there are no examples or no control.
    """
    if not examples or n_control < 1:
        raise ValueError(
            f"dose needs at least one example and n_control of at least 1, got {len(examples)} and {n_control}"
        )
    prompts, completions = zip(*examples, strict=True)
    answers = first_tokens(bridge, prompts, completions, name="completions")
    side = side_for_ends(bridge)
    # An empty list means none here; as_prompts would refuse it.
    others = [] if isinstance(kept, list | tuple) and not kept else as_prompts(kept, "kept")

    # 0, because the slope and its straight line begin there.
    grid = torch.tensor(sorted({0.0, *alphas}))
    edits = [reft, *turned_draws(reft, n_control, seed=seed)]
    doses = [[edit.scaled(alpha) for alpha in grid.tolist()] for edit in edits]

    def answered(given: tuple[Batch, Int[Tensor, " n"]]) -> tuple[Float[Tensor, "edit dose"], Float[Tensor, " edit"]]:
        batch, answer = given
        runs = Answers(bridge, batch, reft.edits(batch))
        return torch.stack([_target(runs, some, answer) for some in doses]), _slopes(runs, edits, answer)

    def moved(batch: Batch) -> Float[Tensor, "edit dose"]:
        runs = Answers(bridge, batch, reft.edits(batch))
        base = runs.logprobs()
        return torch.stack([_kl(runs, some, base) for some in doses])

    # Sums over one batch after another, because thousands of prompts do not fit in memory.
    targets, slopes, kls = (
        torch.zeros(len(edits), len(grid)),
        torch.zeros(len(edits)),
        torch.zeros(len(edits), len(grid)),
    )
    batches = as_batches(bridge, prompts, batch_size=batch_size, padding_side=side)
    for target, slope in each(bridge, answered, list(zip(batches, answers.split(batch_size), strict=True))):
        targets += target
        slopes += slope
    for kl in each(
        bridge, moved, as_batches(bridge, others, batch_size=batch_size, padding_side=side) if others else []
    ):
        kls += kl
    targets, slopes = targets / len(prompts), slopes / len(prompts)
    kls = kls / len(others) if others else torch.full_like(kls, torch.nan)
    return Dose(
        alpha=grid,
        target=targets[0],
        kl=kls[0],
        control_target=targets[1:].mean(dim=0),
        control_kl=kls[1:].mean(dim=0),
        slope=float(slopes[0]),
        control_slope=float(slopes[1:].mean()),
        n_target=len(examples),
        n_kept=len(others),
        n_control=n_control,
    )


@torch.no_grad()
def _target(runs: Answers, doses: Sequence[Reft], answer: Int[Tensor, " n"]) -> Float[Tensor, " dose"]:
    """Sums the log-probability of the answers over a batch, at each dose."""
    found = runs.many([dose.edits(runs.batch) for dose in doses])
    return torch.stack([_said(logits, answer).sum().cpu() for logits in found])


def _said(logits: Float[Tensor, "n d_vocab"], answer: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Returns the log-probability of one token a row."""
    logits = logits.float()
    # One column is wanted, so the log-softmax of the whole vocabulary is never kept.
    return logits.gather(1, answer.to(logits.device)[:, None])[:, 0] - logits.logsumexp(-1)


@torch.no_grad()
def _kl(runs: Answers, doses: Sequence[Reft], base: Float[Tensor, "n d_vocab"]) -> Float[Tensor, " dose"]:
    """Sums the KL divergence from the base over a batch, at each dose."""
    found = (logits.float().log_softmax(-1).cpu() for logits in runs.many([dose.edits(runs.batch) for dose in doses]))
    return torch.stack([(base.exp() * (base - after)).sum() for after in found])


class _Times(Intervention):
    """An edit multiplied by a differentiable factor."""

    kind = "times"

    def __init__(self, inner: Intervention, alpha: Tensor) -> None:
        super().__init__(inner.d_model, inner.rank)
        self.inner = inner
        self.alpha = alpha

    def delta(self, resid: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        return self.alpha * self.inner.delta(resid)

    @property
    def across_tokens(self) -> bool:
        return self.inner.across_tokens

    def delta_of(self, tokens: Float[Tensor, "n d_model"], example: Int[Tensor, " n"]) -> Float[Tensor, "n d_model"]:
        return self.alpha * self.inner.delta_of(tokens, example)

    def affine(self) -> Affine:
        raise NotImplementedError("only for differentiation")


def _slopes(runs: Answers, edits: Sequence[Reft], answer: Int[Tensor, " n"]) -> Float[Tensor, " edit"]:
    """Returns the derivative of the summed log-probability by each edit's dose, at dose zero."""
    alphas = [torch.zeros((), device=answer.device, requires_grad=True) for _ in edits]
    with torch.enable_grad():
        variants = [
            [replace(edit, intervention=_Times(edit.intervention, alpha)) for edit in reft.edits(runs.batch)]
            for reft, alpha in zip(edits, alphas, strict=True)
        ]
        said = [_said(logits, answer).sum() for logits in runs.many(variants)]
        # Each alpha reaches only its own rows, so one backward pass gives every derivative.
        return torch.stack(torch.autograd.grad(torch.stack(said).sum(), alphas)).cpu()
