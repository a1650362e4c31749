"""Heat map of a quantity over rows (layers or sites) and tokens, with its control."""

from __future__ import annotations

from matplotlib.figure import Figure

from reftlens.plot.heat import Group, Panel, heat
from reftlens.plot.labels import star
from reftlens.results import TokenMap


def effect_map(result: TokenMap, *, title: str = "") -> Figure:
    """Draws a map over rows and tokens. The earliest row is at the bottom, and subject tokens have a star.

    Colours are symmetrical around zero. Cells show their numbers where these fit; cells that are not finite stay grey.

    Args:
        result: the map, perhaps with its control.
        title: of the figure; the name of the quantity if empty.

    Raises:
        ValueError: for no rows or no tokens.
    """
    return heat(
        [group_of(result)],
        rows=result.rows,
        columns=star(result.tokens, result.starred),
        title=title or result.quantity[:1].upper() + result.quantity[1:],
        subtitle=prompts_of(result),
    )


def group_of(result: TokenMap, *, signed: bool = True) -> Group:
    """The map beside its control."""
    if result.control is None:
        return Group([Panel(result.values.double().numpy())], result.quantity, signed)
    measured = Panel(result.values.double().numpy(), "measured")
    control = Panel(result.control.double().numpy(), f"control: {result.control_name}")
    return Group([measured, control], result.quantity, signed)


def prompts_of(result: TokenMap) -> str:
    """How many prompts, and what a star means."""
    prompts = "one prompt" if result.n_prompts == 1 else f"mean of {result.n_prompts} prompts, tokens of the first"
    return prompts + "; * subject" * any(result.starred)
