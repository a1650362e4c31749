"""Plot of what several methods say about the vectors of an edit, each with the range that chance reaches."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from reftlens.plot.bar_panels import MOST, bar_panels, draw_bars
from reftlens.plot.canvas import BLUE, GREY, PALE, VERMILLION, listed, panel_title
from reftlens.plot.labels import drawn, drawn_token, short_name
from reftlens.results import Meaning

_LONGEST = 22
_UNITS = {"change of the logit": "change of the logit / that of random vectors"}


def meanings(meanings: Sequence[Meaning] | Meaning) -> Figure:
    """Draws the furthest names of each method and vector, one panel each: at most eight, those with the smallest p.

    Bars inside the shaded band are grey: some score of some look is as far in more than 5% of sets
    of random vectors.

    Args:
        meanings: from `analysis.readouts`.

    Raises:
        ValueError: If there is none.
    """
    given = listed(meanings, Meaning)
    if not given:
        raise ValueError("meanings needs at least one result, got none")
    smallest = sorted(range(len(given)), key=lambda place: given[place].p)[:MOST]
    shown = [given[place] for place in sorted(smallest)]
    columns = min(2, len(shown))
    bars = max(3, *(len(item.said) for item in shown))
    width = 3.5 * columns if columns > 1 else 6.5
    subtitle = (
        f"band: what {max(item.n_null for item in given)} sets of random vectors reach, over all looks; scales differ"
    )
    subtitle += f"; {len(shown)} of {len(given)} looks, those with the smallest p" * (len(shown) < len(given))
    return bar_panels(
        shown,
        lambda axes, item: _panel(axes, item, bars=bars, width=width / columns - 1.0),
        bars=bars,
        width=width,
        title="What each method says the edit's vectors mean",
        subtitle=subtitle,
        key=_key(),
    )


def _panel(axes: Axes, item: Meaning, *, bars: int, width: float) -> None:
    scores = [score for _, _, score, *_ in item.said]
    colours = [GREY if abs(score) <= item.chance else VERMILLION if score > 0 else BLUE for score in scores]
    names = [_label(name) for name, *_ in item.said]
    draw_bars(axes, scores, names, colours, band=(-item.chance, item.chance), bars=bars)
    axes.set_xlabel(drawn(_UNITS.get(item.unit, item.unit)))
    panel_title(axes, drawn(f"{item.method}: {item.looked_at}, {short_name(item.where)}"), width=width)


def _label(name: str) -> str:
    """A context is cut on the left, so that the token in brackets stays."""
    mark = name.rfind("[[")
    if mark < 0:
        return drawn_token(name, longest=_LONGEST)
    before, token = name[:mark], drawn_token(name[mark:], longest=_LONGEST - 6)
    kept = before[-max(0, _LONGEST - len(token)) :] if len(token) < _LONGEST else ""
    return drawn_token(kept, longest=2 * _LONGEST) + token


def _key() -> list[Patch]:
    return [
        Patch(color=VERMILLION, label="raised, beyond chance"),
        Patch(color=BLUE, label="lowered, beyond chance"),
        Patch(color=GREY, label="within chance"),
        Patch(color=PALE, label="95% of sets of random vectors stay within"),
    ]
