"""Base classes of results: frozen dataclasses with a one-line summary and a table."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_type_hints

import pandas as pd

import reftlens
from reftlens.display import as_html
from reftlens.results.saving import RESULT, read, write
from reftlens.text import plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

R = TypeVar("R", bound="Result")


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

    def save(self, path: str | Path) -> Path:
        """Writes JSON and safetensors to a folder, completely or not at all. `rl.results.load` reads it.

        Args:
            path: the folder; replaced if it is a saved result.

        Returns:
            The folder.

        Raises:
            TypeError: If a field could not be loaded again. The message names it.
            ValueError: If the folder holds anything else.
            OSError: If it cannot be written.
        """
        return write(self, Path(path), RESULT, known_classes())

    @classmethod
    def load(cls: type[R], path: str | Path) -> R:
        """Reads a result of this class that `save` wrote; `Result.load` reads any. Lists come back as tuples.

        Args:
            path: the folder.

        Raises:
            ValueError: If it is not a saved result, is damaged, or holds another class.
            OSError: If it cannot be opened.
        """
        return read(Path(path), cls, RESULT, known_classes())

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


def known_classes() -> dict[str, type[Any]]:
    """Returns the dataclasses that a file may name: each imported class of results, and those in the types of fields.

    Among classes of one name, those of this package come first, then the newest.
    """
    found: dict[str, type[Any]] = {}
    seen = set()
    left = list(_below(Result))
    for cls in left:  # grows on the way
        if cls in seen:
            continue
        seen.add(cls)
        left += _in_fields(cls)
        before = found.get(cls.__name__)
        if before is None or not before.__module__.startswith("reftlens."):
            found[cls.__name__] = cls
    return found


def _below(cls: type[Any]) -> Iterator[type[Any]]:
    for child in cls.__subclasses__():
        if is_dataclass(child):
            yield child
        yield from _below(child)


def _in_fields(cls: type[Any]) -> list[type[Any]]:
    """The dataclasses in the types of a dataclass's fields."""
    try:
        # Annotations are texts here (`from __future__ import annotations`).
        hints = get_type_hints(cls)
    except (NameError, TypeError, AttributeError, SyntaxError):  # such as names inside a function
        return []
    return [part for field in fields(cls) for part in _parts(hints[field.name])]


def _parts(hint: Any) -> Iterator[type[Any]]:
    if isinstance(hint, type) and is_dataclass(hint):
        yield hint
    for part in get_args(hint):
        yield from _parts(part)
