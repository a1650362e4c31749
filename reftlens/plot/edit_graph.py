"""Plot of an edit's graph: the pruned graph, that of the control, and how faithful kept graphs of growing size are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch

from reftlens.plot.canvas import BLUE, GREY, INK, SMALL, VERMILLION, house_style, number, or_several, sheet, text_width
from reftlens.plot.labels import drawn_token, shortened
from reftlens.results import EditGraph
from reftlens.results.graph import ANSWER, GraphEdge, OneGraph

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
    layouts = [laid_out(one, edges) for one, edges in both]
    smallest = f"smallest graph with {share:.0%} of the effect"
    names = (
        smallest if result.edit.reaches(share) else f"no graph has {share:.0%} of the effect: the nearest",
        f"{'the same' if result.control.reaches(share) else 'the nearest'}, edit turned to random directions",
    )
    widths = [max(_LEAST, _SLOT * sum(layout.slots.values()) + 0.3) for layout in layouts]
    height = _ROW * max(4, *(layout.n_rows for layout in layouts)) + 1.4
    whole = number(float(result.edit.whole.mean()), 2)
    subtitle = (
        f"effect {whole}, mean of {len(result.edit.whole)} prompts; e0.1: direction 1 of site 0; 2.1: head 1 of layer 2"
    )
    with house_style():
        width = max(8.5, sum(widths) + 0.6)
        figure = sheet(width, height + _CURVE + 0.6, title="The graph of the edit", subtitle=subtitle)
        grid = figure.subplots(2, 2, width_ratios=widths, height_ratios=[height, _CURVE]).tolist()
        # Means of either sign may all be 0.
        largest = max((abs(edge.value) for _, edges in both for edge in edges), default=0.0) or 1.0
        for above, below, (one, edges), layout, name in zip(*grid, both, layouts, names, strict=True):
            _draw(above, layout, edges, result.tokens, largest)
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


@final
@dataclass(frozen=True)
class Layout:
    """Where nodes are drawn: tokens from left to right, and blocks from below, with their heads below their MLP."""

    places: Mapping[str, tuple[float, float]]
    """Node -> its slot from the left, and its row from below."""
    ticks: Mapping[int, float]
    """Token -> the middle of its slots."""
    slots: Mapping[int, int]
    """Token -> how many nodes stand side by side there."""
    n_rows: int

    def bend(self, edge: GraphEdge) -> float:
        """Returns how far a line bends, as a part of its length: long ones further, or they would run through nodes between."""
        return min(0.4, 0.12 * max(1.0, abs(self.places[edge.source][1] - self.places[edge.target][1])))


def laid_out(one: OneGraph, edges: Sequence[GraphEdge]) -> Layout:
    """Places the ends of these edges, and the answer.

    Args:
        one: the graph.
        edges: of it, that are drawn.
    """
    ends = {ANSWER, *(edge.source for edge in edges), *(edge.target for edge in edges)}
    cells: dict[tuple[int, tuple[int, int]], list[str]] = {}
    for node in one.nodes:
        if node.name in ends:
            cells.setdefault((node.pos, (node.layer, _KINDS.index(node.kind))), []).append(node.name)
    rows = sorted({row for _, row in cells})
    slots = {
        pos: max(len(names) for (p, _), names in cells.items() if p == pos) for pos in sorted({p for p, _ in cells})
    }
    left = dict(zip(slots, np.cumsum([0, *slots.values()])[:-1].tolist(), strict=True))
    places = {
        # Every other node of a row stands higher, so that lines to the others pass below it.
        name: (left[pos] + (slots[pos] - len(names)) / 2 + place, rows.index(row) + 0.35 * (place % 2))
        for (pos, row), names in cells.items()
        for place, name in enumerate(names)
    }
    return Layout(places, {pos: left[pos] + (n - 1) / 2 for pos, n in slots.items()}, slots, len(rows))


def _draw(axes: Axes, layout: Layout, edges: Sequence[GraphEdge], tokens: Sequence[str], largest: float) -> None:
    places, slots = layout.places, layout.slots
    for edge in reversed(edges):
        axes.add_patch(
            FancyArrowPatch(
                places[edge.source],
                places[edge.target],
                arrowstyle="-",
                connectionstyle=f"arc3,rad={layout.bend(edge):.2f}",
                color=VERMILLION if edge.value > 0 else BLUE,
                linewidth=0.6 + 4 * abs(edge.value) / largest,
                alpha=0.8,
                zorder=1,
            )
        )
    for name, (x, y) in places.items():
        box = {"boxstyle": "round,pad=0.2", "facecolor": "white", "edgecolor": INK, "linewidth": 0.8}
        axes.text(x, y, name.partition("@")[0], ha="center", va="center", size=SMALL, color=INK, bbox=box, zorder=2)
    labels = [f"{pos}: {shortened(drawn_token(tokens[pos], longest=14))}" for pos in slots]
    axes.set_xticks(list(layout.ticks.values()), labels)
    if any(text_width(label) > _SLOT * n for label, n in zip(labels, slots.values(), strict=True)):
        axes.tick_params(axis="x", rotation=90)
    axes.set_yticks([])
    axes.set_xlim(-0.6, sum(slots.values()) - 0.4)
    axes.set_ylim(-0.6, max(layout.n_rows, 2) - 0.4)
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
