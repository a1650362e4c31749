"""Plot of the tokens that each write direction promotes and suppresses, with the band of random directions."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from reftlens.plot.bar_panels import MOST, bar_panels, draw_bars
from reftlens.plot.canvas import BLUE, GREY, PALE, VERMILLION, listed, panel_title
from reftlens.plot.labels import drawn_token, short_name
from reftlens.results import DirectionReadout, Identified

TWO_QUESTIONS = (
    "Named before looking, these have a test of their own: p is the part of random directions that change this one token's logit "
    "as much, while the grey band is for the best of all tokens, so a token inside the band can have a small p."
)
"""What a reader of the figure and of a table of named tokens must be told."""


def readout(
    readouts: Sequence[DirectionReadout] | DirectionReadout, *, identified: Sequence[Identified] = ()
) -> Figure:
    """Draws the tokens with the largest logit changes, one panel per site and direction, at most eight of them.

    Bars inside the shaded band are grey: random directions reach such values at some token of some
    examined direction.

    Args:
        readouts: from `analysis.read_directions`.
        identified: the `sites` of `analysis.identify`. Each panel then says in how many dimensions
            its direction is identified.

    Raises:
        ValueError: If there are no directions.
    """
    readouts = listed(readouts, DirectionReadout)
    if not readouts:
        raise ValueError("readout needs at least one direction, got none")
    n_given, readouts = len(readouts), readouts[:MOST]
    columns = min(2, len(readouts))
    bars = max(3, *(len(item.promoted) + len(item.suppressed) for item in readouts))
    width = max(6.5, 3.2 * columns)
    n_null = " or ".join(str(n) for n in sorted({item.n_null for item in readouts}))
    subtitle = f"read straight through the unembedding; band: {n_null} random directions"
    subtitle += "; scales differ" * (len(readouts) > 1)
    subtitle += f"; the first {len(readouts)} of {n_given} directions" * (len(readouts) < n_given)
    return bar_panels(
        readouts,
        lambda axes, item: _panel(axes, item, _known(item, identified), bars=bars, width=width / columns - 0.9),
        bars=bars,
        width=width,
        title="Tokens that each write direction moves most",
        subtitle=subtitle,
        key=_key(),
    )


def _known(item: DirectionReadout, identified: Sequence[Identified]) -> str:
    """Says in how many dimensions a write direction is identified; nothing where that was not measured."""
    for site in identified:
        if site.where == item.where and item.direction < len(site.write_free):
            known = site.write_dimensions - float(site.write_free[item.direction])
            return f": identified in {known:.0f} of {site.write_dimensions} dimensions (local)"
    return ""


def _panel(axes: Axes, item: DirectionReadout, known: str, *, bars: int, width: float) -> None:
    moved = [*item.promoted, *item.suppressed]
    colours = [VERMILLION if change > item.null_high else GREY for _, change in item.promoted]
    colours += [BLUE if change < item.null_low else GREY for _, change in item.suppressed]
    names = [drawn_token(token) for token, _ in moved]
    draw_bars(axes, [change for _, change in moved], names, colours, band=(item.null_low, item.null_high), bars=bars)
    axes.axhline(len(item.promoted) - 0.5, color=GREY, linewidth=0.5, linestyle=":")
    axes.set_xlabel("mean change of the logit")
    panel_title(axes, f"{short_name(item.where)}, direction {item.direction}{known}", width=width)


def _key() -> list[Patch]:
    return [
        Patch(color=VERMILLION, label="promoted, beyond the band"),
        Patch(color=BLUE, label="suppressed, beyond the band"),
        Patch(color=GREY, label="inside the band"),
        Patch(color=PALE, label="95% of random directions move no token out of it"),
    ]
