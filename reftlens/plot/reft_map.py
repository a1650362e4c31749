"""Heat map of what an edit trained in each cell gains on held-out prompts, beside edits trained on shuffled answers."""

from __future__ import annotations

from matplotlib.figure import Figure

from reftlens.plot.canvas import or_several
from reftlens.plot.heat import Group, Panel, heat
from reftlens.plot.labels import drawn_token
from reftlens.results import ReftMap


@or_several(ReftMap)
def reft_map(result: ReftMap, *, title: str = "") -> Figure:
    """Draws the gain of each cell's edit. The earliest layer is at the bottom.

    Args:
        result: from `rl.reft_map`.
        title: of the figure.
    """
    panels = [
        Panel(result.gain().double().numpy(), "trained on the answers"),
        Panel(result.control_gain().double().numpy(), "control: on shuffled answers"),
    ]
    return heat(
        [Group(panels, f"gain in {result.score}")],
        rows=result.rows,
        columns=[drawn_token(name) for name in result.columns],
        title=title or "What an edit trained in each cell gains",
        subtitle=f"mean of {len(result.base)} held-out prompts; {result.budget}",
    )
