"""Plot of the rms change along each write direction of an edit, and how much of it is constant."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, MaxNLocator

from reftlens.plot.canvas import BLUE, INK, ORANGE, SMALL, house_style, listed, sheet
from reftlens.plot.labels import short_name
from reftlens.results import Identified, Operator

_COLUMNS = 3
_LABELLED = 8
"""Up to this many bars carry their part of the activation's norm."""
_VARYING: dict[str, Any] = {"facecolor": BLUE, "hatch": "///", "edgecolor": "white", "linewidth": 0}
_NULL: dict[str, Any] = {"facecolor": "none", "edgecolor": INK, "linewidth": 1.2, "linestyle": (0, (3, 1.5))}


def spectrum(
    operators: Sequence[Operator] | Operator,
    *,
    null: Sequence[Operator] = (),
    identified: Sequence[Identified] = (),
) -> Figure:
    """Draws the rms change along each write direction, one panel per site.

    A bar is split by the share of the energy (the squared change) that is due to the mean change.

    Args:
        operators: one per site.
        null: operators of a control at these sites, such as untrained edits (`analysis.untrained`).
            The plot shows their range from the smallest to the largest spectrum.
        identified: the `sites` of `analysis.identify`. Below each direction then stands in how many
            dimensions it is identified.

    Raises:
        ValueError: If there is nothing to draw.
    """
    operators = listed(operators, Operator)
    if not operators:
        raise ValueError("spectrum needs at least one operator, got none")
    columns = min(_COLUMNS, len(operators))
    lines = -(-len(operators) // columns)
    width = max(6.5, 3.1 * columns)
    subtitle = (
        "percent: of |h|, the activations' rms norm; effective rank 1: one direction does it all"
        + "; scales differ" * (len(operators) > 1)
    )
    with house_style():
        figure = sheet(
            width,
            (2.5 + 0.35 * bool(identified)) * lines + 0.35,
            title="Change along each write direction",
            subtitle=subtitle,
        )
        grid = figure.subplots(lines, columns, squeeze=False).ravel().tolist()
        for axes, operator in zip(grid, operators, strict=False):
            _panel(axes, operator, [one for one in null if one.where == operator.where])
            _number_below(axes, operator, [one for one in identified if one.where == operator.where])
        for axes in grid[len(operators) :]:
            axes.remove()
        for axes in grid[: len(operators) : columns]:
            axes.set_ylabel("rms change,\nin units of the activation")
        figure.legend(handles=_parts(bool(null)), loc="outside lower center", ncols=2, frameon=False)
    return figure


def _panel(axes: Axes, operator: Operator, null: Sequence[Operator]) -> None:
    size = operator.spectrum.double().numpy()
    share = operator.constant_share.double().numpy()
    directions = np.arange(len(size))
    axes.bar(directions, size * share, color=ORANGE, width=0.7)
    axes.bar(directions, size * (1 - share), bottom=size * share, width=0.7, **_VARYING)
    # The edge of the control's box must not strike a number out.
    behind = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
    for direction, height in enumerate(size[:_LABELLED]):
        text = _percent(float(height), operator.rms_norm, strongest=direction == 0)
        axes.annotate(
            text, (direction, height), (0, 2), textcoords="offset points", ha="center", size=SMALL, bbox=behind
        )
    # Room for three bars at least, so that one alone is not as wide as the panel, and ticks under
    # bars alone.
    axes.xaxis.set_major_locator(
        MaxNLocator(integer=True, nbins=8) if len(size) > 8 else FixedLocator(list(directions))
    )
    axes.set_xlim(-0.6, max(len(size), 3) - 0.4)
    top = _band(axes, null)
    axes.set_ylim(0, (max(float(size.max(initial=0.0)), top) or 1.0) * 1.15)
    axes.set_xlabel("write direction, strongest first")
    facts = [
        f"{short_name(operator.where)}, {operator.n_tokens} tokens",
        f"effective rank {operator.effective_rank:.1f} of {len(size)}{_beside([one.effective_rank for one in null])}",
        f"without the constant push {operator.input_rank:.1f}{_beside([one.input_rank for one in null])}",
        f"|h| = {operator.rms_norm:.3g}",
    ]
    axes.set_title("\n".join(facts), loc="left", color=INK)


def _number_below(axes: Axes, operator: Operator, identified: Sequence[Identified]) -> None:
    """Writes below each direction in how many dimensions it is identified. There is no room for that below many bars."""
    n = len(operator.spectrum)
    if n > _LABELLED:
        return
    for site in identified:
        known = [f"{site.write_dimensions - free:.0f}" for free in site.write_free.tolist()]
        # A direction of no strength is not among those that were looked at.
        known += [""] * (n - len(known))
        axes.set_xticks(range(n), [f"{place}\n{count}" for place, count in enumerate(known[:n])])
        axes.set_xlabel(
            f"write direction, strongest first,\nand dimensions it is identified in (of {site.write_dimensions})"
        )


def _beside(ranks: Sequence[float]) -> str:
    """The control's effective ranks, or their range."""
    if not ranks:
        return ""
    ends = dict.fromkeys(f"{end:.1f}" for end in (min(ranks), max(ranks)))
    return f" (control {' to '.join(ends)})"


def _band(axes: Axes, null: Sequence[Operator]) -> float:
    """The range of the null's spectra, as a box around each direction or a line; returns how high it reaches."""
    top = 0.0
    for direction in range(max((len(one.spectrum) for one in null), default=0)):
        sizes = [float(one.spectrum[direction]) for one in null if direction < len(one.spectrum)]
        low, high = min(sizes), max(sizes)
        if low < high:
            axes.bar(direction, high - low, bottom=low, width=0.9, **_NULL)
        else:
            # A box without height would draw its dashes twice, one in the gaps of the other.
            axes.hlines(
                high, direction - 0.45, direction + 0.45, color=INK, linewidth=1.2, linestyle=_NULL["linestyle"]
            )
        top = max(top, high)
    return top


def _percent(change: float, norm: float, *, strongest: bool) -> str:
    """What a bar carries: nothing if it is below one in a hundred, unless it is the largest of them."""
    if norm <= 0 or (change < 0.01 * norm and not strongest):
        return ""
    return f"{change / norm:.0%}" if change >= 0.01 * norm else "<1%"


def _parts(null: bool) -> list[Patch]:
    return [
        *[Patch(label="control: range of its spectra", **_NULL)] * null,
        Patch(color=ORANGE, label="constant push (part of the bar = part of the squared change)"),
        Patch(label="depends on the input", **_VARYING),
    ]
