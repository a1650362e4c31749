"""Plot of each site's contribution to an edit: alone, when left out, and as a Shapley value, with its control."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from reftlens.plot.canvas import BLUE, GREY, INK, VERMILLION, house_style, number, or_several, sheet
from reftlens.plot.labels import short_name
from reftlens.results import Ablation

_MOST_ROWS = 48
"""More rows than this would not be read on one page; the subtitle says how many there are."""


@or_several(Ablation)
def ablation(result: Ablation) -> Figure:
    """Draws Shapley values as bars with intervals, and marks for each site alone, left out, and under the control.

    Args:
        result: from `analysis.ablate`.

    Raises:
        ValueError: If there are no sites.
    """
    if not result.sites:
        raise ValueError("ablation needs at least one site, got none")
    shown = min(len(result.sites), _MOST_ROWS)
    kind = "every order" if result.exact else "sampled orders, 95% interval"
    subtitle = f"{result.n_examples} examples; whole edit: {number(result.whole, 2)}; Shapley values sum to it ({kind})"
    subtitle += f"; {shown} of {len(result.sites)} sites" * (shown < len(result.sites))
    places = np.arange(shown)
    values, low, high = (part[:shown].double().numpy() for part in (result.shapley, result.low, result.high))
    with house_style():
        figure = sheet(6.5, 0.34 * max(shown, 2) + 1.15, title="What each site contributes", subtitle=subtitle)
        axes = figure.subplots()
        axes.barh(places, values, height=0.6, color=VERMILLION, alpha=0.55, label="Shapley value")
        if not result.exact:
            axes.errorbar(
                values, places, xerr=[values - low, high - values], fmt="none", ecolor=INK, elinewidth=1, capsize=2.5
            )
        marks = (("alone", result.alone, "o", INK), ("lost without it", result.left_out, "D", BLUE))
        for name, part, marker, colour in marks:
            axes.plot(part[:shown], places, marker, color=colour, markersize=5, markerfacecolor="white", label=name)
        control = "control: alone, in random directions"
        axes.plot(result.control[:shown], places, "x", color=GREY, markersize=5, markeredgewidth=1.5, label=control)
        axes.axvline(0, color=INK, linewidth=0.8)
        axes.set_yticks(places, _names(result.sites[:shown]))
        axes.set_ylim(shown - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
        axes.margins(x=0.06)
        axes.set_xlabel("effect, edited minus base, in the metric's unit")
        figure.legend(loc="outside lower center", ncols=4, frameon=False)
    return figure


def _names(sites: tuple[str, ...]) -> list[str]:
    """Shortens hook names, and numbers several edits at one hook."""
    return [
        short_name(site) + f" ({sites[:place].count(site) + 1})" * (sites.count(site) > 1)
        for place, site in enumerate(sites)
    ]
