"""Plot of decoding time with an edit relative to the base, one dot per round."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from reftlens.plot.canvas import BLUE, INK, SMALL, VERMILLION, house_style, or_several, sheet
from reftlens.plot.labels import wrap
from reftlens.results import Overhead


@or_several(Overhead)
def overhead(result: Overhead) -> Figure:
    """Draws the ratio of every round, its median and quartiles, and how many changes the edits computed.

    Args:
        result: times of each round.
    """
    base, others = result.rows[0], result.rows[1:]
    subtitle = (
        f"{result.claim.model}: CPU time over the base model's in the same round ({len(base.seconds)} rounds); "
        "bar: quartiles, tick: median; control: the base model again"
    )
    with house_style():
        figure = sheet(7.0, 0.62 * len(others) + 0.7, title="Time of decoding under an edit", subtitle=subtitle)
        axes = figure.subplots()
        axes.axvline(1, color=INK, linewidth=0.8)
        for place, row in enumerate(others):
            ratios = np.array(row.seconds) / np.array(base.seconds)
            low, middle, high = result.ratio(row)
            axes.plot([low, high], [place, place], color=BLUE, linewidth=6, alpha=0.35, solid_capstyle="butt")
            axes.plot([middle], [place], color=VERMILLION, marker="|", markersize=18, markeredgewidth=2)
            axes.plot(ratios, [place] * len(ratios), color=BLUE, marker="o", markersize=4, linestyle="")
        labels = [f"{row.run}\n{row.changes:,} changes in {row.passes:,} forward passes" for row in others]
        axes.set_yticks(
            range(len(others)),
            ["\n".join(wrap(line, width=2.6, size=SMALL) for line in text.split("\n")) for text in labels],
        )
        axes.set_ylim(len(others) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("time / time of the base model")
    return figure
