"""Picture of a table: for results that are a few numbers or texts, and need no figure of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from reftlens.plot.canvas import GREY, INK, SMALL, house_style, listed, number, sheet, text_width
from reftlens.plot.labels import drawn, drawn_token
from reftlens.results import Result
from reftlens.text import plain

_WIDEST = 11.0
"""Inches. Columns that do not fit are left out."""
_MOST_LINES = 20
_LINE, _GAP = 0.2, 0.18
"""Inches from line to line, and between two columns."""


def table(results: Sequence[Result] | Result) -> Figure:
    """Draws the table of one result or several, with its headline.

    Args:
        results: of any class; several stand one below the other.
    """
    found = listed(results, Result)  # type: ignore[type-abstract]  # only asked whether it is one
    frame = pd.concat([result.to_dataframe() for result in found], ignore_index=True)
    columns: list[tuple[float, list[str]]] = []
    width = 0.2
    for place, name in enumerate(frame.columns):
        texts = [drawn_token(str(name), longest=40), *map(_text, frame.iloc[:_MOST_LINES, place])]
        wide = max(map(text_width, texts)) + _GAP
        # The first column is always drawn, however wide.
        if columns and width + wide > _WIDEST:
            break
        columns.append((width - 0.1, texts))
        width += wide
    lines = min(len(frame), _MOST_LINES)
    with house_style():
        height = _LINE * (lines + 1) + 0.1
        figure = sheet(max(6.5, width), height, title=_title(found), subtitle=_about(found, frame, lines, len(columns)))
        axes = figure.subplots()
        axes.set(xlim=(0, max(6.5, width)), ylim=(height, 0))
        axes.set_axis_off()
        axes.axhline(_LINE + 0.02, color=GREY, linewidth=0.6)
        for left, texts in columns:
            for line, text in enumerate(texts):
                weight = "normal" if line else "bold"
                axes.text(left, _LINE * line + 0.1, text, size=SMALL, color=INK, va="center", weight=weight)
    return figure


def _title(found: Sequence[Result]) -> str:
    kinds = dict.fromkeys(type(result).__name__ for result in found)
    return ", ".join(kinds) + (f": {len(found)} results" if len(found) > 1 else "")


def _about(found: Sequence[Result], frame: pd.DataFrame, lines: int, columns: int) -> str:
    about = drawn(plain(found[0].headline(), longest=300)) if len(found) == 1 else ""
    whole = (lines, columns) == frame.shape
    cut = "" if whole else f"{lines} of {len(frame)} lines and {columns} of {frame.shape[1]} columns"
    return "; ".join(part for part in (about, cut) if part)


def _text(value: Any) -> str:
    if isinstance(value, float):
        return "\N{EN DASH}" if value != value else number(value, 3)
    return drawn_token(str(value), longest=40) if value is not None else "\N{EN DASH}"
