"""Plot of activations along an edit's two strongest write directions, before and after the edit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from reftlens.plot.canvas import BLUE, GREEN, GREY, ORANGE, SMALL, VERMILLION, house_style, listed, panel_title, sheet
from reftlens.plot.labels import short_name, wrap
from reftlens.results import Projection

_STYLES = ((VERMILLION, "o"), (BLUE, "s"), (ORANGE, "^"), (GREEN, "D"))
"""Colour and marker of each group."""
_COLUMNS = 3


def projection(results: Sequence[Projection] | Projection) -> Figure:
    """Draws open marks before the edit, filled marks after it, and a line between them. Crosses are the control.

    Args:
        results: from `analysis.project`, one for each site.

    Raises:
        ValueError: If there is nothing to draw, or there are more groups than can be distinguished.
    """
    results = listed(results, Projection)
    if not results:
        raise ValueError("projection needs at least one site, got none")
    groups = list(dict.fromkeys(group for result in results for group in result.groups))
    if len(groups) > len(_STYLES):
        raise ValueError(f"projection draws at most {len(_STYLES)} groups, got {len(groups)}")
    columns = min(_COLUMNS, len(results))
    lines = -(-len(results) // columns)
    width = max(6.5, 3.3 * columns)
    subtitle = "units of the activation; the plane of the largest moves, so their size is no finding"
    with house_style():
        figure = sheet(width, 3.2 * lines + 0.3, title="Activations along two write directions", subtitle=subtitle)
        grid = figure.subplots(lines, columns, squeeze=False).ravel().tolist()
        for axes, result in zip(grid, results, strict=False):
            _panel(axes, result, groups)
            panel_title(axes, f"{short_name(result.where)}, {len(result.groups)} tokens", width=width / columns - 0.6)
        for axes in grid[len(results) :]:
            axes.remove()
        figure.legend(handles=_key(groups), loc="outside lower center", ncols=3, frameon=False)
    return figure


def _panel(axes: Axes, result: Projection, groups: Sequence[str]) -> None:
    before, after, control = (part.double().numpy() for part in (result.before, result.after, result.control))
    axes.plot(*control.T, "x", color=GREY, markersize=3.5, markeredgewidth=0.9, zorder=1)
    # There may be more styles than groups; fewer were refused.
    for group, (colour, marker) in zip(groups, _STYLES, strict=False):
        there = np.array([name == group for name in result.groups])
        # One line per token: matplotlib draws each column of a [2, token] array.
        axes.plot(
            [before[there, 0], after[there, 0]],
            [before[there, 1], after[there, 1]],
            color=colour,
            linewidth=0.5,
            alpha=0.5,
            zorder=2,
        )
        style: dict[str, Any] = {"color": colour, "markersize": 4.5, "zorder": 3}
        axes.plot(*before[there].T, marker, markerfacecolor="white", **style)
        axes.plot(*after[there].T, marker, **style)
    axes.locator_params(nbins=5)
    axes.set_xlabel("direction 0")
    axes.set_ylabel("direction 1")


def _key(groups: Sequence[str]) -> list[Line2D]:
    key = [
        Line2D([], [], linestyle="", color=colour, marker=marker, label=wrap(group, width=2.0, size=SMALL) or "''")
        for group, (colour, marker) in zip(groups, _STYLES, strict=False)
    ]
    grey: dict[str, Any] = {"linestyle": "", "color": GREY}
    key.append(Line2D([], [], marker="o", markerfacecolor="white", label="open: before, filled: after", **grey))
    key.append(Line2D([], [], marker="x", label="control: in random directions", **grey))
    return key
