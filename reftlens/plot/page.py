"""Makes one self-contained HTML page: findings first, then maps, strips, curves, pictures and tables.

The page stands by itself. One constant script, which its content security policy names by hash,
lets a reader explore it; everything else is forbidden, requests too. Strings come from prompts,
tokens and files, so all of them are escaped.
"""

from __future__ import annotations

import base64
import hashlib
import math
import numbers
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, final, get_args

import pandas as pd
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from reftlens.plot.cells import Cells, Mapped
from reftlens.plot.interactive import Interactive, as_json, dose, shades, strip, token_map
from reftlens.plot.plane import plane
from reftlens.plot.wiring import wiring
from reftlens.results import Dose, EditGraph, EditSize, Finding, Projection, TokenMap
from reftlens.results.words import COLUMNS, GLOSSARY
from reftlens.text import harmless

_DOTS_PER_CSS_PIXEL = 150 / 96
"""Figures are saved at 150 dots per inch; an inch of CSS has 96 pixels."""

_FOLDED = 16
"""Tables with more lines are folded away under their caption."""


_ABOUT = {word.label: word.explanation for word in COLUMNS.values()}
"""What the columns of a report's tables are, by their labels."""


@final
@dataclass(frozen=True)
class Picture:
    """A figure that is already drawn."""

    name: str
    """Its anchor is made from it."""
    png: bytes
    caption: str
    alt: str = ""
    """What it shows, with the main numbers, for those who cannot see it; the caption if empty."""

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
    strips: tuple[tuple[str, EditSize | TokenMap], ...] = ()
    """Captions and results whose tokens are shown as a text, shaded."""
    maps: tuple[tuple[str, Mapped | Cells], ...] = ()
    """Captions and maps over tokens, heads, components or trained cells, which are shown as tables."""
    doses: tuple[tuple[str, Dose], ...] = ()
    """Captions and dose curves."""
    planes: tuple[tuple[str, Projection], ...] = ()
    """Captions and tokens along two write directions, which are shown as drawings."""
    graphs: tuple[tuple[str, EditGraph], ...] = ()
    """Captions and graphs of edits, which are shown as drawings, each with its control."""
    name: str = ""
    """By which findings lead here; the heading if empty."""
    open: bool = False
    """Whether it is unfolded on a page that opens with findings; without findings, all sections are."""

    def __post_init__(self) -> None:
        for kind, elements, classes in (
            ("strips", self.strips, (EditSize, TokenMap)),
            ("maps", self.maps, (*get_args(Mapped), Cells)),
            ("doses", self.doses, (Dose,)),
            ("planes", self.planes, (Projection,)),
            ("graphs", self.graphs, (EditGraph,)),
        ):
            for _, result in elements:
                if not isinstance(result, classes):
                    wanted = " or ".join(one.__name__ for one in classes)
                    raise TypeError(f"{kind} must hold captions and results ({wanted}), got {type(result).__name__}")


@final
@dataclass(frozen=True, eq=False)
class Report:
    """A page."""

    title: str
    lead: str
    """What the page is about, in one paragraph."""
    sections: tuple[Section, ...]
    settings: Mapping[str, object]
    """How to get this page again: versions, seeds, model, command."""
    findings: tuple[Finding, ...] = ()
    """With which the page opens."""


@final
@dataclass(frozen=True)
class _Cell:
    text: str
    is_number: bool
    key: str | None = None
    """By which a column is sorted; empty where a number is missing, None where the text is the key."""
    about: str = ""
    """What the column is, in its head."""


def render(report: Report) -> str:
    """The report as one HTML document, which can be encoded as UTF-8 whatever its strings hold."""
    # StrictUndefined: a misspelt name in the template is an error, not an empty place.
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    style, script = _style(), _source("page.js")
    anchor = _Anchors()
    anchors = [anchor(section.name or section.heading) for section in report.sections]
    named = [(key, place) for section, place in zip(report.sections, anchors, strict=True) for key in _keys(section)]
    live, numbers = _live(report)
    # Anchors are handed out before the contents that link to them.
    page = environment.from_string(_source("page.html.j2")).render(
        report=report,
        anchor=anchor,
        anchors=anchors,
        # Reversed, because the last one of a name stays: the first section.
        places=dict(reversed(named)),
        settings_place=anchor("settings"),
        live=live,
        terms=_Terms(anchor),
        cells=_cells,
        folded=_FOLDED,
        numbers=as_json(numbers),
        style=Markup(style),
        script=Markup(script),
        # Hashes, not 'unsafe-inline': a text that slipped through the escaping would still not run.
        policy=f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; img-src data:; "
        "base-uri 'none'; form-action 'none'",
    )
    return harmless(page)


def _source(name: str) -> str:
    return files("reftlens.plot").joinpath(name).read_text(encoding="utf-8")


def _style() -> str:
    return f"{_source('page.css')}{shades()}\n"


def _hash(text: str) -> str:
    """As a content security policy names what stands between two tags."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode('ascii')}'"


def _keys(section: Section) -> list[str]:
    """Names by which a finding may call a section."""
    return [name for name in (section.name, section.heading) if name]


def _live(report: Report) -> tuple[list[list[tuple[str, Markup]]], list[Any]]:
    """Captions and HTML of what can be explored, by section, and the numbers of all of it."""
    numbers: list[Any] = []
    shown: list[list[tuple[str, Markup]]] = []

    def add(caption: str, element: Interactive) -> tuple[str, Markup]:
        numbers.append(element.numbers)
        return caption, element.html

    for section in report.sections:
        found = [add(caption, token_map(result, len(numbers))) for caption, result in section.maps]
        found += [add(caption, dose(result, len(numbers))) for caption, result in section.doses]
        found += [add(caption, strip(result)) for caption, result in section.strips]
        found += [(caption, plane(result)) for caption, result in section.planes]
        for caption, result in section.graphs:
            found += [
                (caption, wiring(result, result.edit)),
                (f"{caption}: the control", wiring(result, result.control)),
            ]
        shown.append(found)
    return shown, numbers


class _Terms:
    """Links the terms of the glossary in a text, each once in a section, and remembers which were used."""

    def __init__(self, anchor: _Anchors) -> None:
        self._places = {term: anchor(f"term {term}") for term in GLOSSARY}
        self._used: set[str] = set()
        self._seen: set[str] = set()
        # Longer terms first, so that "indirect effect" is not found as "effect". A bare "p" is a
        # term only before its number.
        words = "|".join(re.escape(term) for term in sorted(GLOSSARY, key=len, reverse=True) if term != "p")
        self._pattern = re.compile(rf"\b(?:({words})s?|(p)(?= [=<]))\b", flags=re.IGNORECASE)
        self._lower = {term.lower(): term for term in GLOSSARY}

    def start(self) -> str:
        """Begins a section, in which each term is linked again."""
        self._seen.clear()
        return ""

    def __call__(self, text: str) -> Markup:
        parts, end = [], 0
        for found in self._pattern.finditer(text):
            term = self._lower[(found[1] or found[2]).lower()]
            if term in self._seen:
                continue
            self._seen.add(term)
            self._used.add(term)
            link = Markup('<a class="term" href="#{}" title="{}">{}</a>')
            parts += [
                Markup.escape(text[end : found.start()]),
                link.format(self._places[term], GLOSSARY[term], found[0]),
            ]
            end = found.end()
        return Markup("").join([*parts, Markup.escape(text[end:])])

    @property
    def used(self) -> list[tuple[str, str, str]]:
        """Term, anchor and meaning, in the order of the glossary."""
        return [(term, self._places[term], meaning) for term, meaning in GLOSSARY.items() if term in self._used]


class _Anchors:
    """Names for link targets: readable, of plain letters, each given once."""

    def __init__(self) -> None:
        # Ids that the template and the script use themselves.
        self._given = {"data", "glossary", "tip"}

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
        _Cell(title, bool(cells) and all(cell.is_number for cell in cells), about=_ABOUT.get(title, ""))
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
        return _Cell("\N{EN DASH}", is_number=True, key="")
    if isinstance(value, numbers.Integral):
        return _Cell(str(int(value)).replace("-", "\N{MINUS SIGN}"), is_number=True, key=str(int(value)))
    if _is_real(value):
        return _Cell(_real(float(value), decimals), is_number=True, key=_key(float(value)))
    return _Cell(str(value), is_number=False)


def _key(value: float) -> str:
    """As the script reads a number, which knows infinity by another name."""
    return f"{value:.9g}" if math.isfinite(value) else "-Infinity" if value < 0 else "Infinity"


def _is_real(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, (bool, numbers.Integral))


def _real(value: float, decimals: int) -> str:
    """Fixed decimals; in powers of ten where these would show nothing, or noughts that were not measured.

    >>> _real(-0.5, 3), _real(0.00002, 3), _real(0.0, 3)
    ('−0.500', '2.0e−05', '0.000')
    """
    lost = value != 0 and math.isfinite(value) and (abs(value) < 0.5 * 10.0**-decimals or abs(value) >= 1e9)
    # + 0.0 turns -0.0 into 0.0.
    return (f"{value:.1e}" if lost else f"{value + 0.0:.{decimals}f}").replace("-", "\N{MINUS SIGN}")
