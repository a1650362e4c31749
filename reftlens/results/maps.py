"""A quantity at each site and token of a text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import pandas as pd
from jaxtyping import Bool, Float
from torch import Tensor

from reftlens.results.base import Result


@final
@dataclass(frozen=True, eq=False, repr=False)
class TokenMap(Result):
    """A quantity for each row (a layer or a site) and each token position."""

    values: Float[Tensor, "rows pos"]
    """NaN where there is nothing to measure, such as a token that a site does not edit."""
    control: Float[Tensor, "rows pos"] | None
    """The same quantity under a control that must show nothing; None where the quantity is a plain size."""
    rows: tuple[str, ...]
    """Names of layers or sites, first layer first."""
    tokens: tuple[str, ...]
    """The tokens of one prompt; with several prompts, of the first."""
    starred: tuple[bool, ...]
    """Whether a position belongs to the subject of the prompt."""
    quantity: str
    """What the values are, with their unit."""
    control_name: str
    """What the control is; empty without one."""
    n_prompts: int
    """Prompts averaged over."""

    def headline(self) -> str:
        control = f"; control: {self.control_name}" if self.control is not None else ""
        return (
            f"{self.quantity}, {len(self.rows)} rows x {len(self.tokens)} tokens, {self.n_prompts} prompts, "
            f"{_reach(self.values)}{control}"
        )

    def to_dataframe(self) -> pd.DataFrame:
        """One line for each cell: row, position, token, subject, value, control."""
        lines = []
        for r, row in enumerate(self.rows):
            for p, token in enumerate(self.tokens):
                control = float(self.control[r, p]) if self.control is not None else float("nan")
                lines.append((row, p, token, self.starred[p], float(self.values[r, p]), control))
        return pd.DataFrame(lines, columns=["row", "position", "token", "subject", "value", "control"])


@final
@dataclass(frozen=True, eq=False, repr=False)
class EditSize(Result):
    """How large an edit is at each token of one text, against the activation it changes."""

    relative: Float[Tensor, "rows pos"]
    """|delta| / |h|; 0 at tokens that the site does not edit."""
    edited: Bool[Tensor, "rows pos"]
    rows: tuple[str, ...]
    tokens: tuple[str, ...]
    starred: tuple[bool, ...]

    def headline(self) -> str:
        edited = self.relative[self.edited]
        return (
            f"{len(edited)} edited tokens at {len(self.rows)} sites, text of {len(self.tokens)} tokens; |delta| / |h| "
            f"{_reach(edited)}"
        )

    def to_dataframe(self) -> pd.DataFrame:
        """One line for each site and token."""
        lines = [
            (row, p, token, self.starred[p], bool(self.edited[r, p]), float(self.relative[r, p]))
            for r, row in enumerate(self.rows)
            for p, token in enumerate(self.tokens)
        ]
        return pd.DataFrame(lines, columns=["site", "position", "token", "subject", "edited", "relative_size"])


def _reach(values: Float[Tensor, "..."]) -> str:
    found = values[values.isfinite()]
    return f"{float(found.min()):.3g} to {float(found.max()):.3g}" if len(found) else "no values"
