"""Plot of the components that carry an edit's effect: a graph from the edit to the logits, and the numbers.

Components are in the order of their layers, each in its own column, so that no path crosses another
component.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch
from torch import Tensor

from reftlens.plot.canvas import BLUE, GREY, INK, LABEL, SMALL, VERMILLION, house_style, listed, number, sheet
from reftlens.plot.labels import component, drawn, drawn_token
from reftlens.results import PatchMap

_EDIT, _LOGITS = "edit", "logits"
_ROW = 0.3
"""Inches that a line of numbers takes."""


@final
@dataclass(frozen=True)
class _Way:
    """What goes from the edit through these stops: `(edit, 2.1, logits)`, or one step of it."""

    stops: tuple[str, ...]
    label: str
    value: float
    low: float
    high: float
    control: float
    """NaN without one."""

    @property
    def solid(self) -> bool:
        """Whether its interval leaves out 0, and the control does less."""
        beyond = self.low > 0 or self.high < 0 or math.isnan(self.low)
        return beyond and not abs(self.control) >= abs(self.value)


def mediation(
    maps: Sequence[PatchMap] | PatchMap,
    *,
    direct: Float[Tensor, " example"] | None = None,
    most: int = 8,
    title: str = "",
) -> Figure:
    """Draws the strongest paths of an edit's effect: width for size, colour for sign, dashed if the control is as large.

    Args:
        maps: from `analysis.mediate`, of heads and of MLPs (of a map over positions each
            component's strongest one), or one of paths, with senders as rows and receivers as
            columns.
        direct: from `analysis.direct_effect`, on the same examples.
        most: ways to draw; the subtitle says out of how many.
        title: of the figure.

    Raises:
        ValueError: If no path is left to draw.
    """
    maps = listed(maps, PatchMap)
    ways = [way for one in maps for way in _ways(one)]
    if direct is not None and maps and direct.shape != maps[0].base.shape:
        raise ValueError(f"direct must have a value for each of {len(maps[0].base)} examples, got {list(direct.shape)}")
    if direct is not None and maps:
        values, axes = (maps[0].base + direct)[:, None, None], ("sender", "receiver")
        alone = replace(maps[0], values=values, control=None, rows=(_EDIT,), columns=(_LOGITS,), axes=axes)
        ways.append(replace(_ways(alone)[0], label="direct"))
    found = sorted((way for way in ways if np.isfinite(way.value)), key=lambda way: -abs(way.value))
    if not found or not found[0].value:
        raise ValueError("mediation needs at least one component that carries something, got none")
    drawn_ways = found[:most]
    n = len(maps[0].values)
    subtitle = (
        f"part of the whole effect (parts need not sum to 1); {len(drawn_ways)} strongest of {len(found)}; 2.1: head 1 of "
        f"layer 2; 95% intervals over {n} examples"
    )
    with house_style():
        height = max(3.4, _ROW * len(drawn_ways) + 0.9)
        figure = sheet(8.5, height + 0.3, title=title or "How the edit's effect travels", subtitle=subtitle)
        graph, numbers = figure.subplots(1, 2, width_ratios=[1.35, 1]).tolist()
        _graph(graph, drawn_ways)
        _numbers(numbers, drawn_ways)
        figure.legend(handles=_key(drawn_ways), loc="outside lower center", ncols=4, frameon=False)
    return figure


def _ways(result: PatchMap) -> list[_Way]:
    """One for each component, or for each path of a map of senders and receivers."""
    gap = float((result.source - result.base).mean())
    # The interval is of the change: examples differ far more in the metric itself.
    value, changes = result.restored(), replace(result, values=result.values - result.base[:, None, None])
    ends = torch.stack(changes.interval()) / gap
    # Dividing by a negative gap turns the interval round.
    (low, high), nothing = ends.sort(dim=0).values, torch.full_like(value, torch.nan)
    control = nothing if result.control is None else result.restored(result.control)
    return [
        _Way(stops, label, *(float(part[row, column]) for part in (value, low, high, control)))
        for row, column, stops, label in _cells(result)
    ]


def _cells(result: PatchMap) -> list[tuple[int, int, tuple[str, ...], str]]:
    """Row and column of each way, its stops, and its name."""
    names = [component(row) for row in result.rows]
    if result.axes == ("sender", "receiver"):
        return [(r, c, (s, t), f"{s} to {t}") for r, s in enumerate(result.rows) for c, t in enumerate(result.columns)]
    if result.axes == ("layer", "head"):
        heads = [(r, c, f"{name}.{head}") for r, name in enumerate(names) for c, head in enumerate(result.columns)]
        return [(r, c, (_EDIT, head, _LOGITS), head) for r, c, head in heads]
    # Of a component at several positions the strongest one stands for it.
    # -1 puts cells without a value behind every other.
    strongest = result.restored().abs().nan_to_num(-1.0).argmax(dim=1).tolist()
    return [
        (r, c, (_EDIT, names[r], _LOGITS), f"{names[r]} at {drawn_token(result.columns[c])}")
        for r, c in enumerate(strongest)
    ]


def _graph(axes: Axes, ways: Sequence[_Way]) -> None:
    places = _places(ways)
    largest = max(abs(way.value) for way in ways)
    # The strongest is drawn last, on top of the others.
    for way in reversed(ways):
        for start, end in zip(way.stops[:-1], way.stops[1:], strict=True):
            # Steps from one component to another bend, or they would run through those between.
            bent = 0.25 if {start, end}.isdisjoint({_EDIT, _LOGITS}) else 0.0
            arrow = FancyArrowPatch(
                places[start],
                places[end],
                arrowstyle="-",
                connectionstyle=f"arc3,rad={bent}",
                color=VERMILLION if way.value > 0 else BLUE,
                linewidth=0.8 + 5 * abs(way.value) / largest,
                linestyle="-" if way.solid else (0, (3, 2)),
                alpha=0.85,
                zorder=1,
            )
            axes.add_patch(arrow)
    effects = {way.stops[1]: way.value for way in ways if len(way.stops) == 3}
    for name, (x, y) in places.items():
        text = f"{drawn(name)}\n{number(effects[name], 2)}" if name in effects else drawn(name)
        box = {"boxstyle": "round,pad=0.25", "facecolor": "white", "edgecolor": INK, "linewidth": 0.8}
        size = LABEL if name in (_EDIT, _LOGITS) else SMALL
        axes.text(x, y, text, ha="center", va="center", size=size, color=INK, bbox=box, zorder=2)
    axes.set_xlim(-0.06, 1.06)
    axes.set_ylim(-0.07, 1.07)
    axes.axis("off")


def _places(ways: Sequence[_Way]) -> dict[str, tuple[float, float]]:
    """From the edit at the bottom to the logits at the top, components like stairs; the middle is left to the direct way."""
    names = {stop for way in ways for stop in way.stops} - {_EDIT, _LOGITS}
    stairs = sorted(names, key=lambda name: (_layer(name), name.startswith("mlp"), name))
    slots = len(stairs) + 1
    places = {_EDIT: (0.5, 0.0), _LOGITS: (0.5, 1.0)}
    for rank, name in enumerate(stairs):
        # With the middle slot empty, stairs keep clear of the straight way up.
        slot = rank + (rank >= (slots - 1) / 2)
        places[name] = (slot / max(slots - 1, 1), 0.16 + 0.68 * (rank + 0.5) / len(stairs))
    return places


def _layer(name: str) -> int:
    digits = name.removeprefix("mlp").removeprefix("attn").split(".")[0]
    return int(digits) if digits.isdecimal() else -1


def _numbers(axes: Axes, ways: Sequence[_Way]) -> None:
    for place, way in enumerate(ways):
        colour = VERMILLION if way.value > 0 else BLUE
        if np.isfinite(way.low):
            axes.plot([way.low, way.high], [place, place], color=INK, linewidth=1)
        axes.plot(way.value, place, "o", color=colour, markersize=6, markerfacecolor=colour if way.solid else "white")
        axes.plot(way.control, place, "x", color=GREY, markersize=5, markeredgewidth=1.5)
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.set_yticks(range(len(ways)), [drawn(way.label) for way in ways])
    axes.set_ylim(len(ways) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.locator_params(axis="x", nbins=5)
    axes.margins(x=0.08)
    axes.set_xlabel("part of the effect")


def _key(ways: Sequence[_Way]) -> list[Line2D]:
    key = [
        Line2D([], [], color=VERMILLION, linewidth=3, label="with the effect"),
        Line2D([], [], color=BLUE, linewidth=3, label="against it"),
        Line2D([], [], color=INK, linestyle=(0, (3, 2)), label="as chance: 0 in interval, or control as large"),
    ]
    if any(np.isfinite(way.control) for way in ways):
        key.append(Line2D([], [], linestyle="", marker="x", color=GREY, markeredgewidth=1.5, label="control: turned"))
    return key
