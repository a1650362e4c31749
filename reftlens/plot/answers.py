"""Plot of edited models' answers: the fraction with each of several properties, one group of bars per edit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from reftlens.plot.canvas import BLUE, ORANGE, SMALL, VERMILLION, house_style, number, or_several, sheet
from reftlens.plot.labels import wrap
from reftlens.results.claims import Composed, Mannered, Spoken

_LOOKS = ((VERMILLION, ""), (BLUE, "////"), (ORANGE, "...."))
_BAR = 0.27
"""Of the unit that one edit takes."""


@or_several(Composed)
def composed(result: Composed) -> Figure:
    """Draws each half alone, both together, and the controls.

    Args:
        result: what each half of one edit does.
    """
    columns = {
        "in the new manner": [row.manner for row in result.rows],
        "with the new fact": [row.moved for row in result.rows],
        "both": [row.together for row in result.rows],
    }
    return _bars(result.rows, columns, title="Two tasks in two halves of one edit", model=result.claim.model)


@or_several(Mannered)
def mannered(result: Mannered) -> Figure:
    """Draws the base model, the edit and its controls.

    Args:
        result: how often the answers have the new manner.
    """
    columns = {
        "in the new manner": [row.manner for row in result.rows],
        "with the facts right": [row.kept for row in result.rows],
        "both": [row.together for row in result.rows],
    }
    return _bars(result.rows, columns, title="A manner learnt from a few examples", model=result.claim.model)


def _bars(rows: Sequence[Spoken], columns: Mapping[str, list[float]], *, title: str, model: str) -> Figure:
    subtitle = f"{model}: greedy answers to {rows[0].n} prompts that no edit was trained on"
    with house_style():
        figure = sheet(7.0, 0.72 * len(rows) + 0.8, title=title, subtitle=subtitle)
        axes = figure.subplots()
        for index, (name, values) in enumerate(columns.items()):
            colour, hatch = _LOOKS[index]
            places = np.arange(len(rows)) + (index - 1) * _BAR
            face = "white" if hatch else colour
            axes.barh(
                places,
                values,
                height=_BAR * 0.85,
                label=name,
                facecolor=face,
                edgecolor=colour,
                hatch=hatch,
                linewidth=0.8,
            )
            for place, value in zip(places, values, strict=True):
                axes.annotate(
                    number(value, 2), (value, place), (3, 0), textcoords="offset points", va="center", size=SMALL
                )
        axes.set_yticks(range(len(rows)), [wrap(row.edit, width=2.0, size=SMALL) for row in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlim(0, 1.08)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("part of the answers")
        figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return figure
