"""Plot of an edit's graph: the pruned graph, that of the control, and how faithful kept graphs of growing size are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch

from reftlens.plot.canvas import BLUE, GREY, INK, SMALL, VERMILLION, house_style, number, or_several, sheet, text_width
from reftlens.plot.labels import drawn_token, shortened
from reftlens.results import EditGraph
from reftlens.results.graph import ANSWER, GraphEdge, GraphNode, OneGraph

_ROW, _SLOT = 0.42, 0.62
"""Inches that a row of nodes and a node's label take."""
_LEAST, _CURVE = 3.6, 2.4
"""Inches that a graph is wide at least, and that a curve is high."""
_KINDS = ("edit", "head", "mlp", "answer")
"""From below, where nodes have one layer: a block reads the edit, its heads come first, and its MLP reads them."""
_MOST = 24
"""More edges would not be told apart; the title says how many there are."""


@or_several(EditGraph)
def graph(result: EditGraph, *, share: float = 0.9) -> Figure:
    """Draws the smallest kept graph with this share of the effect, that of the control, and the curves of kept and lost effect.

    Args:
        result: from `analysis.graph`.
        share: of the whole effect.
    """
    both = [(one, one.pruned(share)[:_MOST]) for one in (result.edit, result.control)]
    names = (f"smallest graph with {share:.0%} of the effect", "the same, edit turned to random directions")
    widths = [max(_LEAST, _SLOT * sum(_columns(one, edges).values()) + 0.3) for one, edges in both]
    rows = max(len(_rows(one, edges)) for one, edges in both)
    height = _ROW * max(rows, 4) + 1.4
    whole = number(float(result.edit.whole.mean()), 2)
    subtitle = (
        f"effect {whole}, mean of {len(result.edit.whole)} prompts; e0.1: direction 1 of site 0; 2.1: head 1 of layer 2"
    )
    with house_style():
        width = max(8.5, sum(widths) + 0.6)
        figure = sheet(width, height + _CURVE + 0.6, title="The graph of the edit", subtitle=subtitle)
        grid = figure.subplots(2, 2, width_ratios=widths, height_ratios=[height, _CURVE]).tolist()
        largest = max((abs(edge.value) for _, edges in both for edge in edges), default=1.0)
        for (above, below), (one, edges), name in zip(zip(*grid, strict=True), both, names, strict=True):
            _draw(above, one, edges, result.tokens, largest)
            every = len(one.pruned(share))
            drawn_of = f"{every} of {len(one.edges)} edges" + f", {_MOST} drawn" * (every > _MOST)
            above.set_title(f"{name}\n{drawn_of}", loc="left", size=SMALL)
            _curve(below, one)
        # One scale, so that a control without an effect looks like it.
        ends = [end for axes in grid[1] for end in axes.get_ylim()]
        for axes in grid[1]:
            axes.set_ylim(min(ends), max(ends))
        grid[1][0].set_ylabel("effect")
        figure.legend(handles=_key(), loc="outside lower center", ncols=5, frameon=False)
    return figure


def _shown(one: OneGraph, edges: Sequence[GraphEdge]) -> list[GraphNode]:
    ends = {ANSWER, *(edge.source for edge in edges), *(edge.target for edge in edges)}
    return [node for node in one.nodes if node.name in ends]


def _row(node: GraphNode) -> tuple[int, int]:
    return node.layer, _KINDS.index(node.kind)


def _rows(one: OneGraph, edges: Sequence[GraphEdge]) -> list[tuple[int, int]]:
    return sorted({_row(node) for node in _shown(one, edges)})


def _columns(one: OneGraph, edges: Sequence[GraphEdge]) -> dict[int, int]:
    """Token -> how many nodes stand side by side there."""
    shown = _shown(one, edges)
    places = [(node.pos, _row(node)) for node in shown]
    return {
        pos: max(places.count(place) for place in places if place[0] == pos) for pos in sorted({p for p, _ in places})
    }


def _draw(axes: Axes, one: OneGraph, edges: Sequence[GraphEdge], tokens: Sequence[str], largest: float) -> None:
    rows, columns = _rows(one, edges), _columns(one, edges)
    left = dict(zip(columns, np.cumsum([0, *columns.values()])[:-1].tolist(), strict=True))
    places: dict[str, tuple[float, float]] = {}
    taken: dict[tuple[int, tuple[int, int]], int] = {}
    for node in _shown(one, edges):
        cell = node.pos, _row(node)
        place = taken[cell] = taken.get(cell, -1) + 1
        # Every other node of a row stands higher, so that lines to the others pass below it.
        places[node.name] = left[node.pos] + place, rows.index(cell[1]) + 0.35 * (place % 2)
    for edge in reversed(edges):
        axes.add_patch(
            FancyArrowPatch(
                places[edge.source],
                places[edge.target],
                arrowstyle="-",
                # Straight lines between nodes of one column would run through those between them.
                connectionstyle="arc3,rad=0.18",
                color=VERMILLION if edge.value > 0 else BLUE,
                linewidth=0.6 + 4 * abs(edge.value) / largest,
                alpha=0.8,
                zorder=1,
            )
        )
    for name, (x, y) in places.items():
        box = {"boxstyle": "round,pad=0.2", "facecolor": "white", "edgecolor": INK, "linewidth": 0.8}
        axes.text(x, y, name.partition("@")[0], ha="center", va="center", size=SMALL, color=INK, bbox=box, zorder=2)
    ticks = [left[pos] + (n - 1) / 2 for pos, n in columns.items()]
    labels = [f"{pos}: {shortened(drawn_token(tokens[pos], longest=14))}" for pos in columns]
    axes.set_xticks(ticks, labels)
    if any(text_width(label) > _SLOT * n for label, n in zip(labels, columns.values(), strict=True)):
        axes.tick_params(axis="x", rotation=90)
    axes.set_yticks([])
    axes.set_xlim(-0.6, sum(columns.values()) - 0.4)
    axes.set_ylim(-0.6, max(len(rows), 2) - 0.4)
    for side in ("left", "right", "top"):
        axes.spines[side].set_visible(False)


def _curve(axes: Axes, one: OneGraph) -> None:
    sizes = [max(len(kept), 1) for kept in one.kept_edges]
    axes.plot(sizes, one.kept.mean(1), "o-", color=VERMILLION, markersize=4)
    axes.plot(sizes, one.lost.mean(1), "x--", color=GREY, markersize=5)
    axes.axhline(float(one.whole.mean()), color=INK, linewidth=0.8, linestyle=":")
    axes.axhline(0, color=INK, linewidth=0.8)
    axes.set_xscale("log")
    ticks = [digit * 10**power for power in range(6) for digit in (1, 2, 5) if digit * 10**power <= max(sizes)]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("edges of the kept graph")
    axes.locator_params(axis="y", nbins=5)


def _key() -> list[Line2D]:
    return [
        Line2D([], [], color=VERMILLION, linewidth=3, label="raises"),
        Line2D([], [], color=BLUE, linewidth=3, label="lowers"),
        Line2D([], [], color=VERMILLION, marker="o", markersize=4, label="kept edges alone"),
        Line2D([], [], color=GREY, linestyle="--", marker="x", markersize=5, label="lost without them"),
        Line2D([], [], color=INK, linestyle=":", label="whole effect"),
    ]
