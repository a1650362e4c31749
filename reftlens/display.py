"""Displays objects: one line of text, and in a notebook that line above a small table. Displays progress.

Names and tokens are untrusted, so all of them are escaped. Long ones are cut, with a mark where
they are cut. The surrounding page sets colours and fonts, so the table is readable in light and
dark notebooks.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import fields
from typing import TYPE_CHECKING, Any, final

import pandas as pd
from markupsafe import Markup, escape
from tqdm.asyncio import tqdm_asyncio
from tqdm.auto import tqdm

from reftlens.text import plain

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

MOST_LINES, MOST_COLUMNS = 20, 16
"""Maximum size of a table. The middle is left out, and a line below gives the full size."""
_LONGEST = 120
"""Maximum number of characters in a cell or headline."""


def progress_bar(iterable: Iterable[Any] | None = None, *, shown: bool, **options: Any) -> tqdm[Any]:
    """Makes a progress bar. In a log file or a pipe, it is a line of text every few seconds.

    Args:
        iterable: what to go through; None if the caller counts.
        shown: False shows nothing.
        options: of tqdm: `desc`, `unit`, `total`, `initial`.
    """
    # In a notebook, tqdm draws a widget, although stderr is no terminal there.
    if tqdm is tqdm_asyncio and shown and not sys.stderr.isatty():
        options = {"mininterval": _EVERY, "file": _Lines(sys.stderr), "bar_format": _LINE, **options}
    return tqdm(iterable, disable=not shown, **options)


_EVERY = 5.0
"""Seconds between two lines."""
_LINE = "{desc}: {n_fmt} of {total_fmt}, {elapsed} elapsed, {remaining} left{postfix}"


@final
class _Lines:
    """A file in which each refresh of a bar, which tqdm writes over the last one, is a line."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._last = ""

    def write(self, text: str) -> None:
        line = text.strip()
        if line and line != self._last:
            self._last = line
            self._file.write(f"{line}\n")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def as_html(headline: str, table: Callable[[], pd.DataFrame]) -> str:
    """Renders a headline above the first and last rows of a table.

    Args:
        headline: describes the object; its line breaks are kept.
        table: creates the table, such as `to_dataframe`; an empty table is left out.
    """
    head = _text(headline)
    # The Arrow strings of pandas 3 cannot hold lone surrogates (half a character).
    with pd.option_context("mode.string_storage", "python"):
        frame = table()
        return str(head) if frame.empty else str(head) + _table(frame)


def settings_as_html(settings: DataclassInstance) -> str:
    """Shows settings in a notebook: those that differ from their defaults in the headline, and all of them below.

    Args:
        settings: a dataclass whose fields have defaults.
    """
    lines = [(one.name, getattr(settings, one.name), one.default) for one in fields(settings)]
    chosen = ", ".join(f"{name}={value!r}" for name, value, default in lines if value != default)
    table = pd.DataFrame(
        [(name, repr(value), repr(default)) for name, value, default in lines], columns=["setting", "value", "default"]
    )
    return as_html(f"{type(settings).__name__}({chosen})", lambda: table)


def _text(lines: str) -> Markup:
    text = Markup("<br>").join(escape(plain(line, longest=4 * _LONGEST)) for line in lines.split("\n"))
    return Markup('<div style="margin:.3em 0;white-space:pre-wrap;overflow-wrap:anywhere">{}</div>').format(text)


# No allow-same-origin: the page has an origin of its own and cannot reach the notebook.
_FRAME = Markup(
    '<div style="margin:.3em 0">{line}</div>\n'
    "<style>[data-jp-theme-light='false'] .reftlens-page, .vscode-dark .reftlens-page {{ color-scheme: dark; }}</style>\n"
    '<iframe class="reftlens-page" sandbox="allow-scripts" srcdoc="{page}" '
    'style="box-sizing:border-box;width:100%;height:45em;border:1px solid #8888"></iframe>'
)
_UNTRUSTED = (
    "The page is in the frame below. Where there is no frame, the notebook is not trusted: "
    "choose Trust Notebook in the command palette."
)


def framed(headline: str, page: str) -> str:
    """Shows a whole page in a notebook: in a frame that isolates its styles, and whose script reaches nothing outside it.

    The page follows the notebook's theme where the frame says which that is. A notebook that is not
    trusted drops the frame; the lines above it stay.

    Args:
        headline: describes the object.
        page: a document that stands by itself.
    """
    return str(_text(headline) + _FRAME.format(line=_UNTRUSTED, page=page))


def _table(frame: pd.DataFrame) -> str:
    half = MOST_LINES // 2
    # Converts cells to text here, so that only the displayed ones are read.
    few = frame if len(frame) <= MOST_LINES else pd.concat([frame.iloc[:half], frame.iloc[-half:]])
    shown = pd.DataFrame(
        # By number, because two columns may have the same name.
        {place: [_cell(value) for value in few.iloc[:, place]] for place in range(min(few.shape[1], MOST_COLUMNS))}
    )
    shown.columns = pd.Index([_cell(name) for name in frame.columns[:MOST_COLUMNS]])
    if len(frame) > MOST_LINES:
        gap = pd.DataFrame([["…"] * shown.shape[1]], columns=shown.columns)
        shown = pd.concat([shown.iloc[:half], gap, shown.iloc[half:]])
    with pd.option_context("display.max_colwidth", None):
        table = shown.to_html(index=False, border=0, escape=True)
    cut = "" if shown.shape[1] == frame.shape[1] and len(frame) <= MOST_LINES else _size(frame, shown.shape[1])
    return f'<div style="overflow-x:auto">{table}</div>{cut}'


def _size(frame: pd.DataFrame, columns: int) -> str:
    more = f", the first {columns} of {frame.shape[1]} columns" if columns < frame.shape[1] else ""
    lines = f"{min(len(frame), MOST_LINES)} of {len(frame)} lines{more}; to_dataframe() has them all"
    return f'<div style="font-size:.9em;opacity:.8">{lines}</div>'


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "\N{EN DASH}" if value != value else f"{value:.4g}"
    text = plain(str(value), longest=_LONGEST)
    # HTML would drop the leading and trailing spaces that distinguish tokens.
    inner = text.strip(" ")
    before = len(text) - len(text.lstrip(" "))
    return "·" * before + inner + "·" * (len(text) - len(inner) - before)
