"""Whether an edit takes activations to where the model has never been."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from reftlens.results.base import Result


@final
@dataclass(frozen=True, eq=False, repr=False)
class OffManifold(Result):
    """Where edited activations of one site lie among natural ones of held-out prompts."""

    hook_name: str
    norm_ratio: Float[Tensor, " token"]
    """|h + delta| / |h| of each edited token."""
    natural: Float[Tensor, " token"]
    """Percentile of each token's own activation, before the edit, by Mahalanobis distance among natural activations of
    other prompts. Uniform if the estimate is honest: this is the null."""
    edited: Float[Tensor, " token"]
    """The same for h + delta."""
    control: Float[Tensor, " token"]
    """The same for h + delta turned to random directions."""
    shrinkage: float
    """Weight of the round part in the covariance: 0 for the sample's own, 1 for a multiple of the identity."""
    n_fit: int
    """Natural activations that mean and covariance come from."""
    n_reference: int
    """Natural activations, of other prompts, that the percentiles refer to."""

    def beyond(self, percentile: float = 95.0) -> tuple[float, float, float]:
        """Part of the tokens beyond a percentile: natural, edited, control."""
        parts = [float((values > percentile).float().mean()) for values in (self.natural, self.edited, self.control)]
        return parts[0], parts[1], parts[2]

    def headline(self) -> str:
        natural, edited, control = self.beyond()
        return (
            f"{self.hook_name}, {len(self.edited)} tokens: beyond the 95th percentile {edited:.0%} edited, {natural:.0%} "
            f"before, {control:.0%} in random directions"
        )

    def to_dataframe(self) -> pd.DataFrame:
        """One line for each of natural, edited and control: median percentile, part beyond the 95th."""
        named = {"natural (held out)": self.natural, "edited": self.edited, "edit turned at random": self.control}
        lines = [
            {
                "hook_name": self.hook_name,
                "activations": name,
                "median percentile": float(values.median()),
                "beyond the 95th": share,
                "median |h + delta| / |h|": float(self.norm_ratio.median()) if name == "edited" else float("nan"),
                "tokens": len(values),
            }
            for (name, values), share in zip(named.items(), self.beyond(), strict=True)
        ]
        return pd.DataFrame(lines)

    def __post_init__(self) -> None:
        for values in (self.natural, self.edited, self.control):
            if bool(torch.isnan(values).any()):
                raise ValueError(f"percentiles at {self.hook_name} hold NaN: an activation is not finite")
