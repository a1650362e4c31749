"""Makes one self-contained HTML page with pictures, tables and token strips.

The page does not run scripts or send requests: pictures are data URIs, and its content security policy forbids the rest.
Strings come from prompts, tokens and files, so all of them are escaped.
"""

from __future__ import annotations

import base64
import math
import numbers
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, final

import pandas as pd
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from reftlens.text import harmless

_DOTS_PER_CSS_PIXEL = 150 / 96
"""Figures are saved at 150 dots per inch; an inch of CSS has 96 pixels."""

_FOLDED = 16
"""Tables with more lines are folded away under their caption."""


@final
@dataclass(frozen=True)
class Picture:
    """A figure that is already drawn."""

    name: str
    """What it shows, for those who cannot see it; its anchor is made from it."""
    png: bytes
    caption: str

    def __post_init__(self) -> None:
        if self.png[:8] != b"\x89PNG\r\n\x1a\n" or len(self.png) < 24:
            raise ValueError(f"png must be the bytes of a PNG file (see plot.png), got {self.png[:8]!r}...")

    @property
    def uri(self) -> str:
        return "data:image/png;base64," + base64.b64encode(self.png).decode("ascii")

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in CSS pixels, from the file's header, so that the page does not jump while it loads."""
        dots = (int.from_bytes(self.png[16:20], "big"), int.from_bytes(self.png[20:24], "big"))
        return round(dots[0] / _DOTS_PER_CSS_PIXEL), round(dots[1] / _DOTS_PER_CSS_PIXEL)


@final
@dataclass(frozen=True, eq=False)
class Section:
    """A heading with what belongs under it, in this order."""

    heading: str
    paragraphs: tuple[str, ...] = ()
    pictures: tuple[Picture, ...] = ()
    tables: tuple[tuple[str, pd.DataFrame], ...] = ()
    """Captions and frames."""
    strips: tuple[tuple[str, Markup], ...] = ()
    """Captions and what `plot.token_strip` gives."""


@final
@dataclass(frozen=True, eq=False)
class Report:
    """A page."""

    title: str
    lead: str
    """The answer in one paragraph."""
    sections: tuple[Section, ...]
    settings: Mapping[str, object]
    """How to get this page again: versions, seeds, model, command."""


@final
@dataclass(frozen=True)
class _Cell:
    text: str
    is_number: bool


def render(report: Report) -> str:
    """The report as one HTML document, which can be encoded as UTF-8 whatever its strings hold."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.globals["cells"] = _cells
    environment.globals["folded"] = _FOLDED
    environment.globals["anchor"] = _Anchors()
    source = files("reftlens.plot").joinpath("page.html.j2").read_text(encoding="utf-8")
    page = environment.from_string(source).render(report=report)
    return harmless(page)


class _Anchors:
    """Names for link targets: readable, of plain letters, each given once."""

    def __init__(self) -> None:
        self._given: set[str] = set()

    def __call__(self, text: str) -> str:
        slug = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:60] or "part"
        place, repeats = slug, 1
        while place in self._given:
            repeats += 1
            place = f"{slug}-{repeats}"
        self._given.add(place)
        return place


def _cells(frame: pd.DataFrame) -> tuple[list[_Cell], list[list[_Cell]]]:
    """Header and rows as text; an index that says something becomes the first columns."""
    columns: list[tuple[str, list[Any]]] = []
    if not isinstance(frame.index, pd.RangeIndex):
        for level in range(frame.index.nlevels):
            name = frame.index.names[level]
            columns.append(("" if name is None else str(name), list(frame.index.get_level_values(level))))
    for place, name in enumerate(frame.columns):
        title = " / ".join(map(str, name)) if isinstance(name, tuple) else str(name)
        columns.append((title, list(frame.iloc[:, place])))
    formatted = [_column(values) for _, values in columns]
    header = [
        _Cell(title, is_number=bool(cells) and all(cell.is_number for cell in cells))
        for (title, _), cells in zip(columns, formatted, strict=True)
    ]
    return header, [list(row) for row in zip(*formatted, strict=True)]


def _column(values: Sequence[Any]) -> list[_Cell]:
    """Numbers of one column share their decimals, enough for four digits of the largest."""
    reals = [abs(float(v)) for v in values if _is_real(v) and math.isfinite(float(v)) and v != 0]
    decimals = min(3, max(0, 3 - math.floor(math.log10(max(reals))))) if reals else 2
    return [_cell(value, decimals) for value in values]


def _cell(value: Any, decimals: int) -> _Cell:
    if isinstance(value, str):
        return _Cell(value, is_number=False)
    # numpy's bool is no bool to Python, but prints as one.
    if str(value) in ("True", "False"):
        return _Cell("yes" if value else "no", is_number=False)
    if value is None or value is pd.NA or value is pd.NaT or (_is_real(value) and math.isnan(float(value))):
        return _Cell("\N{EN DASH}", is_number=True)
    if isinstance(value, numbers.Integral):
        return _Cell(str(int(value)).replace("-", "\N{MINUS SIGN}"), is_number=True)
    if _is_real(value):
        return _Cell(_real(float(value), decimals), is_number=True)
    return _Cell(str(value), is_number=False)


def _is_real(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, (bool, numbers.Integral))


def _real(value: float, decimals: int) -> str:
    """Fixed decimals; in powers of ten where these would show nothing, or noughts that were not measured.

    >>> _real(-0.5, 3), _real(0.00002, 3), _real(0.0, 3)
    ('−0.500', '2.0e−05', '0.000')
    """
    lost = value != 0 and math.isfinite(value) and (abs(value) < 0.5 * 10.0**-decimals or abs(value) >= 1e9)
    return (f"{value:.1e}" if lost else f"{value + 0.0:.{decimals}f}").replace("-", "\N{MINUS SIGN}")
