"""Plot of trained edits and tracing: both maps of the same cells, and a scatter plot of one against the other."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reftlens.plot.canvas import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PALE,
    SMALL,
    VERMILLION,
    colour_at,
    house_style,
    ink_on,
    label_rows,
    label_tokens,
    number,
    or_several,
    panel_title,
    sheet,
    text_width,
    token_room,
)
from reftlens.plot.labels import drawn, wrap
from reftlens.results import BesideTracing

Values = npt.NDArray[np.float64]

_CELL = 0.46
"""Inches a column is wide at least, so that its numbers fit."""
_SCATTER = 3.1
_MARKS = tuple(zip("osD^", (VERMILLION, BLUE, ORANGE, GREEN), strict=True))
"""Of the first columns; later ones share the last."""


@or_several(BesideTracing)
def beside_tracing(result: BesideTracing, *, title: str = "") -> Figure:
    """Draws the map of restored parts, the map of the edits' gains, and a scatter plot of both.

    The maps have different units, so each has its own scale, symmetrical around zero. Crosses are
    edits trained on shuffled answers in the same cells.

    Args:
        result: from `analysis.beside_tracing`.
        title: of the figure.
    """
    columns = [" ".join(drawn(name).split()) for name in result.reft.columns]
    n_rows, n_columns = len(result.reft.rows), len(columns)
    maps_width = max(2.2, _CELL * n_columns)
    width = 2 * maps_width + _SCATTER + 1.4
    room = maps_width / n_columns
    ticks = _over_lines(columns, room=room)
    below = token_room(columns, room=room) if ticks == columns else 0.14 * (1 + max(tick.count("\n") for tick in ticks))
    height = max(2.9, 0.25 * n_rows + 0.45 + below)
    with house_style():
        heading = title or "Where tracing finds it, and where an edit can learn it"
        figure = sheet(width, height, title=heading, subtitle=_subtitle(result))
        traced, gained, scatter = figure.subplots(1, 3, width_ratios=[maps_width, maps_width, _SCATTER]).tolist()
        panels = (
            (traced, result.tracing.restored(), "tracing: restored part"),
            (gained, result.reft.gain(), "trained edits: gain"),
        )
        for place, (axes, values, name) in enumerate(panels):
            _map(axes, values.double().numpy())
            if ticks == columns:
                label_tokens(axes, ticks, room=room)
            else:
                axes.set_xticks(range(n_columns), ticks)
            panel_title(axes, name, width=maps_width)
            if place:
                axes.set_yticks([])
            else:
                label_rows(axes, result.reft.rows, height=max(n_rows, 3) * 0.25)
        _scatter(scatter, result, columns)
    return figure


def _over_lines(names: list[str], *, room: float) -> list[str]:
    """Breaks names into one word per line if every word fits into `room` inches; otherwise returns them unchanged."""
    words = [word for name in names for word in name.split()]
    fits = all(text_width(word) + 0.06 <= room for word in words)
    return ["\n".join(name.split()) for name in names] if fits else names


def _map(axes: Axes, values: Values) -> None:
    limit = float(np.abs(values[np.isfinite(values)]).max(initial=0.0)) or 1.0
    cmap = colormaps["RdBu_r"].with_extremes(bad=PALE)
    axes.imshow(np.ma.masked_invalid(values), cmap=cmap, vmin=-limit, vmax=limit, aspect="auto", origin="lower")
    for spine in axes.spines.values():
        spine.set(visible=True, color=GREY, linewidth=0.6)
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            ink = ink_on(colour_at(cmap, (value / limit + 1) / 2))
            axes.text(column, row, number(value, 2), ha="center", va="center", size=SMALL, color=ink)


def _scatter(axes: Axes, result: BesideTracing, columns: list[str]) -> None:
    restored, gain, control = (
        values.double().numpy()
        for values in (result.tracing.restored(), result.reft.gain(), result.reft.control_gain())
    )
    axes.axhline(0, color=GREY, linewidth=0.6)
    axes.axvline(0, color=GREY, linewidth=0.6)
    axes.plot(restored.ravel(), control.ravel(), "x", color=GREY, markersize=4, label="shuffled answers", zorder=1)
    for place, name in enumerate(columns):
        # Further columns share the last mark, and one entry of the key.
        marker, colour = _MARKS[min(place, len(_MARKS) - 1)]
        last = place >= len(_MARKS) - 1 and len(columns) > len(_MARKS)
        label = ("other columns" if place == len(_MARKS) - 1 else None) if last else name
        axes.plot(restored[:, place], gain[:, place], marker, color=colour, markersize=5, alpha=0.85, label=label)
    best = np.unravel_index(int(np.nanargmax(restored)), restored.shape)
    axes.plot(
        restored[best], gain[best], "o", markersize=11, markerfacecolor="none", color=INK, label="tracing's best cell"
    )
    axes.axhline(result.at_random, color=INK, linewidth=0.8, linestyle=":", label="mean of all cells")
    axes.set_xlabel("restored part (tracing)")
    axes.set_ylabel(wrap(f"gain in {result.reft.score}", width=1.7, size=SMALL))
    axes.legend(loc="upper center", bbox_to_anchor=(0.45, -0.22), ncols=2, frameon=False)
    axes.margins(0.08)


def _subtitle(result: BesideTracing) -> str:
    cells, prompts = (
        f"{number(low, 2)} to {number(high, 2)}" for low, high in (result.over_cells, result.over_prompts)
    )
    count = result.tracing.mean().numel()
    return (
        f"rank correlation {number(result.correlation, 2)} over {count} cells: p = {result.p:.2g} of {count} shifts of one map "
        f"against the other, {number(result.shuffled_correlation, 2)} for shuffled answers; 95% intervals, which are not tests: "
        f"{cells} with cells drawn anew, {prompts} with prompts drawn anew; the edit in tracing's best cell gains "
        f"{number(result.at_traced, 2)}, in a random cell {number(result.at_random, 2)}, and {result.as_good:.0%} of the others do as "
        f"well; {result.reft.budget}; {len(result.reft.base)} held-out prompts, {len(result.tracing.base)} traced pairs"
    )
