"""Scales a trained method until its side effect meets a budget, so that methods are compared at equal side effect.

The side effect is the mean KL(base, method) at the last token of prompts that should not change. A
stronger method changes its target more and everything else more, so scores at unequal side effects
say little (see `analysis.calibrate`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from reftlens.analysis import calibrate
from reftlens.analysis.engine.turning import scale_at
from reftlens.bridge import side_for_ends
from reftlens.cone.answers import next_token_logprobs
from reftlens.data import Given, as_batches
from reftlens.edit.reft import Reft
from reftlens.numbers import require_number
from reftlens.results import Calibrated


@final
class Change:
    """What training changes of some base parameters: their values at the start, kept to scale the change."""

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        """Args: parameters: before training, from `Method.strength`."""
        self._pairs = [(parameter, parameter.detach().clone()) for parameter in parameters]
        self._trained: list[Tensor] | None = None

    @torch.no_grad()
    def scale(self, factor: float) -> None:
        """Sets the parameters to start + factor (trained - start). The first call takes their values as the trained ones.

        Args:
            factor: on top of the trained change, not of the last one.
        """
        if self._trained is None:
            self._trained = [parameter.detach().clone() for parameter, _ in self._pairs]
        for (parameter, start), trained in zip(self._pairs, self._trained, strict=True):
            # lerp gives the exact values at 0 and 1, which start + factor * change would round.
            parameter.copy_(torch.lerp(start, trained, factor))


@final
class SideEffect:
    """A budget of KL on prompts that should not change."""

    def __init__(self, bridge: TransformerBridge, kept: Given, kl: float) -> None:
        """Runs the base, which no method may have changed yet.

        Args:
            bridge: the base.
            kept: prompts whose answers should not change.
            kl: the budget, in nats.
        """
        require_number("kl", kl, above=0)
        self.kl, self._bridge = kl, bridge
        self._batches = as_batches(bridge, kept, name="kept", padding_side=side_for_ends(bridge))
        self._base = [next_token_logprobs(bridge, batch) for batch in self._batches]
        self.n = sum(map(len, self._base))
        """Number of these prompts."""

    def met(self, reft: Reft | None, change: Change) -> tuple[Reft | None, Calibrated]:
        """Scales a trained method until it meets the budget.

        Args:
            reft: the edit, if the method is one; not changed.
            change: of the base's parameters, which are left at the scale that was found.

        Returns:
            The scaled edit, and the scale.
        """
        if reft is not None:
            # On the light cone, which a changed base does not have.
            found = calibrate(self._bridge, reft, self._batches, kl=self.kl)
            return reft.scaled(found.scale), found
        found = scale_at(lambda scale: self._divergence(change, scale), self.kl, n=self.n)
        change.scale(found.scale)
        return None, found

    def _divergence(self, change: Change, scale: float) -> float:
        change.scale(scale)
        total = 0.0
        for batch, said in zip(self._batches, self._base, strict=True):
            # float64, because a small KL is a sum of differences of nearly equal numbers.
            before, after = said.double(), next_token_logprobs(self._bridge, batch).double()
            total += float((before.exp() * (before - after)).sum())
        return total / self.n
