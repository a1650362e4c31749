"""An edit's graph as a drawing of a page: each node says what it is, and each edge what it carries."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from reftlens.plot.canvas import number
from reftlens.plot.edit_graph import Layout, laid_out
from reftlens.plot.labels import drawn_token
from reftlens.results import EditGraph
from reftlens.results.graph import ANSWER, GraphEdge, OneGraph

_SLOT, _ROW, _EDGE, _BOTTOM = 72, 46, 34, 26
"""Room for a node, for a row, at the edges, and for the tokens."""
_WIDEST, _NARROWEST = 7.0, 1.0
"""Lines of the largest edge, and of one that carries next to nothing."""

_WIRE = Markup(
    '<g class="move wire {sign}"><title>{said}</title><path d="M{x1},{y1}Q{x3},{y3} {x2},{y2}" stroke-width="{width}"/></g>'
)
_NODE = Markup(
    '<g class="move node"><title>{said}</title><rect x="{left}" y="{top}" width="48" height="20" rx="5"/>'
    '<text x="{x}" y="{base}" text-anchor="middle">{name}</text></g>'
)
_WHOLE = Markup("""<figure class="plane wiring">
<svg viewBox="0 0 {wide} {high}" width="{wide}" height="{high}" role="group" aria-label="{said}">
<g class="cells" data-columns="1">{wires}{nodes}</g>{tokens}</svg>
<p class="key"><span class="raises">raises the metric</span> <span class="lowers">lowers it</span> wider: more; point at a node
or a line for its numbers</p>
</figure>""")


def wiring(result: EditGraph, one: OneGraph) -> Markup:
    """A drawing of the smallest graph with most of the effect; what is pointed at says its numbers.

    Args:
        result: from `analysis.graph`.
        one: its edit, or its control.
    """
    edges = one.pruned()
    layout = laid_out(one, edges)
    high = _EDGE + _ROW * layout.n_rows + _BOTTOM
    named = {node.name: node for node in one.nodes}
    nodes = []
    for name in layout.places:
        node, (x, y) = named[name], _at(layout, name)
        what = "the answer: whole effect" if name == ANSWER else f"{result.said(node)}: effect alone"
        nodes.append(
            _NODE.format(
                said=f"{name}, {what} {number(node.effect, 3)}",
                name=name.partition("@")[0],
                left=x - 24,
                top=y - 10,
                x=x,
                base=y + 4,
            )
        )
    tokens = [
        Markup('<text x="{}" y="{}" text-anchor="middle">{}: {}</text>').format(
            _across(tick), high - 6, pos, drawn_token(result.tokens[pos], longest=7)
        )
        for pos, tick in layout.ticks.items()
    ]
    return _WHOLE.format(
        wide=_EDGE * 2 + _SLOT * sum(layout.slots.values()),
        high=high,
        said=f"{len(edges)} edges; {result.headline()}",
        wires=Markup("").join(_wires(layout, edges)),
        nodes=Markup("").join(nodes),
        tokens=Markup("").join(tokens),
    )


def _wires(layout: Layout, edges: Sequence[GraphEdge]) -> list[Markup]:
    # Means of either sign may all be 0.
    largest = max((abs(edge.value) for edge in edges), default=0.0) or 1.0
    wires = []
    # The largest last, on top of the others.
    for edge in reversed(edges):
        (x1, y1), (x2, y2), bend = _at(layout, edge.source), _at(layout, edge.target), layout.bend(edge)
        wires.append(
            _WIRE.format(
                sign="raises" if edge.value > 0 else "lowers",
                said=f"{edge.source} to {edge.target}: {number(edge.value, 3)}",
                x1=x1,
                y1=y1,
                x2=x2,
                y2=y2,
                # Bent to the right of its way: y grows downwards.
                x3=round((x1 + x2) / 2 + bend * (y1 - y2), 1),
                y3=round((y1 + y2) / 2 + bend * (x2 - x1), 1),
                width=round(_NARROWEST + (_WIDEST - _NARROWEST) * abs(edge.value) / largest, 2),
            )
        )
    return wires


def _across(slot: float) -> float:
    return round(_EDGE + _SLOT * (slot + 0.5), 1)


def _at(layout: Layout, name: str) -> tuple[float, float]:
    slot, row = layout.places[name]
    return _across(slot), round(_EDGE / 2 + _ROW * (layout.n_rows - row - 0.5), 1)
