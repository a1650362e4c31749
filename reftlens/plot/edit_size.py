"""Plot of the size of each site's change at each token of one text, as strips above the tokens."""

from __future__ import annotations

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Patch, Rectangle

from reftlens.plot.canvas import (
    GREY,
    PALE,
    SMALL,
    colour_at,
    house_style,
    ink_on,
    label_rows,
    label_tokens,
    number,
    or_several,
    sheet,
    text_width,
    token_room,
)
from reftlens.plot.labels import star
from reftlens.results import EditSize

COLOURS = ListedColormap(colormaps["YlOrBr"](np.linspace(0.1, 0.8, 256)))
"""Light to dark in grey too. Zero is pale yellow, unlike tokens that are not edited, and the
largest change is a strong orange rather than a brown that would sink into a dark page.
"""

_PER_LINE = 32
_CELL_HEIGHT = 0.27


@or_several(EditSize)
def edit_size(result: EditSize) -> Figure:
    """Draws |delta| / |h| for each site and token. Long texts take several lines.

    Tokens that a site does not edit are hatched grey, to distinguish them from small changes.

    Args:
        result: from `analysis.edit_size`.

    Raises:
        ValueError: If there are no sites or no tokens.
    """
    n_rows, n_tokens = result.relative.shape
    if n_rows == 0 or n_tokens == 0:
        raise ValueError(f"an edit size needs at least one site and one token, got shape {(n_rows, n_tokens)}")
    columns = min(n_tokens, _PER_LINE)
    starts = range(0, n_tokens, columns)
    tokens = star(result.tokens, result.starred)
    cell = max(6.5 - 1.9, min(0.6 * columns, 7.9)) / columns
    line = max(n_rows, 2) * _CELL_HEIGHT + token_room(tokens, room=cell) + 0.1
    subtitle = "* subject; " if any(result.starred) else ""
    subtitle += "|Δ|: norm of the change, |h|: norm of the activation" + f"; all {n_rows} sites" * (n_rows > 1)
    with house_style():
        height = line * len(starts) + 0.35
        figure = sheet(cell * columns + 1.9, height, title="Size of the edit at each token", subtitle=subtitle)
        grid = figure.subplots(len(starts), 1, squeeze=False).ravel().tolist()
        for axes, start in zip(grid, starts, strict=True):
            image = _line(axes, result, start=start, columns=columns, room=cell)
            label_tokens(axes, tokens[start : start + columns], room=cell)
        bar = figure.colorbar(image, ax=grid, pad=0.02, fraction=0.05, aspect=20)
        bar.set_label("|Δ| / |h|", size=SMALL)
        bar.outline.set_visible(False)
        if not bool(result.edited.all()):
            figure.legend(handles=[_unedited()], loc="outside lower left", frameon=False)
    return figure


def largest(result: EditSize) -> float:
    """The top of the colour scale: the largest finite size at an edited token, or 1 if there is none above 0."""
    sizes = result.relative[result.edited & result.relative.isfinite()]
    return float(sizes.max()) or 1.0 if sizes.numel() else 1.0


def _line(axes: Axes, result: EditSize, *, start: int, columns: int, room: float) -> AxesImage:
    sizes = result.relative[:, start : start + columns].double().numpy()
    edited = result.edited[:, start : start + columns].numpy()
    n_rows, n_drawn = sizes.shape
    corner = (-0.5, -0.5)
    axes.add_patch(
        Rectangle(corner, n_drawn, n_rows, facecolor=PALE, edgecolor=GREY, hatch="////", linewidth=0, zorder=0)
    )
    top = largest(result)
    # Not finite (an activation of norm 0): the top colour would claim a size, so these are white
    # with a question mark.
    cmap = COLOURS.with_extremes(over="white")
    shown = np.ma.masked_where(~edited, np.where(np.isfinite(sizes), sizes, 2 * top))
    image = axes.imshow(shown, cmap=cmap, vmin=0, vmax=top, aspect="auto", origin="lower", interpolation="none")
    axes.set_xlim(-0.5, columns - 0.5)
    decimals = 2 if top >= 0.1 else 3
    fits = text_width(number(top, decimals)) + 0.06 <= room
    for row, pos in np.argwhere(edited):
        size = float(sizes[row, pos])
        text = "?" if not np.isfinite(size) else number(size, decimals) if fits else ""
        colour = ink_on(colour_at(COLOURS, size / top)) if np.isfinite(size) else "black"
        axes.text(pos, row, text, ha="center", va="center", size=SMALL, color=colour)
    label_rows(axes, result.rows, height=max(n_rows, 2) * _CELL_HEIGHT)
    axes.spines[:].set_visible(False)
    # Thin white lines part the sites: strips, not a surface.
    axes.hlines(np.arange(n_rows - 1) + 0.5, -0.5, n_drawn - 0.5, color="white", linewidth=1.5)
    return image


def _unedited() -> Patch:
    return Patch(facecolor=PALE, edgecolor=GREY, hatch="////", linewidth=0, label="not edited by this site")
