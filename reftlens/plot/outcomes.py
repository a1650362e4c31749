"""Plot of the accuracy on each group of prompts: base, edit, and random-direction control."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reftlens.plot.canvas import BLUE, GREY, SMALL, VERMILLION, house_style, listed, number, sheet
from reftlens.plot.labels import wrap
from reftlens.results import Outcome

_BAR = 0.26
"""Of the unit that one group takes."""


def outcomes(results: Sequence[Outcome] | Outcome) -> Figure:
    """Draws, for each group, the fraction of prompts that the base, the edited and the control model answer correctly.

    Args:
        results: from `analysis.outcome`, one for each group.

    Raises:
        ValueError: If there are no groups.
    """
    results = listed(results, Outcome)
    if not results:
        raise ValueError("outcomes needs at least one group, got none")
    subtitle = "KL: mean divergence of the next-token distribution, base to edited, in nats"
    control = "control: edit turned to random directions"
    with house_style():
        figure = sheet(7.5, 0.85 * len(results) + 0.8, title="Prompts answered as wanted", subtitle=subtitle)
        axes = figure.subplots()
        _bars(axes, [item.base for item in results], offset=-_BAR, name="base model", colour=GREY)
        _bars(axes, [item.edited for item in results], offset=0.0, name="edited", colour=VERMILLION)
        _bars(axes, [item.control for item in results], offset=_BAR, name=control, colour=BLUE, hatch="////")
        axes.set_yticks(range(len(results)), [_label(item) for item in results])
        axes.set_ylim(len(results) - 0.5, -0.5)
        axes.set_xlim(0, 1.08)
        axes.set_xticks(np.linspace(0, 1, 6))
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("part of the prompts")
        figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return figure


def _bars(axes: Axes, values: list[float], *, offset: float, name: str, colour: str, hatch: str = "") -> None:
    """One bar a group with its number; hatched bars are open, so that they differ in grey as well."""
    places = np.arange(len(values)) + offset
    face = "white" if hatch else colour
    # A bar of NaN would be lost together with its label.
    drawn = np.nan_to_num(values)
    axes.barh(
        places, drawn, height=_BAR * 0.9, label=name, facecolor=face, edgecolor=colour, hatch=hatch, linewidth=0.8
    )
    for place, length, value in zip(places, drawn, values, strict=True):
        text = number(value, 2) if np.isfinite(value) else "no value"
        axes.annotate(text, (length, place), (3, 0), textcoords="offset points", va="center", size=SMALL)


def _label(item: Outcome) -> str:
    facts = f"right: {item.wanted}; n = {item.n}" + f"; KL {item.kl:.2g}" * bool(np.isfinite(item.kl))
    return "\n".join(wrap(line, width=2.4, size=SMALL) for line in (item.group, facts))
