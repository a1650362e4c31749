"""Plot of the path to the smallest edit: effect and side effect of each step, against its size."""

from __future__ import annotations

from collections.abc import Callable

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from reftlens.plot.canvas import BLUE, GREY, INK, house_style, or_several, sheet
from reftlens.plot.labels import drawn
from reftlens.results import Minimal
from reftlens.results.known import Smaller

_MARKS = ("o", "s", "^", "D", "v")


@or_several(Minimal)
def minimal(result: Minimal) -> Figure:
    """Draws the effect and the KL elsewhere of each edit on the path, with what had to be kept, and edits of other seeds.

    Args:
        result: from `analysis.minimal`.
    """
    first = result.path[0]
    subtitle = (
        f"each step leaves out what its name says; {result.n_examples} prompts with a wanted answer, {result.n_kept} to stay; "
        f"dotted: {result.share:.0%} of the effect, and the largest KL allowed"
    )
    with house_style():
        figure = sheet(6.5, 2.9, title="How small the edit can be", subtitle=subtitle)
        effect, kl = figure.subplots(1, 2).tolist()
        _panel(effect, result, lambda step: step.effect, result.share * first.effect)
        effect.set_ylabel("effect, in nats")
        _panel(kl, result, lambda step: step.kl, result.kl)
        kl.set_ylabel("KL elsewhere, in nats")
        handles, labels = effect.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    return figure


def _panel(axes: Axes, result: Minimal, height: Callable[[Smaller], float], limit: float) -> None:
    path, seeds = list(map(height, result.path)), list(map(height, result.seeds))
    sizes = [step.numbers for step in result.path]
    axes.plot(sizes, path, color=GREY, linewidth=1, zorder=1)
    for place, (step, value) in enumerate(zip(result.path, path, strict=True)):
        mark = _MARKS[place % len(_MARKS)]
        # Steps that leave nothing out lie on one another: hollow marks of growing size stay
        # visible.
        size = 9.0 - 1.2 * place
        axes.plot(
            step.numbers, value, mark, color=BLUE, markersize=size, markerfacecolor="none", label=_name(step.stage)
        )
    axes.axhline(limit, color=INK, linewidth=1, linestyle=":")
    if seeds:
        numbers = [step.numbers for step in result.seeds]
        axes.plot(numbers, seeds, "x", color=INK, markersize=5, linestyle="", label="other seeds")
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1,) if max(sizes) > 30 * min(sizes) else (1, 2, 5)))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("numbers in the edit")
    # From 0, so that a loss of a few percent looks like one.
    low, high = min(0.0, *path, *seeds), max(*path, *seeds, limit)
    axes.set_ylim(low, high + 0.1 * (high - low) if high > low else low + 1)


def _name(stage: str) -> str:
    return "the whole edit" if stage == "all" else drawn(stage)
