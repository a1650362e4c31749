"""Base classes of results: frozen dataclasses with a one-line summary and a table."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import pandas as pd

import reftlens
from reftlens.display import as_html
from reftlens.text import plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Result(ABC):
    """Result of an analysis. Subclasses are frozen dataclasses with `repr=False`, which keeps the `repr` defined here."""

    @abstractmethod
    def headline(self) -> str:
        """One line with the kind of result, its main numbers and their control."""

    @abstractmethod
    def to_dataframe(self) -> pd.DataFrame:
        """Returns the result as a table."""

    def plot(self, **options: Any) -> Figure:
        """Draws the result, with the function of `rl.plot` for its class.

        Args:
            options: of that function, such as `title`.
        """
        return reftlens.plot.draw(self, **options)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({plain(self.headline(), longest=300)})"

    def _repr_html_(self) -> str:
        return as_html(repr(self), self.to_dataframe)


class SiteResult(Result):
    """Result for one site of an edit."""

    hook_name: str
    site: str

    @property
    def where(self) -> str:
        """The site's short name; the hook's name for a result without an edit, or of an earlier version."""
        return self.site or self.hook_name
