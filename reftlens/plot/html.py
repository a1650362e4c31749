"""Draws the tokens of a text as HTML, shaded by a value at each token. It uses no script, style sheet or request."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

from markupsafe import Markup, escape
from matplotlib import colormaps
from matplotlib.colors import Colormap, to_hex

from reftlens.plot.canvas import MINUS, colour_at, ink_on
from reftlens.plot.edit_size import COLOURS, largest
from reftlens.plot.labels import short_name, visible
from reftlens.results import EditSize, TokenMap

_LINE = "line-height:2;font-family:ui-monospace,monospace"
# Inline blocks, so that lines break between tokens and not behind the mark for a space.
# print-color-adjust: browsers leave backgrounds out when they print.
_TOKEN = (
    "display:inline-block;line-height:1.5;max-width:100%;overflow-wrap:anywhere;padding:0 .1em;margin:0 1px;"
    "border-radius:.2em;print-color-adjust:exact"
)


@final
class Html(Markup):
    """Escaped HTML that a notebook shows as what it is."""

    def _repr_html_(self) -> str:
        return str(self)


@final
@dataclass(frozen=True, eq=False)
class _Shades:
    """How values become colours, and what the key says of them."""

    cmap: Colormap
    low: float
    high: float
    quantity: str
    unshaded: str

    def style(self, value: float) -> str:
        part = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        colour = colour_at(self.cmap, part)
        # The outline keeps pale shades apart from a white page.
        return f"background:{to_hex(colour)};color:{ink_on(colour)};box-shadow:0 0 0 1px #8888"

    def key(self) -> Markup:
        """Five shades from one end to the other."""
        steps = [self.low + part * (self.high - self.low) for part in (0.0, 0.25, 0.5, 0.75, 1.0)]
        shades = [
            Markup('<span style="{};{};padding:.1em .5em">{}</span>').format(
                _TOKEN, self.style(value), f"{value:.2g}".replace("-", MINUS)
            )
            for value in steps
        ]
        line = Markup('<div style="font-size:.85em;margin-top:.4em">{}: {} &ensp;not shaded: {}</div>')
        return line.format(self.quantity, Markup(" ").join(shades), self.unshaded)


def token_strip(result: EditSize | TokenMap, row: int | None = None, *, title: str = "") -> Html:
    """Makes a paragraph of tokens, which show their numbers on hover, above a colour key.

    Shaded tokens bring their own background and their own ink, the others take those of the page:
    it reads in light and dark mode. Strips of one result share a scale: from zero for sizes, around
    zero for a map of signed effects.

    Args:
        result: sizes at each site and token, or a map over rows and tokens.
        row: the site or row to show; None takes the value furthest from zero over all of them.
        title: a line above.

    Raises:
        ValueError: If there is no such row.
    """
    n_rows = len(result.rows)
    if row is not None and not 0 <= row < n_rows:
        raise ValueError(f"row must be in [0, {n_rows - 1}] or None, got {row}")
    rows = range(n_rows) if row is None else [row]
    shades, numbers = _sizes(result) if isinstance(result, EditSize) else _effects(result)
    spans = []
    for place, token in enumerate(result.tokens):
        found = [(value, text) for r in rows if (cell := numbers(r, place)) is not None for value, text in [cell]]
        about = ["subject"] * result.starred[place] + ([text for _, text in found] or [shades.unshaded])
        # Strongest of all sites, with its sign.
        value = max((value for value, _ in found), key=abs, default=None)
        spans.append(_span(token, about, value, shades, starred=result.starred[place]))
    head = Html('<div style="font-weight:600">{}</div>\n').format(title) if title else Html("")
    return head + Html('<div style="{}">{}</div>\n{}').format(_LINE, Markup("").join(spans), shades.key())


_Numbers = Callable[[int, int], tuple[float, str] | None]
"""(row, place) -> what is shaded and what is said; None where there is nothing."""


def _sizes(result: EditSize) -> tuple[_Shades, _Numbers]:
    def number(row: int, place: int) -> tuple[float, str] | None:
        if not bool(result.edited[row, place]):
            return None
        size = float(result.relative[row, place])
        return (size if math.isfinite(size) else 0.0), f"{short_name(result.rows[row])}: |Δ|/|h| = {size:.3g}"

    return _Shades(COLOURS, 0.0, largest(result), "|Δ| / |h|", "not edited"), number


def _effects(result: TokenMap) -> tuple[_Shades, _Numbers]:
    finite = result.values[result.values.isfinite()].abs()
    limit = (float(finite.max()) if finite.numel() else 0.0) or 1.0

    def number(row: int, place: int) -> tuple[float, str] | None:
        value = float(result.values[row, place])
        if not math.isfinite(value):
            return None
        beside = "" if result.control is None else f" (control {float(result.control[row, place]):.3g})"
        return value, f"{short_name(result.rows[row])}: {value:.3g}{beside}".replace("-", MINUS)

    return _Shades(colormaps["RdBu_r"], -limit, limit, result.quantity, "no value"), number


def _span(token: str, about: Sequence[str], value: float | None, shades: _Shades, *, starred: bool) -> Markup:
    style = _TOKEN if value is None else f"{_TOKEN};{shades.style(value)}"
    if starred:
        style += ";font-weight:bold;text-decoration:underline"
    # A token that ends a line ends it here too.
    end = Markup("<br>") if token.endswith("\n") else ""
    return Markup('<span style="{}" title="{}">{}</span>{}').format(
        style, "; ".join(about), escape(visible(token)), end
    )
