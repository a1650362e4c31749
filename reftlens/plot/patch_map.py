"""Plot of the effect of a patch in each cell on the metric, with an interval over pairs of prompts, and its control."""

from __future__ import annotations

from dataclasses import replace

from matplotlib.figure import Figure

from reftlens.plot.canvas import number, or_several
from reftlens.plot.heat import Group, Panel, heat
from reftlens.plot.labels import star
from reftlens.results import PatchMap

_LEAST = 0.01
"""Of the way from the base run to the source run: a smaller change gets no frame."""


@or_several(PatchMap)
def patch_map(result: PatchMap, *, title: str = "", starred: tuple[bool, ...] = ()) -> Figure:
    """Draws the mean change of the metric, patched minus base run; framed cells have a 95% interval without 0 and are not tiny.

    Args:
        result: the map; with fewer than two pairs there are no intervals, and no frames.
        title: of the figure; what was put into what if empty.
        starred: for the first columns, whether they belong to the subject.

    Raises:
        ValueError: If there are more stars than columns.
    """
    if len(starred) > len(result.columns):
        raise ValueError(f"wanted at most {len(result.columns)} stars, one for each column, got {len(starred)}")
    panels = [_panel(result, "measured" if result.control is not None else "")]
    if result.control is not None:
        panels.append(_panel(replace(result, values=result.control), f"control: {result.control_name}"))
    n, whole = len(result.values), float((result.source - result.base).mean())
    of_heads = result.axes == ("layer", "head")
    columns = star(result.columns, (*starred, *(False,) * (len(result.columns) - len(starred))))
    subtitle = [
        f"mean of {n} pairs" + ", tokens of the first" * (not of_heads) if n > 1 else "one pair",
        f"the metric goes {number(whole, 2)} from base to source run",
        *["framed: 95% interval without 0, at least 1% of it"] * (n > 1),
        *["* subject"] * any(starred),
    ]
    return heat(
        [Group(panels, "mean change of the metric")],
        rows=result.rows,
        columns=columns,
        title=title or f"One activation of the other run: {result.direction}",
        subtitle="; ".join(subtitle),
        xlabel="head" if of_heads else "",
    )


def _panel(result: PatchMap, title: str) -> Panel:
    # The interval is of the change: pairs differ far more in the metric itself.
    changes = replace(result, values=result.values - result.base[:, None, None])
    low, high = changes.interval()
    mean = changes.mean()
    # What moves all pairs by next to nothing is certain, and of no interest.
    beyond = ((low > 0) | (high < 0)) & (mean.abs() >= _LEAST * (result.source - result.base).mean().abs())
    return Panel(mean.double().numpy(), title, beyond.numpy())
