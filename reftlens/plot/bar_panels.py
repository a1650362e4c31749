"""Panels of horizontal bars over a band that chance reaches, in at most two columns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from reftlens.plot.canvas import INK, KEY, PALE, house_style, key_on_top, sheet

T = TypeVar("T")

MOST = 8
"""More panels would not be read on one page."""
_BAR = 0.18
"""Inches a bar and its label take."""


def bar_panels(
    shown: Sequence[T],
    panel: Callable[[Axes, T], None],
    *,
    bars: int,
    width: float,
    title: str,
    subtitle: str,
    key: list[Patch],
) -> Figure:
    """Draws one panel per item, with the key above them.

    Args:
        shown: the items.
        panel: draws one of them.
        bars: bars that each panel has room for.
        width: of the figure, in inches.
        title: of the figure.
        subtitle: of the figure.
        key: what the colours mean.
    """
    columns = min(2, len(shown))
    lines = -(-len(shown) // columns)
    with house_style():
        height = (bars * _BAR + 0.8) * lines + KEY
        figure = sheet(width, height, title=title, subtitle=subtitle)
        grid = figure.subplots(lines, columns, squeeze=False).ravel().tolist()
        # The grid has one panel more where the number of items is odd.
        for axes, item in zip(grid, shown, strict=False):
            panel(axes, item)
        for axes in grid[len(shown) :]:
            axes.remove()
        key_on_top(figure, key, below=height)
    return figure


def draw_bars(
    axes: Axes,
    values: Sequence[float],
    names: Sequence[str],
    colours: Sequence[str],
    *,
    band: tuple[float, float],
    bars: int,
) -> None:
    """Draws named bars from the top down.

    Args:
        axes: the panel.
        values: length of each bar.
        names: their labels, ready to be drawn.
        colours: of the bars.
        band: the range that chance reaches.
        bars: bars that the panel has room for; those of a panel with fewer are as thick.
    """
    axes.axvspan(*band, color=PALE, zorder=0)
    axes.barh(range(len(values)), values, color=colours, height=0.75)
    axes.set_yticks(range(len(values)), names)
    axes.set_ylim(bars - 0.4, -0.6)
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.tick_params(axis="y", length=0)
    axes.locator_params(axis="x", nbins=5)
    axes.margins(x=0.05)
