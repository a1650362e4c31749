"""Where in a text a direction is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import pandas as pd

from reftlens.results.base import Result


@final
@dataclass(frozen=True, repr=False)
class Context(Result):
    """One token in its text, and how strongly a direction is read there."""

    tokens: tuple[str, ...]
    position: int
    """Of the token that is read."""
    z: float
    """Reading in standard deviations from its mean over all edited tokens."""

    def marked(self, *, before: int = 12, after: int = 4) -> str:
        """The token in double brackets, with some of its neighbours."""
        start = max(0, self.position - before)
        left, right = (
            "".join(self.tokens[start : self.position]),
            "".join(self.tokens[self.position + 1 : self.position + 1 + after]),
        )
        return f"{left}[[{self.tokens[self.position]}]]{right}"

    def headline(self) -> str:
        return f"{self.marked()!r}, z = {self.z:.2f}"

    def to_dataframe(self) -> pd.DataFrame:
        """One line."""
        return pd.DataFrame([{"context": self.marked(), "position": self.position, "z": self.z}])


@final
@dataclass(frozen=True, repr=False)
class ReadContexts(Result):
    """The tokens of a dataset at which an edit moves furthest along one write direction."""

    hook_name: str
    direction: int
    contexts: tuple[Context, ...]
    """Largest first. A direction that is a constant push reads nothing and has none."""
    null_high: float
    """95th percentile, over random linear readings of the same activations, of their largest z."""
    n_tokens: int
    n_null: int
    """Random readings drawn."""

    def headline(self) -> str:
        largest = f"{max(context.z for context in self.contexts):.2f}" if self.contexts else "none"
        return (
            f"{self.hook_name}, direction {self.direction}: {len(self.contexts)} of {self.n_tokens} tokens, largest z "
            f"{largest} (random readings {self.null_high:.2f})"
        )

    def to_dataframe(self) -> pd.DataFrame:
        """One line for each context."""
        lines = [
            (self.hook_name, self.direction, context.marked(), context.z, self.null_high, context.z > self.null_high)
            for context in self.contexts
        ]
        columns = ["hook_name", "direction", "context", "z", "random readings reach", "beyond_null"]
        return pd.DataFrame(lines, columns=columns)
