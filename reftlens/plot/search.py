"""Plot of a search for settings: the score and the validation loss of each trial, in order and by each setting."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter

from reftlens.plot.canvas import BLUE, GREY, INK, VERMILLION, house_style, or_several, sheet
from reftlens.plot.labels import drawn
from reftlens.results import Search


@or_several(Search)
def search(result: Search) -> Figure:
    """Draws the trials of a search.

    Filled: finished. Hollow: pruned, at the loss where it was stopped. The best trial has a ring.
    Diverged trials have no loss and are not drawn.

    Args:
        result: the search.

    Raises:
        ValueError: If there are no trials.
    """
    if not result.trials:
        raise ValueError("search needs at least one trial, got none")
    frame = result.to_dataframe()
    # A setting with one value shows nothing of its influence.
    names = [name for name in result.space if frame[name].nunique() > 1]
    subtitle = (
        f"score: {result.metric}, on {result.n_validation} validation examples; {result.steps} steps at most. Filled: "
        "finished; hollow: pruned, at its last loss; ring: the best"
    )
    with house_style():
        width = 1.9 * (1 + len(names)) + 0.7
        figure = sheet(max(width, 4.2), 3.6, title=f"Search for settings: {drawn(result.method)}", subtitle=subtitle)
        axes = figure.subplots(2, 1 + len(names), sharey="row", squeeze=False)
        for column, name in enumerate(["trial", *names]):
            # A range is written low..high, and every value in it is a number.
            ranged = name == "lr" or ".." in result.space.get(name, "")
            places = _places(list(axes[:, column]), name, list(frame[name]), ranged=ranged)
            _points(axes[0, column], result, places, [trial.score for trial in result.trials])
            _points(axes[1, column], result, places, [trial.loss for trial in result.trials])
        axes[0, 0].set_ylabel("score")
        axes[1, 0].set_ylabel("validation loss")
        _running_best(axes[0, 0], [trial.score for trial in result.trials])
    return figure


def _places(column: Sequence[Axes], name: str, values: list[Any], *, ranged: bool) -> list[float]:
    """Labels the horizontal axes of a column, and returns where each trial goes: a range by value, others side by side."""
    column[-1].set_xlabel(drawn(name))
    for axes in column[:-1]:
        axes.tick_params(axis="x", labelbottom=False)
    if ranged:
        for axes in column:
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.xaxis.set_minor_formatter(NullFormatter())
        return [float(value) for value in values]
    if name == "trial":
        column[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
        return [float(value) for value in values]
    # "all" stands beside tuples of layers, which do not compare with texts.
    kinds = sorted(set(values), key=lambda value: (isinstance(value, str), value))
    for axes in column:
        axes.set_xticks(range(len(kinds)), [drawn(_short(str(kind), 9)) for kind in kinds], rotation=90)
        axes.set_xlim(-0.6, len(kinds) - 0.4)
    return [float(kinds.index(value)) for value in values]


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _points(axes: Axes, result: Search, places: list[float], values: Sequence[float | None]) -> None:
    for place, value, trial in zip(places, values, result.trials, strict=True):
        if value is None or not np.isfinite(value):
            continue
        filled = trial.ended == "finished"
        axes.plot(place, value, "o", color=BLUE, markersize=4, markerfacecolor=BLUE if filled else "none", alpha=0.8)
        if trial is result.best:
            axes.plot(place, value, "o", color=VERMILLION, markersize=9, markerfacecolor="none", markeredgewidth=1.6)
    axes.grid(axis="y", color=GREY, alpha=0.25, linewidth=0.6)


def _running_best(axes: Axes, scores: Sequence[float | None]) -> None:
    """The best score so far."""
    known = np.array([np.nan if score is None else score for score in scores], dtype=np.float64)
    if np.isfinite(known).any():
        # fmax passes over NaN, the trials without a score; maximum would keep it from there on.
        best = np.fmax.accumulate(known)
        axes.step(range(len(best)), best, where="post", color=INK, linewidth=0.9, zorder=0)
