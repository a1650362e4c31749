"""Changes an edit and measures the real KL from its outputs: how far may it turn until they move by eps?

`scale_at` asks the same of a strength: at which scale is a KL as large as a budget?
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from reftlens.analysis.engine.output_metric import added, wanted_tokens
from reftlens.cone.answers import Answers
from reftlens.data import Batch
from reftlens.edit.reft import Reft
from reftlens.numbers import require_number
from reftlens.results import Calibrated

STEEPEST = math.tan(math.radians(80.0))
"""Tangent of the largest angle that is walked. A direction that may turn as far is as good as any other."""
CLOSE = 0.03
"""A walk ends where the KL is this close to eps, relatively; the angle is then about half as close."""
STEPS = 8
_SCALE_STEPS = 12


@final
@dataclass(frozen=True)
class Shift:
    """A further change of one site, as factors: extra(h) = write^T (read h + constant)."""

    site: int
    write: Float[Tensor, "k d_model"]
    read: Float[Tensor, "k d_model"]
    constant: Float[Tensor, " k"]

    def __call__(self, tokens: Float[Tensor, "n d_model"]) -> Float[Tensor, "n d_model"]:
        write, read, constant = (t.to(tokens) for t in (self.write, self.read, self.constant))
        return (tokens @ read.T + constant) @ write


@final
class Outputs:
    """The outputs of an edit on some prompts, and their KL to those of changed edits."""

    def __init__(self, bridge: TransformerBridge, reft: Reft, batches: Sequence[Batch]) -> None:
        """Runs the base and the edit once for each batch.

        Args:
            bridge: the base.
            reft: the edit.
            batches: prompts with or without completions.
        """
        self._edits = [reft.edits(batch) for batch in batches]
        self._runs = [
            Answers(bridge, batch, edits, at=wanted_tokens(batch))
            for batch, edits in zip(batches, self._edits, strict=True)
        ]
        with torch.no_grad():
            self._said = [
                run.logits(edits).double().log_softmax(-1) for run, edits in zip(self._runs, self._edits, strict=True)
            ]
        self.n = sum(map(len, self._said))
        """Number of wanted tokens."""

    def kl(self, shifts: Sequence[Sequence[Shift]]) -> Float[Tensor, " variant"]:
        """Computes KL(edit || changed edit) in nats, averaged over the wanted tokens. Gradients flow to the shifts.

        Args:
            shifts: for each variant, its changes.
        """
        totals = torch.zeros(len(shifts), dtype=torch.float64)
        for run, edits, said in zip(self._runs, self._edits, self._said, strict=True):
            variants = []
            for chosen in shifts:
                changed = list(edits)
                for shift in chosen:
                    changed[shift.site] = added(changed[shift.site], shift)
                variants.append(changed)
            gaps = [
                (said.exp() * (said - logits.double().log_softmax(-1))).sum().cpu() for logits in run.many(variants)
            ]
            totals = totals + torch.stack(gaps) if gaps else totals
        return totals / self.n


Turned = Callable[[float], Sequence[Shift]]
"""Tangent of an angle -> the changes that turn the edit so far."""


@torch.no_grad()
def walk(outputs: Outputs, turns: Sequence[tuple[Turned, float]], eps: float) -> list[tuple[Side, Side]]:
    """Finds how far an edit may turn, in several ways and to both sides, until the real KL is eps. All are run together.

    Args:
        outputs: of the edit.
        turns: ways to turn, each with the tangent to begin with, from the quadratic form.
        eps: in nats.

    Returns:
        The negative and the positive side of each.
    """
    pairs = [(Side(eps, min(start, STEEPEST)), Side(eps, min(start, STEEPEST))) for _, start in turns]
    every = [
        (side, sign, turned)
        for pair, (turned, _) in zip(pairs, turns, strict=True)
        for side, sign in zip(pair, (-1, 1), strict=True)
    ]
    for _ in range(STEPS):
        moving = [one for one in every if not one[0].done]
        if not moving:
            break
        found = outputs.kl([turned(sign * side.tangent) for side, sign, turned in moving])
        for (side, _, _), kl in zip(moving, found.tolist(), strict=True):
            side.seen(kl)
    return pairs


def scale_at(divergence: Callable[[float], float], kl: float, *, largest: float = 8.0, n: int) -> Calibrated:
    """Finds the scale at which a KL meets a budget.

    Args:
        divergence: scale -> mean KL in nats, assumed to grow with the scale.
        kl: the budget, in nats; met within 3%.
        largest: the largest scale that is tried.
        n: number of prompts that the KL is a mean of.

    Raises:
        ValueError: If the budget or the largest scale is not positive.
    """
    require_number("kl", kl, above=0)
    require_number("largest", largest, above=0)
    side = Side(kl, min(1.0, largest), most=largest)
    unscaled = divergence(1.0)
    for _ in range(_SCALE_STEPS):
        if side.done:
            break
        # Scale 1 has been measured already, and the search usually starts there.
        side.seen(unscaled if side.tangent == 1.0 else divergence(side.tangent))
    scale, found = side.best
    return Calibrated(scale=scale, kl=found, budget=kl, unscaled=unscaled, n=n)


@final
class Side:
    """One side of a walk: a bracket of tangents, narrowed as if KL were a power of the tangent."""

    def __init__(self, eps: float, start: float, *, most: float = STEEPEST) -> None:
        """Args: eps: in nats. start: the first tangent. most: the largest tangent that is tried."""
        self.eps, self.tangent, self.done, self._most = eps, start, False, most
        self.best = (0.0, 0.0)
        """The largest tangent with a KL of at most eps (or as close to it as counts), and this KL."""
        self._high: tuple[float, float] | None = None

    def seen(self, kl: float) -> None:
        """Takes the KL at the current tangent, and chooses the next one.

        Args:
            kl: in nats.
        """
        # Rounding can make a tiny KL negative, and its logarithm is taken below.
        t, kl = self.tangent, max(kl, 1e-30)
        if abs(kl / self.eps - 1) <= CLOSE or (kl < self.eps and t >= self._most):
            self.best, self.done = (t, kl), True
            return
        if kl < self.eps:
            self.best = (t, kl)
        else:
            self._high = (t, kl)
        # Quadratic, until a KL on either side of eps shows the power.
        power, low = 2.0, self.best[0]
        if self._high is not None and low:
            power = math.log(self._high[1] / self.best[1]) / math.log(self._high[0] / low)
        # A KL that falls with the angle gives no power: 0 is outside the bracket, which is halved.
        following = t * (self.eps / kl) ** (1 / power) if power > 0 else 0.0
        high = math.inf if self._high is None else self._high[0]
        if not low < following < high:
            # Outside the bracket: halve it on a logarithmic scale.
            following = math.sqrt(low * high) if low else high / 4
        self.tangent = min(following, self._most)
