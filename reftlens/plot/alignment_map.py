"""Heat map of the interchange accuracy in each cell, beside subspaces trained on arbitrary labels and the whole activation."""

from __future__ import annotations

from matplotlib.figure import Figure

from reftlens.plot.canvas import or_several
from reftlens.plot.heat import Group, Panel, heat
from reftlens.plot.labels import drawn_token
from reftlens.results import AlignmentMap


@or_several(AlignmentMap)
def alignment_map(result: AlignmentMap, *, title: str = "") -> Figure:
    """Draws the accuracy of each cell's subspace on held-out pairs. The earliest layer is at the bottom.

    Args:
        result: from `analysis.alignment_map`.
        title: of the figure.
    """
    panels = [
        Panel(result.accuracy().double().numpy(), "a subspace, trained"),
        Panel(result.control().double().numpy(), "control: arbitrary labels"),
        Panel(result.whole.mean(-1).double().numpy(), "the whole activation"),
    ]
    return heat(
        [Group(panels, "interchange accuracy")],
        rows=result.rows,
        columns=[drawn_token(name) for name in result.columns],
        title=title or "Where a swap gives the predicted answer",
        subtitle=f"{len(result.labels)} held-out pairs; {result.budget}",
    )
