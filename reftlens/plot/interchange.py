"""Plot of how far interchanges move the answer towards the source's: inside a subspace, and for its controls."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reftlens.plot.canvas import BLUE, GREY, INK, SMALL, VERMILLION, house_style, listed, number, sheet
from reftlens.plot.labels import short_name
from reftlens.results import Interchanged, Swap


def interchange(results: Sequence[Interchanged] | Interchanged) -> Figure:
    """Draws one panel per site: bars for single interchanges, dots for random subspaces and placebos, and the verdict above.

    Args:
        results: from `analysis.interchange`, one for each site.

    Raises:
        ValueError: If there are no results.
    """
    results = listed(results, Interchanged)
    if not results:
        raise ValueError("interchange needs at least one result, got none")
    width = max(6.5, 3.2 * min(len(results), 3))
    columns = min(len(results), 3)
    lines = -(-len(results) // columns)
    subtitle = "0: unpatched run, 1: run on the source prompt (logit of the source's answer minus that of the other's)"
    with house_style():
        figure = sheet(
            width,
            2.5 * lines,
            title="Coordinates of a source prompt put into the run on another prompt",
            subtitle=subtitle,
        )
        # One scale for all: a bar that reaches nowhere looks like one.
        grid = figure.subplots(lines, columns, squeeze=False, sharex=True).ravel().tolist()
        for index, (axes, result) in enumerate(zip(grid, results, strict=False)):
            _panel(axes, result, names=index % columns == 0)
        for axes in grid[len(results) :]:
            axes.remove()
    return figure


def _panel(axes: Axes, result: Interchanged, *, names: bool) -> None:
    single: list[tuple[str, Swap, str]] = [
        ("whole activation", result.whole, GREY),
        ("inside the subspace", result.inside, VERMILLION),
        ("   read by later layers", result.from_read, VERMILLION),
        ("   not read later", result.from_unread, VERMILLION),
        ("its complement", result.complement, BLUE),
    ]
    for place, (_, swap, colour) in enumerate(single):
        axes.barh(place, swap.moved, color=colour, height=0.65, alpha=0.55 if 2 <= place <= 3 else 1.0)
        axes.annotate(
            number(swap.moved, 2),
            (max(swap.moved, 0.0), place),
            (3, 0),
            textcoords="offset points",
            va="center",
            size=SMALL,
        )
    for place, swaps in ((5, result.random), (6, result.placebo)):
        axes.plot([swap.moved for swap in swaps], [place] * len(swaps), "|", color=INK, markersize=9)
    labels = [name for name, _, _ in single] + ["random subspaces", "norm-matched placebos"]
    axes.set_yticks(range(7), labels if names else [""] * 7)
    axes.set_ylim(6.6, -0.6)
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.margins(x=0.15)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelbottom=True)
    axes.set_xlabel("part of the way to the source")
    verdict = "illusion test: undecided" if result.verdict == "no power" else result.verdict
    facts = f"{short_name(result.where)}, rank {result.rank}; {result.n} pairs\np = {result.p:.2g}; {verdict}"
    axes.set_title(facts, loc="left", color=INK)
