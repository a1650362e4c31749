"""At which scale does an edit have a given side effect? Finds the factor at which its off-target KL meets a budget.

Edits, steering vectors and their scaled copies can then be compared at equal side effect:
`reft.scaled(found.scale)`. A stronger edit changes its target more and everything else more, so a
comparison at unequal side effects says little.

The KL is assumed to grow with the scale. Where it does not, the scale is one of several at which it
meets the budget.
"""

from __future__ import annotations

import torch
from transformer_lens.model_bridge import TransformerBridge

from reftlens.analysis.engine.turning import scale_at
from reftlens.bridge import side_for_ends
from reftlens.cone.answers import Answers
from reftlens.data import Given, as_batches
from reftlens.edit.reft import Reft
from reftlens.results import Calibrated


@torch.no_grad()
def calibrate(
    bridge: TransformerBridge,
    reft: Reft,
    kept: Given,
    *,
    kl: float,
    largest: float = 8.0,
    batch_size: int = 64,
) -> Calibrated:
    """Finds the scale of an edit at which the mean KL(base, edited) on prompts that should not change meets a budget.

    Args:
        bridge: the base.
        reft: the edit; not changed.
        kept: prompts whose answers should not change.
        kl: the budget, in nats; met within 3%.
        largest: the largest scale that is tried.
        batch_size: prompts in one forward pass.

    Returns:
        The scale, on top of those that the edit has. Where the budget is not met even at the
        largest scale, this scale.

    Raises:
        ValueError: If the budget or the largest scale is not positive.
    """
    batches = as_batches(bridge, kept, name="kept", batch_size=batch_size, padding_side=side_for_ends(bridge))
    runs = [Answers(bridge, batch, reft.edits(batch)) for batch in batches]
    # float64, because a small KL is a sum of differences of nearly equal numbers.
    base = [run.logprobs().double() for run in runs]
    n = sum(map(len, base))

    def divergence(scale: float) -> float:
        edit = reft.scaled(scale)
        total = 0.0
        for run, before in zip(runs, base, strict=True):
            after = run.logprobs(edit.edits(run.batch)).double()
            total += float((before.exp() * (before - after)).sum())
        return total / n

    return scale_at(divergence, kl, largest=largest, n=n)
