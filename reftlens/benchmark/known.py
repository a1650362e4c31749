"""One row of the table of known answers: the planted truth, the result, and the distance between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import pandas as pd


@final
@dataclass(frozen=True)
class Known:
    """A planted truth, and the result of the analysis."""

    group: str
    """Group of known answers that this belongs to."""
    planted: str
    found: str
    error: float
    """Distance from the truth, in `unit`; 0 is exact."""
    allowed: float
    """Largest error that counts as found."""
    unit: str

    @property
    def holds(self) -> bool:
        """Whether the error is within the allowed one. Misses are printed as well as hits."""
        return self.error <= self.allowed


def known_to_dataframe(rows: Sequence[Known]) -> pd.DataFrame:
    """Returns one row per known answer."""
    return pd.DataFrame([{**vars(row), "holds": row.holds} for row in rows])
