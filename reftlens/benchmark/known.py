"""One line of the table of known answers: what was planted, what was found, and how far apart they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import pandas as pd


@final
@dataclass(frozen=True)
class Known:
    """A truth that was planted, and what the analyses made of it."""

    group: str
    """Which of the known answers this belongs to."""
    planted: str
    found: str
    error: float
    """Distance from the truth, in `unit`; 0 is exact."""
    allowed: float
    """Largest error that counts as found."""
    unit: str

    @property
    def holds(self) -> bool:
        """Whether the error is within what is allowed; a miss is printed like a hit."""
        return self.error <= self.allowed


def known_to_dataframe(rows: Sequence[Known]) -> pd.DataFrame:
    """One line for each known answer."""
    return pd.DataFrame([{**vars(row), "holds": row.holds} for row in rows])
