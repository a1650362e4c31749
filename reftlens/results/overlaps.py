"""How close two subspaces are, beside what chance gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from reftlens.results.base import Result


@final
@dataclass(frozen=True, eq=False, repr=False)
class Overlap(Result):
    """Principal angles between two subspaces of one activation space."""

    first: str
    second: str
    """Names of the two, for a reader."""
    angles: Float[Tensor, " angle"]
    """Principal angles in degrees, smallest first: 0 is a shared direction, 90 a perpendicular one."""
    score: float
    """Mean squared cosine of the angles: 1 if the smaller subspace lies inside the larger, 0 if they are perpendicular."""
    null_scores: dict[str, Float[Tensor, " draw"]]
    """Null -> scores of random subspaces of the first one's dimension against the second."""
    null_angles: dict[str, Float[Tensor, " angle"]]
    """Null -> mean angles of these draws, in degrees."""

    def p(self, null: str) -> float:
        """Part of the null's draws that overlap at least as much, (1 + count) / (1 + draws).

        Raises:
            KeyError: for a null that was not drawn.
        """
        draws = self.null_scores[null]
        return (1 + int((draws >= self.score).sum())) / (1 + len(draws))

    def headline(self) -> str:
        nulls = ", ".join(
            f"{null} {float(draws.mean()):.3f} (p = {self.p(null):.2g})" for null, draws in self.null_scores.items()
        )
        return f"{self.first} with {self.second}: {self.score:.3f}; {nulls}"

    def to_dataframe(self) -> pd.DataFrame:
        """One line for each null: the score and the mean angle, measured and under the null, and p."""
        lines = [
            {
                "first": self.first,
                "second": self.second,
                "score": self.score,
                "mean angle": float(self.angles.mean()),
                "null": null,
                "null score": float(draws.mean()),
                "null mean angle": float(self.null_angles[null].mean()),
                "p": self.p(null),
            }
            for null, draws in self.null_scores.items()
        ]
        return pd.DataFrame(lines)
