"""What every result is: a frozen value that shows itself and becomes a table."""

from __future__ import annotations

from abc import ABC, abstractmethod

import pandas as pd

from reftlens.display import as_html
from reftlens.text import plain


class Result(ABC):
    """What an analysis found. Subclasses are frozen dataclasses with `repr=False`, which keep the `repr` from here."""

    @abstractmethod
    def headline(self) -> str:
        """What this is and its main numbers with what they are compared with, in one line."""

    @abstractmethod
    def to_dataframe(self) -> pd.DataFrame:
        """All of it that has the form of a table."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({plain(self.headline(), longest=300)})"

    def _repr_html_(self) -> str:
        return as_html(repr(self), self.to_dataframe)


class SiteResult(Result):
    """What was found at one site of an edit."""

    hook_name: str
    site: str

    @property
    def where(self) -> str:
        """The site's short name; the hook's where it was asked about without an edit, or by an earlier version."""
        return self.site or self.hook_name
