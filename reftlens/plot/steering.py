"""Plot of steering methods at calibrated strength: the score of each, with the range over seeds."""

from __future__ import annotations

from matplotlib.figure import Figure

from reftlens.plot.canvas import BLUE, GREY, SMALL, house_style, number, or_several, sheet
from reftlens.plot.labels import wrap
from reftlens.results import SteeringComparison


@or_several(SteeringComparison)
def steering(result: SteeringComparison) -> Figure:
    """Draws one line per method. The dashed line is the reference.

    Args:
        result: from `rl.baselines.compare_steering`.
    """
    lines = result.by_method()
    run = result.runs[0]
    subtitle = (
        f"{len(run.test.texts)} test prompts; {result.n_candidates} candidates per method; bars: the seeds' range"
    )
    with house_style():
        figure = sheet(7.0, 0.3 * len(lines) + 1.0, title="Steering at calibrated strength", subtitle=subtitle)
        axes = figure.subplots()
        for place, line in enumerate(lines):
            if line["method"] == result.reference:
                axes.axvline(line["overall"], color=GREY, linewidth=0.8, linestyle="--", zorder=0)
            axes.plot([line["lowest seed"], line["highest seed"]], [place, place], color=BLUE, linewidth=2.0)
            axes.plot(line["overall"], place, "o", color=BLUE, markersize=5)
            right = max(line["highest seed"], line["overall"])
            axes.annotate(
                number(line["overall"], 2), (right, place), (6, 0), textcoords="offset points", va="center", size=SMALL
            )
        axes.set_yticks(range(len(lines)), [wrap(line["method"], width=2.0, size=SMALL) for line in lines])
        axes.set_ylim(len(lines) - 0.5, -0.5)
        # Scores end at 2; the rest is room for their numbers.
        axes.set_xlim(-0.03, 2.2)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("score, 0 to 2")
    return figure
