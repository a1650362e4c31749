"""How far an edit's change reaches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import pandas as pd

from reftlens.results.base import Result
from reftlens.results.maps import TokenMap


@final
@dataclass(frozen=True, eq=False, repr=False)
class Spread(Result):
    """The edited run beside the base run, at each layer and position."""

    distance: TokenMap
    """|edited - base| / |base| of the residual stream."""
    mind: TokenMap
    """The part of prompts where the logit lens names another token than in the base run."""

    def headline(self) -> str:
        return f"{self.distance.headline()}; and {self.mind.headline()}"

    def to_dataframe(self) -> pd.DataFrame:
        """One line for each cell, both quantities side by side."""
        return self.distance.to_dataframe().merge(
            self.mind.to_dataframe(),
            on=["row", "position", "token", "subject"],
            suffixes=(" of distance", " of mind"),
        )
