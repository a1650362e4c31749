"""Plot of how an edit's change spreads and where the predicted token changes: two maps, each with its control."""

from __future__ import annotations

from matplotlib.figure import Figure

from reftlens.plot.canvas import or_several
from reftlens.plot.effect_map import group_of, prompts_of
from reftlens.plot.heat import heat
from reftlens.plot.labels import star
from reftlens.results import Spread


@or_several(Spread)
def spread(result: Spread) -> Figure:
    """Draws the distance from the base run, and where the logit lens gives another token.

    Args:
        result: from `analysis.spread`.
    """
    return heat(
        [group_of(result.distance, signed=False), group_of(result.mind, signed=False)],
        rows=result.distance.rows,
        columns=star(result.distance.tokens, result.distance.starred),
        title="How far the edit reaches, and where the model changes its mind",
        subtitle=prompts_of(result.distance),
    )
