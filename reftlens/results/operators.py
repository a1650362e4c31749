"""An edit as an operator: its directions, and what they say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from reftlens.results.base import Result


@final
@dataclass(frozen=True, eq=False, repr=False)
class Operator(Result):
    """A trained edit as an operator on the activations that it really edits (see `analysis.operator`)."""

    hook_name: str
    write: Float[Tensor, "direction d_model"]
    """Unit write directions, strongest first; signed so that the mean change along each is not negative."""
    read: Float[Tensor, "direction d_model"]
    """The change along write direction i is read_i . h + constant_i."""
    constant: Float[Tensor, " direction"]
    spectrum: Float[Tensor, " direction"]
    """Root-mean-square change along each write direction, in the units of the activation."""
    constant_share: Float[Tensor, " direction"]
    """Part of spectrum^2 that the mean change makes up: 1 for a push that does not depend on the input."""
    rms_norm: float
    """Root-mean-square norm of the activations themselves, the scale to compare `spectrum` with."""
    n_tokens: int
    """Edited tokens that the moments were taken over."""
    pattern: Float[Tensor, "direction d_model"]
    """Unit directions of the activations that each reading answers to, S read_i: where `read` also holds what the data
    never vary, and training never touched, this does not (Haufe et al. 2014). Zero for a push that reads nothing."""

    @property
    def effective_rank(self) -> float:
        """Participation ratio of the spectrum's energy, (sum s^2)^2 / sum s^4: 1 if one direction does it all."""
        energy = self.spectrum.double() ** 2
        return float(energy.sum() ** 2 / (energy**2).sum())

    def rank_for(self, share: float = 0.99) -> int:
        """Write directions, strongest first, that together carry this share of the energy.

        Raises:
            ValueError: for a share outside (0, 1].
        """
        if not 0 < share <= 1:
            raise ValueError(f"share must be in (0, 1], got {share}")
        energy = self.spectrum.double() ** 2
        # Rounding in float32 must not ask for a direction more.
        reached = energy.cumsum(dim=0) / energy.sum() >= share - 1e-6
        return int(reached.int().argmax()) + 1

    def headline(self) -> str:
        return (
            f"{self.hook_name}: effective rank {self.effective_rank:.2f} of {len(self.spectrum)}, rms change "
            f"{float(self.spectrum.square().sum().sqrt()):.3g} of |h| = {self.rms_norm:.3g}, {self.n_tokens} tokens"
        )

    def to_dataframe(self) -> pd.DataFrame:
        """One line for each write direction: rms change, its part of the energy, constant share."""
        energy = self.spectrum**2
        return pd.DataFrame(
            {
                "hook_name": self.hook_name,
                "direction": range(len(self.spectrum)),
                "rms_change": self.spectrum.tolist(),
                "energy": (energy / energy.sum()).tolist(),
                "constant_share": self.constant_share.tolist(),
            }
        )


@final
@dataclass(frozen=True, repr=False)
class DirectionReadout(Result):
    """What one write direction promotes and suppresses if it went straight to the unembedding."""

    hook_name: str
    direction: int
    promoted: tuple[tuple[str, float], ...]
    """Tokens whose logits rise most, with the mean change of the logit, largest first."""
    suppressed: tuple[tuple[str, float], ...]
    """Tokens whose logits fall most, most negative first."""
    null_low: float
    """5th percentile, over random directions of the same length, of their most negative change of a logit."""
    null_high: float
    """95th percentile of the largest change: below it, a promoted token is what chance gives."""
    n_null: int
    """Random directions drawn."""
    watched: tuple[tuple[str, float, float], ...] = ()
    """Tokens named beforehand: change of the logit, and p, the part of random directions that change it as much."""

    def headline(self) -> str:
        def few(moved: tuple[tuple[str, float], ...]) -> str:
            return ", ".join(f"{token!r} {change:+.2f}" for token, change in moved[:3]) or "nothing"

        return (
            f"{self.hook_name}, direction {self.direction}: {few(self.promoted)}; {few(self.suppressed)}; random directions "
            f"{self.null_low:.2f} to {self.null_high:.2f}"
        )

    def to_dataframe(self) -> pd.DataFrame:
        """One line for each extreme token: token, change of its logit, whether it is beyond the null."""
        where = (self.hook_name, self.direction)
        lines = [(*where, token, change, change > self.null_high) for token, change in self.promoted]
        lines += [(*where, token, change, change < self.null_low) for token, change in self.suppressed]
        return pd.DataFrame(lines, columns=["hook_name", "direction", "token", "logit_change", "beyond_null"])
