"""Plot of what an edit explains of a finetuned model, beside its controls, and of what each replaced component explains."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from reftlens.plot.canvas import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    SMALL,
    VERMILLION,
    house_style,
    number,
    or_several,
    panel_title,
    sheet,
)
from reftlens.plot.labels import drawn, wrap
from reftlens.results import Explained, ExplainedFinetune

_MOST_SITES = 16
"""Single sites that are drawn, the best ones."""
_LEAST = -0.5
"""Where bars of worse shares are cut, because a share has no smallest value; their numbers say how far they reach."""
_POINTS = {
    "attn_out": (VERMILLION, "o"),
    "q and k": (ORANGE, "s"),
    "v": (GREEN, "^"),
    "mlp_out": (BLUE, "D"),
    "resid_post": (GREY, "x"),
}
_NAME = 2.6
"""Inches for the name of a bar."""


@or_several(ExplainedFinetune)
def explain_finetune(result: ExplainedFinetune) -> Figure:
    """Draws the shares of the edit found, of its controls and of each single site, and those of replaced components.

    Args:
        result: from `analysis.explain_finetune`.
    """
    best = sorted(result.layers, key=lambda one: -one.share if one.share == one.share else math.inf)[:_MOST_SITES]
    alone = [one for one in result.layers if one in best]
    bars = [
        *((one, f"{one.name}, {one.prompts}", VERMILLION, "") for one in result.shares),
        *((one, f"control: {one.name}" + ", far" * (one.prompts == "far"), BLUE, "////") for one in result.controls),
        *((one, f"rank {result.path[0].rank} at {one.name}", GREY, "") for one in alone),
    ]
    subtitle = "1 - KL(finetuned || edited) / KL(finetuned || base), a ratio of sums; equal outputs do not mean an equal mechanism"
    layered = [one for one in result.replaced if one.head is None and one.point in _POINTS]
    with house_style():
        height = max(0.34 * len(bars) + 1.2, 3.4 if layered else 0.0)
        title = f"How much of the finetune a {result.kind} of rank {result.rank} explains"
        figure = sheet(9.0 if layered else 6.5, height, title=title, subtitle=subtitle)
        panels = figure.subplots(1, 2, width_ratios=[3, 2]).tolist() if layered else [figure.subplots()]
        _shares(panels[0], bars)
        if layered:
            _replaced(panels[1], result, width=2.2)
            figure.legend(loc="outside lower right", ncols=6, frameon=False)
    return figure


def _shares(axes: Axes, bars: Sequence[tuple[Explained, str, str, str]]) -> None:
    for place, (one, _, colour, hatch) in enumerate(bars):
        # A bar of NaN would be lost together with its label.
        length = max(one.share, _LEAST) if math.isfinite(one.share) else 0.0
        axes.barh(place, length, height=0.7, facecolor="white" if hatch else colour, edgecolor=colour, hatch=hatch)
        text = number(one.share, 2) if math.isfinite(one.share) else "too little to explain"
        axes.annotate(text, (max(length, 0), place), (3, 0), textcoords="offset points", va="center", size=SMALL)
    axes.set_yticks(range(len(bars)), [wrap(name, width=_NAME, size=SMALL) for _, name, _, _ in bars])
    axes.set_ylim(len(bars) - 0.4, -0.6)
    axes.set_xlim(min(0.0, *(max(one.share, _LEAST) for one, *_ in bars if math.isfinite(one.share)), 0.0), 1.18)
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("share explained; held out where nothing is said")


def _replaced(axes: Axes, result: ExplainedFinetune, *, width: float) -> None:
    for point, (colour, mark) in _POINTS.items():
        rows = [one for one in result.replaced if one.point == point and one.head is None]
        if rows:
            layers, shares = [one.layer for one in rows], [max(one.alone, _LEAST) for one in rows]
            axes.plot(layers, shares, mark, color=colour, linestyle="-", linewidth=1, markersize=5, label=drawn(point))
    if math.isfinite(result.replaced_share):
        axes.axhline(max(result.replaced_share, _LEAST), color=INK, linewidth=1, linestyle=":", label="the edit found")
    panel_title(axes, f"its own activations in the base, {result.n_replaced} prompts", width=width)
    axes.axhline(0, color=INK, linewidth=0.8)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("layer")
    axes.set_ylabel("share explained")
