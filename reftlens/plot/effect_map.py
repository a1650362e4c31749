"""Heat map of a quantity over rows (layers or sites) and tokens, with its control."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from reftlens.plot.canvas import or_several
from reftlens.plot.heat import Group, Panel, heat
from reftlens.plot.labels import star
from reftlens.results import TokenMap


@or_several(TokenMap)
def effect_map(result: TokenMap, *, title: str = "") -> Figure:
    """Draws a map over rows and tokens. The earliest row is at the bottom, and subject tokens have a star.

    Colours are symmetrical around zero. Cells show their numbers where these fit. Cells that are no
    further from zero than some cell of the control are grey. Positions at which the prompts have
    different tokens are named by role.

    Args:
        result: the map, perhaps with its control.
        title: of the figure; the name of the quantity if empty.

    Raises:
        ValueError: If there are no rows or no tokens.
    """
    return heat(
        [group_of(result)],
        rows=result.rows,
        columns=star(result.labels, result.starred),
        title=title or result.quantity[:1].upper() + result.quantity[1:],
        subtitle=prompts_of(result),
    )


def group_of(result: TokenMap, *, signed: bool = True) -> Group:
    """The map beside its control."""
    if result.control is None:
        return Group([Panel(result.values.double().numpy())], result.quantity, signed)
    values = result.values.double().numpy()
    reach = np.abs(result.control[result.control.isfinite()].double().numpy()).max(initial=0.0)
    # Against the control's largest cell, since a reader looks for the map's. NaN is no cell.
    measured = Panel(values, "measured", covered=np.abs(np.nan_to_num(values, nan=np.inf)) <= reach)
    control = Panel(result.control.double().numpy(), f"control: {result.control_name}")
    return Group([measured, control], result.quantity, signed)


def prompts_of(result: TokenMap) -> str:
    """How many prompts, and what a star means."""
    prompts = "one prompt" if result.n_prompts == 1 else f"mean of {result.n_prompts} prompts"
    # Without the tokens of the others, those of the first stand for all.
    prompts += ", tokens of the first" * (result.n_prompts > 1 and not result.prompts)
    return prompts + "; * subject" * any(result.starred)
