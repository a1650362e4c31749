"""First-order estimates of a patching map, beside what they estimate."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from reftlens.results.base import Result
from reftlens.results.patchings import PatchMap


@final
@dataclass(frozen=True, eq=False, repr=False)
class Attribution(Result):
    """Estimated changes of the metric under a patch in each cell, and how well they agree with exact ones."""

    values: Float[Tensor, "pair rows columns"]
    """Estimated metric under the patch minus the base run's; NaN where a pair has no such position."""
    exact: PatchMap
    """The exact map of the first pairs."""
    correlation: Float[Tensor, " checked"]
    """Pearson correlation over cells of estimated and exact changes, for each of these pairs; NaN if one is constant."""
    rows: tuple[str, ...]
    columns: tuple[str, ...]

    def mean(self) -> Float[Tensor, "rows columns"]:
        """Over the pairs that have the position."""
        return self.values.nanmean(0)

    def correlation_interval(
        self, *, confidence: float = 0.95, n_resamples: int = 1000, seed: int = 0
    ) -> tuple[float, float]:
        """Percentile bootstrap interval of the mean correlation over the checked pairs; NaN with fewer than two.

        Pairs whose correlation is undefined are left out. Of a handful of pairs such an interval comes out too narrow:
        check more.
        """
        from transformer_lens.utilities.statistics import bootstrap_ci, derive_generator

        found = self.correlation[self.correlation.isfinite()]
        if len(found) < 2:
            return math.nan, math.nan
        generator = derive_generator(seed, "attribution")
        low, high = bootstrap_ci(found, confidence=confidence, n_resamples=n_resamples, generator=generator)
        return float(low), float(high)

    def headline(self) -> str:
        return (
            f"{len(self.rows)} x {len(self.columns)} cells, {len(self.values)} pairs; correlation with the exact map "
            f"{self._agreement()}"
        )

    def _agreement(self) -> str:
        n, found = len(self.correlation), self.correlation[self.correlation.isfinite()]
        if not len(found):
            return f"undefined in all {n} checked pairs: an estimated or exact map of each is constant"
        missing = "" if len(found) == n else f", undefined in {n - len(found)} more"
        if len(found) == 1:
            return f"{float(found):.2f} in one pair, which gives no interval{missing}"
        low, high = self.correlation_interval()
        return f"{float(found.mean()):.2f}, 95% interval {low:.2f} to {high:.2f} over {len(found)} pairs{missing}"

    def to_dataframe(self) -> pd.DataFrame:
        """One line for each cell: the estimate over all pairs, and estimate and exact change over the checked ones."""
        n = len(self.correlation)
        changes = (self.exact.values - self.exact.base[:, None, None]).nanmean(0)
        table = torch.stack([self.mean(), self.values[:n].nanmean(0), changes], dim=-1)
        lines = [
            (row, place, column, *table[r, place].tolist())
            for r, row in enumerate(self.rows)
            for place, column in enumerate(self.columns)
        ]
        names = ["row", "column", "label", "estimate", "estimate, checked pairs", "exact, checked pairs"]
        return pd.DataFrame(lines, columns=names)
