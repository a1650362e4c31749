"""Plot of an edit that was carried to another model: what is left of its effect, and what the maps represent of each direction."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reftlens.plot.canvas import BLUE, GREY, INK, SMALL, VERMILLION, house_style, number, or_several, panel_title, sheet
from reftlens.plot.labels import drawn, wrap
from reftlens.results import Carried

_LEAST = -1.0
"""R^2 is drawn down to here: a map that is worse than the mean may be worse by any factor."""


@or_several(Carried)
def carried(result: Carried, *, title: str = "") -> Figure:
    """Draws the effect of each edit, and R^2 along each direction; crosses are maps of shuffled prompts.

    Args:
        result: from `analysis.carry`.
        title: of the figure.
    """
    with house_style():
        height = max(2.4, 0.3 * len(result.effects) + 0.6, 0.3 * len(result.directions) + 0.6)
        subtitle = f"{result.n_held_out} held-out prompts; R^2 below {_LEAST:g} is drawn there"
        figure = sheet(9.0, height, title=title or "An edit on another model", subtitle=subtitle)
        left, right = figure.subplots(1, 2).tolist()
        _effects(left, result)
        _directions(right, result)
    return figure


def _effects(axes: Axes, result: Carried) -> None:
    values = [effect.effect for effect in result.effects]
    # The edits that count are coloured, and controls are grey.
    known = ("on its own model", "carried", "trained on the target")
    colours = [
        VERMILLION if effect.edit == "carried" else BLUE if effect.edit in known else GREY for effect in result.effects
    ]
    axes.barh(range(len(values)), np.nan_to_num(values), color=colours, height=0.7)
    for place, value in enumerate(values):
        axes.annotate(number(value, 2), (value, place), (3, 0), textcoords="offset points", va="center", size=SMALL)
    axes.set_yticks(range(len(values)), [wrap(drawn(effect.edit), width=1.8, size=SMALL) for effect in result.effects])
    axes.set_ylim(len(values) - 0.5, -0.5)
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.margins(x=0.18)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(wrap(f"effect in {drawn(result.score)}", width=2.6, size=SMALL))


def _directions(axes: Axes, result: Carried) -> None:
    places = np.arange(len(result.directions), dtype=float)
    for name, offset, colour in (("read", -0.18, BLUE), ("write", 0.18, VERMILLION)):
        axes.plot(_shown(result, name), places + offset, "o", color=colour, markersize=5, label=f"what it {name}s")
        label = "shuffled prompts" if name == "write" else None
        axes.plot(_shown(result, f"shuffled_{name}"), places + offset, "x", color=GREY, markersize=4, label=label)
    names = [wrap(f"{drawn(one.site)}, {one.index}", width=1.8, size=SMALL) for one in result.directions]
    axes.set_yticks(places, names)
    axes.set_ylim(len(places) - 0.5, -0.5)
    axes.set_xlim(_LEAST - 0.1, 1.1)
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("R^2 along each direction")
    panel_title(axes, "directions, strongest first", width=3.0)
    axes.legend(loc="upper center", bbox_to_anchor=(0.4, -0.25), ncols=3, frameon=False)


def _shown(result: Carried, name: str) -> Sequence[float]:
    return [
        max(_LEAST, value) if np.isfinite(value) else value
        for value in (getattr(one, name) for one in result.directions)
    ]
