"""An edit by its weights alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from reftlens.results.base import Result


@final
@dataclass(frozen=True, eq=False, repr=False)
class EditProfile(Result):
    """An edit h + A h + c by its weights alone, whatever activations it meets; the same for every parametrisation."""

    rows: tuple[str, ...]
    """Names of the sites, in the order of the edit."""
    gains: tuple[Float[Tensor, " _k"] | None, ...]
    """Singular values of A at each site, largest first; none for a constant push, None where the edit is not affine."""
    push: Float[Tensor, " rows"]
    """Length of c at each site, in the units of the activation; NaN where the edit is not affine."""

    def headline(self) -> str:
        pushes = self.push[self.push.isfinite()]
        longest = f"; longest constant push {float(pushes.max()):.3g}" if len(pushes) else ""
        return f"{len(self.rows)} sites by their weights alone{longest}"

    def to_dataframe(self) -> pd.DataFrame:
        """One line for each site: the number of gains, the largest one, the length of the constant push."""
        counts = [float("nan") if gain is None else len(gain) for gain in self.gains]
        largest = [float("nan") if gain is None or not len(gain) else float(gain[0]) for gain in self.gains]
        return pd.DataFrame({"row": self.rows, "gains": counts, "largest_gain": largest, "push": self.push.numpy()})
