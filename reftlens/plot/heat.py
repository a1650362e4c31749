"""Heat maps over rows (layers or sites) and columns (tokens or heads). Panels of a group share one scale.

A control shares the colour scale of its measurement, so that equal values look equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Colormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle

from reftlens.plot.canvas import (
    GREY,
    INK,
    MINUS,
    PALE,
    SMALL,
    colour_at,
    house_style,
    ink_on,
    label_rows,
    label_tokens,
    number,
    panel_title,
    sheet,
    text_width,
    token_room,
)
from reftlens.plot.labels import wrap

Values = npt.NDArray[np.float64]

_BESIDE = 9
"""With more columns than this the panels of a group stand one below the other, so that cells have room for numbers."""
_CELL_HEIGHT = 0.25
_MARGINS = 1.9
"""Inches for row labels and colour bar."""


@final
@dataclass(frozen=True, eq=False)
class Panel:
    """One grid."""

    values: Values
    """[rows, columns]; what is not finite is hatched."""
    title: str = ""
    outlined: npt.NDArray[np.bool_] | None = None
    """Cells with a frame of their own."""
    covered: npt.NDArray[np.bool_] | None = None
    """Cells that are grey instead of coloured, because the control reaches as far."""


@final
@dataclass(frozen=True, eq=False)
class Group:
    """Panels of one quantity, on one scale."""

    panels: Sequence[Panel]
    quantity: str
    signed: bool = True
    """Whether colours diverge from zero; a size goes from white to dark."""

    @property
    def limit(self) -> float:
        """The largest finite magnitude in any panel."""
        sizes = [np.abs(panel.values[np.isfinite(panel.values)]).max(initial=0.0) for panel in self.panels]
        # A map of zeros needs a scale that has a width.
        return float(max(sizes)) or 1.0

    @property
    def cmap(self) -> Colormap:
        return colormaps["RdBu_r" if self.signed else "Oranges"].with_extremes(bad=PALE)

    def decimals(self, room: float) -> int | None:
        """The most decimals, of those that tell something, with which all numbers fit into cells `room` inches wide."""
        limit = self.limit
        finite = [float(value) for panel in self.panels for value in panel.values.flat if np.isfinite(value)]
        # Three digits of the largest value; below 1, the zero in front counts as one.
        first = min(3, max(0, 2 - int(np.floor(np.log10(limit))) - (limit < 1)))
        for decimals in range(first, max(first - 2, -1), -1):
            # One decimal of a small scale would turn most of it to 0.0; ten to the fifth is not
            # read in a cell.
            if 2 * 10.0**-decimals <= limit < 1e5 and all(
                text_width(number(value, decimals)) + 0.06 <= room for value in finite
            ):
                return decimals
        return None


def heat(
    groups: Sequence[Group], *, rows: Sequence[str], columns: Sequence[str], title: str, subtitle: str, xlabel: str = ""
) -> Figure:
    """Draws groups of grids; the earliest row is at the bottom.

    Cells show their numbers where these fit. Where they do not, clearly negative cells carry a
    minus sign, because the two ends of the colour map look alike in grey.

    Args:
        groups: each with its own scale and colour bar, one below the other.
        rows: hook names.
        columns: labels that can be drawn.
        title: of the figure.
        subtitle: what a reader must know; what the cells need is added.
        xlabel: what columns are, if it is not seen.

    Raises:
        ValueError: If there are no rows or no columns.
    """
    if not len(rows) or not len(columns):
        raise ValueError(f"a map needs at least one row and one token, got shape {(len(rows), len(columns))}")
    most = max(len(group.panels) for group in groups)
    across = most if len(columns) <= _BESIDE else 1
    down = most // across
    cell = min(0.6, max(0.2, 7.9 / (len(columns) * across)))
    width = max(6.5, cell * len(columns) * across + _MARGINS)
    cell = (width - _MARGINS) / (len(columns) * across)
    panel_height = max(len(rows), 3) * _CELL_HEIGHT + 0.45 + token_room(list(columns), room=cell) + 0.2 * bool(xlabel)
    with house_style():
        height = panel_height * down * len(groups) + 0.1
        figure = sheet(width, height, title=title, subtitle="; ".join([subtitle, *_notes(groups, cell)]).strip("; "))
        grid = figure.subplots(down * len(groups), across, squeeze=False)
        for place, group in enumerate(groups):
            axes = grid[place * down : (place + 1) * down].ravel().tolist()
            image = _group(axes[: len(group.panels)], group, columns=columns, room=cell)
            for index, panel in enumerate(axes[: len(group.panels)]):
                panel.set_xlabel(xlabel)
                if index % across:
                    panel.set_yticks([])
                else:
                    label_rows(panel, rows, height=max(len(rows), 3) * _CELL_HEIGHT)
            for unused in axes[len(group.panels) :]:
                unused.remove()
            bar = figure.colorbar(image, ax=axes[: len(group.panels)], pad=0.02, fraction=0.05, aspect=30)
            bar.set_label(wrap(group.quantity, width=panel_height * down * 0.85, size=SMALL), size=SMALL)
            bar.outline.set_visible(False)
    return figure


def _group(axes: Sequence[Axes], group: Group, *, columns: Sequence[str], room: float) -> AxesImage:
    for place, panel in zip(axes, group.panels, strict=True):
        image = _panel(place, panel, group, decimals=group.decimals(room))
        label_tokens(place, list(columns), room=room)
        panel_title(place, panel.title, width=room * len(columns))
    return image


def _panel(axes: Axes, panel: Panel, group: Group, *, decimals: int | None) -> AxesImage:
    limit = group.limit
    finite = np.ma.masked_invalid(panel.values)
    covered = np.zeros_like(panel.values, dtype=bool) if panel.covered is None else panel.covered
    for row, pos in np.argwhere(covered | ~np.isfinite(panel.values)):
        hatch = None if covered[row, pos] else "////"
        axes.add_patch(
            # Above the image, below the numbers (text has zorder 3).
            Rectangle(
                (pos - 0.5, row - 0.5), 1, 1, facecolor=PALE, edgecolor=GREY, hatch=hatch, linewidth=0, zorder=1.5
            )
        )
    low = -limit if group.signed else 0.0
    # interpolation="none": otherwise neighbouring cells blend where the picture is scaled.
    image = axes.imshow(
        finite, cmap=group.cmap, vmin=low, vmax=limit, aspect="auto", origin="lower", interpolation="none"
    )
    for spine in axes.spines.values():
        spine.set(visible=True, color=GREY, linewidth=0.6)
    for (row, pos), value in np.ndenumerate(panel.values):
        text = "" if not np.isfinite(value) else _sign(value, limit) if decimals is None else number(value, decimals)
        if text:
            shade = colour_at(group.cmap, (value - low) / (limit - low))
            colour = INK if covered[row, pos] else ink_on(shade)
            axes.text(pos, row, text, ha="center", va="center", size=SMALL, color=colour)
    if panel.outlined is not None:
        for row, pos in np.argwhere(panel.outlined):
            axes.add_patch(
                Rectangle((pos - 0.46, row - 0.46), 0.92, 0.92, fill=False, edgecolor=INK, linewidth=1.1, zorder=3)
            )
    return image


def _sign(value: float, limit: float) -> str:
    return MINUS if value < -0.15 * limit else ""


def _notes(groups: Sequence[Group], room: float) -> list[str]:
    """What the subtitle must say of the cells."""
    notes = []
    signs = [panel for group in groups if group.decimals(room) is None for panel in group.panels]
    if any(bool((panel.values < 0).any()) for panel in signs):
        notes.append(f"{MINUS}: clearly negative")
    if any(not bool(np.isfinite(panel.values).all()) for group in groups for panel in group.panels):
        notes.append("hatched: no value")
    if any(panel.covered is not None and bool(panel.covered.any()) for group in groups for panel in group.panels):
        notes.append("grey: no larger in size than the largest control cell")
    return notes
