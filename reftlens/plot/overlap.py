"""Plot of the overlap of two subspaces, with its null distributions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from reftlens.plot.canvas import BLUE, GREY, ORANGE, SMALL, VERMILLION, house_style, listed, sheet
from reftlens.plot.labels import drawn, short_name, wrap
from reftlens.results import Overlap

_NULLS = ((GREY, ""), (BLUE, "////"), (ORANGE, "...."))
"""Colour and hatch of each null's band, in their order."""
_LINE = 0.24


def overlap(results: Sequence[Overlap] | Overlap) -> Figure:
    """Draws the score of each pair over the 5-95% range of its nulls. p is the fraction of a null with as much overlap.

    Args:
        results: from `analysis.overlap`, drawn in this order.

    Raises:
        ValueError: If there are no results, or more nulls than can be distinguished.
    """
    results = listed(results, Overlap)
    if not results:
        raise ValueError("overlap needs at least one result, got none")
    nulls = list(dict.fromkeys(null for result in results for null in result.null_scores))
    if len(nulls) > len(_NULLS):
        raise ValueError(f"overlap draws at most {len(_NULLS)} nulls, got {', '.join(nulls)}")
    subtitle = "score: mean squared cosine of the principal angles; 1: the smaller subspace lies inside the larger"
    with house_style():
        height = (_LINE * max(len(nulls), 1) + 0.3) * len(results) + 0.9
        figure = sheet(7.5, height, title="What directions share", subtitle=subtitle)
        axes = figure.subplots()
        for place, result in enumerate(results):
            _pair(axes, place, result, nulls)
        axes.set_yticks(range(len(results)), [_label(result) for result in results])
        axes.set_ylim(len(results) - 0.5, -0.5)
        axes.set_xlim(0, 1.15)
        axes.set_xticks(np.linspace(0, 1, 6))
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("score")
        figure.legend(handles=_key(nulls), loc="outside lower center", ncols=3, frameon=False)
    return figure


def _pair(axes: Axes, place: int, result: Overlap, nulls: list[str]) -> None:
    step = 0.7 / max(len(nulls), 1)
    for index, null in enumerate(nulls):
        if null not in result.null_scores:
            continue
        y = place + (index - (len(nulls) - 1) / 2) * step
        low, median, high = np.quantile(result.null_scores[null].double().numpy(), [0.05, 0.5, 0.95])
        colour, hatch = _NULLS[index]
        face = "white" if hatch else colour
        axes.barh(y, high - low, left=low, height=0.8 * step, facecolor=face, edgecolor=colour, hatch=hatch)
        axes.plot([median, median], [y - 0.4 * step, y + 0.4 * step], color="black", linewidth=1.2)
        text = f"p = {result.p(null):.2g}"
        # To the right of the measured line, which would strike it out.
        axes.annotate(text, (max(high, result.score), y), (7, 0), textcoords="offset points", va="center", size=SMALL)
    reach = [place - 0.4, place + 0.4]
    axes.plot([result.score] * 2, reach, color=VERMILLION, linewidth=2.2, solid_capstyle="butt", zorder=3)


def _label(result: Overlap) -> str:
    hook_name, comma, rest = result.first.rpartition(",")
    angles = ", ".join(f"{angle:.0f}" for angle in result.angles[:4].tolist()) + ", ..." * (len(result.angles) > 4)
    first = f"{short_name(hook_name)}{comma}{drawn(rest)}" if comma else short_name(rest)
    names = f"{first} and {drawn(result.second)}"
    return f"{wrap(names, width=2.6, size=SMALL)}\nat {angles} degrees"


def _key(nulls: list[str]) -> list[Patch | Line2D]:
    key: list[Patch | Line2D] = [Line2D([], [], color=VERMILLION, linewidth=2.2, label="measured")]
    for null, (colour, hatch) in zip(nulls, _NULLS, strict=False):
        face = "white" if hatch else colour
        key.append(Patch(facecolor=face, edgecolor=colour, hatch=hatch, label=f"{drawn(null)}, 5-95%, median"))
    return key
