"""What a method says about one vector of an edit: a write direction, a read direction, or the change of real tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import pandas as pd

from reftlens.results.base import SiteResult


@final
@dataclass(frozen=True, repr=False)
class Meaning(SiteResult):
    """What one method says about one vector of an edit, with what it says about random vectors in its place."""

    hook_name: str
    looked_at: str
    """"write 0" and "read 0" for directions of `decompose`; "change" for the change at real tokens, averaged over prompts."""
    method: str
    said: tuple[tuple[str, float, float, float, float], ...]
    """Name (a token, a feature or a context), reading, score, p and corrected p, largest reading
    first. The score of a token is its reading over the root mean square that the same token reaches
    over all sets; for other names it is the reading. The last token is the one with the furthest
    score, if it has none of the largest readings. p is for the furthest score of all names. The
    corrected p is for the furthest of all names of all vectors and methods that were looked at
    together.
    """
    unit: str
    """Of the readings."""
    chance: float
    """In 95% of sets of random vectors, one for each look, no score of any look is beyond its own value of this."""
    n_null: int
    """Sets of random vectors."""
    n_names: int
    """Names that this method compared."""
    n_looks: int
    """Pairs of a vector and a method that were looked at together."""
    controls: tuple[tuple[str, float], ...] = ()
    """Further numbers of the method, by name."""
    states: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """What the method says about the whole activation, without and with the change."""
    site: str = ""
    """The site's short name; empty where it was asked about by its hook."""

    @property
    def p(self) -> float:
        """The corrected p of the furthest score; 1 if the method says nothing."""
        return min((p for *_, p in self.said), default=1.0)

    def headline(self) -> str:
        few = ", ".join(f"{name!r} {reading:+.2f}" for name, reading, *_ in self.said[:3]) or "nothing"
        return (
            f"{self.where}, {self.looked_at}, {self.method}: {few} ({self.unit}); p {self.p:.2g} over {self.n_names} names x "
            f"{self.n_looks} looks"
        )

    def to_dataframe(self) -> pd.DataFrame:
        """Returns one row per name: its score, p among this method's names, and p among all looks."""
        looks = f"p of {self.n_looks} looks"
        lines = [(self.where, self.looked_at, self.method, *line) for line in self.said]
        table = pd.DataFrame(
            lines, columns=["site", "looked_at", "method", "name", "reading", "far", "p of names", looks]
        )
        table.insert(5, "unit", self.unit)
        table["chance"] = self.chance
        return table

    def beside_to_dataframe(self) -> pd.DataFrame:
        """Returns one row per control, and per activation that the method read."""
        lines = [(self.where, self.looked_at, self.method, name, f"{value:.3g}") for name, value in self.controls]
        lines += [(self.where, self.looked_at, self.method, name, ", ".join(said)) for name, said in self.states]
        return pd.DataFrame(lines, columns=["site", "looked_at", "method", "beside", "said there"])
