"""Plot of first-order estimates of patching against the exact values, cell by cell."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reftlens.plot.canvas import BLUE, GREY, INK, VERMILLION, house_style, number, or_several, panel_title, sheet
from reftlens.results import Attribution

_COLUMNS, _MOST_PAIRS = 3, 6


@or_several(Attribution)
def attribution(result: Attribution) -> Figure:
    """Draws one panel per checked pair. On the line, the estimate equals the exact change.

    Args:
        result: from `analysis.attribute`.

    Raises:
        ValueError: If no pair was checked.
    """
    n = len(result.correlation)
    if not n:
        raise ValueError("attribution needs at least one pair with an exact map, got none")
    shown = min(n, _MOST_PAIRS)
    columns = min(_COLUMNS, shown)
    lines = -(-shown // columns)
    subtitle = (
        "each dot is a cell, changes of the metric; line: estimate = exact; crosses: the estimate has the wrong sign"
    )
    subtitle += f"; the first {shown} of {n} checked pairs" * (shown < n)
    with house_style():
        width = max(6.5, 2.5 * columns)
        figure = sheet(width, 2.5 * lines, title="Estimated and exact effects of a patch", subtitle=subtitle)
        grid = figure.subplots(lines, columns, squeeze=False).ravel().tolist()
        for pair, axes in enumerate(grid[:shown]):
            _pair(axes, result, pair)
            r = float(result.correlation[pair])
            title = f"pair {pair + 1}: r = {number(r, 2)}" if np.isfinite(r) else f"pair {pair + 1}: r undefined"
            panel_title(axes, title, width=width / columns - 0.6)
            axes.set_xlabel("exact")
        for axes in grid[shown:]:
            axes.remove()
        for axes in grid[:shown:columns]:
            axes.set_ylabel("estimate")
    return figure


def _pair(axes: Axes, result: Attribution, pair: int) -> None:
    exact = (result.exact.values[pair] - result.exact.base[pair]).double().numpy().ravel()
    estimate = result.values[pair].double().numpy().ravel()
    there = np.isfinite(exact) & np.isfinite(estimate)
    exact, estimate = exact[there], estimate[there]
    reach = float(max(np.abs(exact).max(initial=0.0), np.abs(estimate).max(initial=0.0))) or 1.0
    # The sign of a value near 0 is noise, so it gets no cross.
    wrong = (exact * estimate < 0) & (np.maximum(np.abs(exact), np.abs(estimate)) > 0.02 * reach)
    axes.axhline(0, color=GREY, linewidth=0.5)
    axes.axvline(0, color=GREY, linewidth=0.5)
    axes.axline((0, 0), slope=1, color=INK, linewidth=0.8, linestyle=":")
    axes.plot(exact[~wrong], estimate[~wrong], "o", color=BLUE, markersize=4, alpha=0.6, markeredgewidth=0)
    axes.plot(exact[wrong], estimate[wrong], "x", color=VERMILLION, markersize=5, markeredgewidth=1.5)
    axes.locator_params(nbins=5)
    axes.margins(0.08)
