"""First-order estimates of a patching map, beside what they estimate."""

from __future__ import annotations

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

    def headline(self) -> str:
        found = self.correlation[self.correlation.isfinite()].tolist()
        shown = f"{min(found):.2f} to {max(found):.2f}" if found else "undefined"
        return (
            f"{len(self.rows)} x {len(self.columns)} cells, {len(self.values)} pairs; correlation with the exact map {shown} "
            f"in {len(self.correlation)} pairs"
        )

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
