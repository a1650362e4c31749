"""A heat map of a quantity over rows (layers or sites) and tokens, beside the same under its control.

Both panels have one colour scale, symmetrical around zero: a control that shows as much as the measurement looks it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Colormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from reftlens.plot.canvas import (
    GREY,
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
from reftlens.plot.labels import star, wrap
from reftlens.results import TokenMap

_BESIDE = 9
"""With more tokens than this the control goes below, so that cells stay wide enough for numbers."""
_CELL_HEIGHT = 0.25
_MARGINS = 1.9
"""Inches for row labels and colour bar."""


def token_map(result: TokenMap, *, title: str = "") -> Figure:
    """Draws a map over rows and tokens; the earliest row is at the bottom, subject tokens carry a star.

    Cells show their numbers where these fit. Where they do not, clearly negative cells carry a minus sign, because
    the two ends of the colour map look alike in grey. Cells that are not finite stay grey.

    Args:
        result: the map, perhaps with its control.
        title: of the figure; the name of the quantity if empty.

    Raises:
        ValueError: for no rows or no tokens.
    """
    panels = [("measured" if result.control is not None else "", result.values.double().numpy())]
    if result.control is not None:
        panels.append((f"control: {result.control_name}", result.control.double().numpy()))
    n_rows, n_tokens = result.values.shape
    if n_rows == 0 or n_tokens == 0:
        raise ValueError(f"a token map needs at least one row and one token, got shape {(n_rows, n_tokens)}")
    beside = len(panels) == 2 and n_tokens <= _BESIDE
    across = len(panels) if beside else 1
    tokens = star(result.tokens, result.starred)
    cell = min(0.6, max(0.2, 7.9 / (n_tokens * across)))
    width = max(6.5, cell * n_tokens * across + _MARGINS)
    cell = (width - _MARGINS) / (n_tokens * across)
    panel_height = max(n_rows, 3) * _CELL_HEIGHT + 0.45 + token_room(tokens, room=cell)
    limit = _limit([values for _, values in panels])
    decimals = _decimals([values for _, values in panels], limit, room=cell)
    with house_style():
        height = panel_height * (1 if beside else len(panels)) + 0.1
        heading = title or result.quantity[:1].upper() + result.quantity[1:]
        figure = sheet(width, height, title=heading, subtitle=_subtitle(result, signed=decimals is None))
        grid = figure.subplots(1 if beside else len(panels), across, squeeze=False).ravel().tolist()
        for place, (axes, (name, values)) in enumerate(zip(grid, panels, strict=True)):
            image = _panel(axes, values, limit=limit, decimals=decimals)
            label_tokens(axes, tokens, room=cell)
            panel_title(axes, name, width=cell * n_tokens)
            if beside and place > 0:
                axes.set_yticks([])
            else:
                label_rows(axes, result.rows, height=max(n_rows, 3) * _CELL_HEIGHT)
        bar = figure.colorbar(image, ax=grid, pad=0.02, fraction=0.05, aspect=30)
        bar.set_label(wrap(result.quantity, width=height * 0.85, size=SMALL), size=SMALL)
        bar.outline.set_visible(False)
    return figure


def _panel(axes: Axes, values: npt.NDArray[np.float64], *, limit: float, decimals: int | None) -> AxesImage:
    cmap = colormaps["RdBu_r"].with_extremes(bad=PALE)
    finite = np.ma.masked_invalid(values)
    image = axes.imshow(finite, cmap=cmap, vmin=-limit, vmax=limit, aspect="auto", origin="lower", interpolation="none")
    for spine in axes.spines.values():
        spine.set(visible=True, color=GREY, linewidth=0.6)
    for (row, pos), value in np.ndenumerate(values):
        if np.isfinite(value):
            _mark(axes, row, pos, value, cmap=cmap, limit=limit, decimals=decimals)
    return image


def _mark(axes: Axes, row: int, pos: int, value: float, *, cmap: Colormap, limit: float, decimals: int | None) -> None:
    """Writes a cell's number, or only its sign where that would be lost in grey."""
    text = _sign(value, limit) if decimals is None else number(value, decimals)
    if text:
        colour = ink_on(colour_at(cmap, (value / limit + 1) / 2))
        axes.text(pos, row, text, ha="center", va="center", size=SMALL, color=colour)


def _limit(panels: list[npt.NDArray[np.float64]]) -> float:
    """The largest finite magnitude in any panel, so that zero is the middle of one scale for all."""
    sizes = [np.abs(values[np.isfinite(values)]).max(initial=0.0) for values in panels]
    return float(max(sizes)) or 1.0


def _sign(value: float, limit: float) -> str:
    return MINUS if value < -0.15 * limit else ""


def _decimals(panels: list[npt.NDArray[np.float64]], limit: float, *, room: float) -> int | None:
    """The most decimals, of those that tell something, with which all numbers fit into cells `room` inches wide."""
    finite = [float(value) for values in panels for value in values.flat if np.isfinite(value)]
    first = min(3, max(0, 2 - int(np.floor(np.log10(limit))) - (limit < 1)))
    for decimals in range(first, max(first - 2, -1), -1):
        # One decimal of a small scale would turn most of it to 0.0; ten to the fifth is not read in a cell.
        if 2 * 10.0**-decimals <= limit < 1e5 and all(
            text_width(number(value, decimals)) + 0.06 <= room for value in finite
        ):
            return decimals
    return None


def _subtitle(result: TokenMap, *, signed: bool) -> str:
    parts = ["one prompt" if result.n_prompts == 1 else f"mean of {result.n_prompts} prompts, tokens of the first"]
    if any(result.starred):
        parts.append("* subject")
    both = [result.values] + ([result.control] if result.control is not None else [])
    if signed and any(bool((part < 0).any()) for part in both):
        parts.append(f"{MINUS} marks clearly negative cells")
    if any(not bool(part.isfinite().all()) for part in both):
        parts.append("grey: no value")
    return "; ".join(parts)
