"""Plot of the agreement between trained edits: one matrix over edits per measure, with its control."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reftlens.plot.canvas import PALE, SMALL, colour_at, house_style, ink_on, listed, number, sheet, text_width
from reftlens.plot.labels import wrap
from reftlens.results import Agreement

_CELL = 0.62

Quantity = Callable[[Agreement], float]


def agreement(results: Sequence[Agreement] | Agreement) -> Figure:
    """Draws cosines of changes, and mean principal angles of the used directions and of raw R, between all pairs.

    Darker is closer in every panel. The value expected by chance is above each panel.

    Args:
        results: from `analysis.agreement`, one for each pair.

    Raises:
        ValueError: If there are no pairs.
    """
    results = listed(results, Agreement)
    if not results:
        raise ValueError("agreement needs at least one pair of edits, got none")
    names = list(dict.fromkeys(name for pair in results for name in (pair.first, pair.second)))
    panels: list[tuple[str, str, Quantity, Quantity, float, float]] = [
        ("cosine of the changes", "turned", lambda p: p.cosine, lambda p: p.control_cosine, 0.0, 1.0),
        ("angle of used directions", "random", lambda p: p.angle, lambda p: p.null_angle, 90.0, 0.0),
        ("angle of raw R: misleads", "random", lambda p: p.raw_angle, lambda p: p.raw_null_angle, 90.0, 0.0),
    ]
    side = max(_CELL * len(names), 1.55)
    labels = [wrap(name, width=1.5, size=SMALL) or "''" for name in names]
    longest = max(text_width(line) for label in labels for line in label.split("\n"))
    subtitle = "angles: mean principal angle in degrees, 90 is perpendicular; darker is closer in all panels"
    with house_style():
        figure = sheet(3 * side + 0.6 + longest, side + 0.85 + longest, title="Whether edits agree", subtitle=subtitle)
        grid = figure.subplots(1, 3, sharey=True).tolist()
        for axes, (title, chance, value, null, far, close) in zip(grid, panels, strict=True):
            decimals = 2 if close == 1 else 0
            _matrix(axes, _filled(results, names, value), far=far, close=close, decimals=decimals)
            axes.set_xticks(range(len(names)), labels, rotation=90)
            nulls = [null(pair) for pair in results if np.isfinite(null(pair))]
            beside = _span(nulls, decimals) if nulls else "no value"
            axes.set_title(f"{wrap(title, width=side, size=SMALL)}\n{chance}: {beside}", loc="left", size=SMALL)
        grid[0].set_yticks(range(len(names)), labels)
    return figure


def _filled(results: Sequence[Agreement], names: list[str], value: Quantity) -> npt.NDArray[np.float64]:
    """[edit, edit], symmetric, nothing on the diagonal."""
    matrix = np.full((len(names), len(names)), np.nan)
    for pair in results:
        i, j = names.index(pair.first), names.index(pair.second)
        matrix[i, j] = matrix[j, i] = value(pair)
    return matrix


def _matrix(axes: Axes, matrix: npt.NDArray[np.float64], *, far: float, close: float, decimals: int) -> None:
    cmap = colormaps["Oranges"].with_extremes(bad=PALE)
    # For angles far is 90 and close is 0, so this turns the scale round.
    part = np.clip((matrix - far) / (close - far), 0, 1)
    axes.imshow(np.ma.masked_invalid(part), cmap=cmap, vmin=0, vmax=1, aspect="auto", interpolation="none")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    for (row, column), value in np.ndenumerate(matrix):
        if np.isfinite(value):
            colour = ink_on(colour_at(cmap, float(part[row, column])))
            axes.text(column, row, number(value, decimals), ha="center", va="center", size=SMALL, color=colour)


def _span(values: list[float], decimals: int) -> str:
    low, high = number(min(values), decimals), number(max(values), decimals)
    return low if low == high else f"{low} to {high}"
