"""The tokens of a text as a line of HTML, shaded by the size of the edit: no script, no style sheet, no request."""

from __future__ import annotations

import torch
from markupsafe import Markup, escape
from matplotlib.colors import to_hex

from reftlens.plot.canvas import colour_at, ink_on
from reftlens.plot.edit_size import COLOURS, largest
from reftlens.plot.labels import short_name, visible
from reftlens.results import EditSize

_LINE = "line-height:2;font-family:ui-monospace,monospace"
# Inline blocks, so that lines break between tokens and not behind the mark for a space.
_TOKEN = (
    "display:inline-block;line-height:1.5;max-width:100%;overflow-wrap:anywhere;padding:0 .1em;margin:0 1px;"
    "border-radius:.2em;print-color-adjust:exact"
)


def token_strip(result: EditSize, row: int | None = None) -> Markup:
    """A paragraph of tokens; a shaded token is edited, and says its |delta| / |h| when pointed at.

    Shaded tokens bring their own background and their own ink, the others take those of the page: it reads in light
    and dark mode. Strips of one result share a scale.

    Args:
        result: sizes at each site and token.
        row: the site to show; None takes the largest size over sites.

    Raises:
        ValueError: if there is no such row.
    """
    n_rows = len(result.rows)
    if row is not None and not 0 <= row < n_rows:
        raise ValueError(f"row must be in [0, {n_rows - 1}] or None, got {row}")
    rows = range(n_rows) if row is None else [row]
    top = largest(result)
    spans = [_span(result, place, rows, top) for place in range(len(result.tokens))]
    return Markup('<div style="{}">{}</div>\n{}').format(_LINE, Markup("").join(spans), _scale(top))


def _span(result: EditSize, place: int, rows: range | list[int], top: float) -> Markup:
    sizes = {r: float(result.relative[r, place]) for r in rows if bool(result.edited[r, place])}
    about = ["subject"] if result.starred[place] else []
    about += [f"{short_name(result.rows[r])}: |Δ|/|h| = {size:.3g}" for r, size in sizes.items()] or ["not edited"]
    style = _TOKEN
    if sizes:
        size = float(torch.tensor(list(sizes.values())).nan_to_num().max())
        style += ";" + _shade(size / top)
    if result.starred[place]:
        style += ";font-weight:bold;text-decoration:underline"
    # A token that ends a line ends it here too.
    end = Markup("<br>") if result.tokens[place].endswith("\n") else ""
    text = visible(result.tokens[place])
    return Markup('<span style="{}" title="{}">{}</span>{}').format(style, "; ".join(about), escape(text), end)


def _shade(part: float) -> str:
    colour = colour_at(COLOURS, min(max(part, 0.0), 1.0))
    # The outline keeps pale shades apart from a white page.
    return f"background:{to_hex(colour)};color:{ink_on(colour)};box-shadow:0 0 0 1px #8888"


def _scale(top: float) -> Markup:
    """A small key: five shades from no change to the largest."""
    steps = [(part, f"{part * top:.2g}") for part in (0.0, 0.25, 0.5, 0.75, 1.0)]
    shades = [
        Markup('<span style="{};{};padding:.1em .5em">{}</span>').format(_TOKEN, _shade(part), text)
        for part, text in steps
    ]
    key = Markup('<div style="font-size:.85em">|Δ| / |h|: {} &ensp;not shaded: not edited</div>')
    return key.format(Markup(" ").join(shades))
