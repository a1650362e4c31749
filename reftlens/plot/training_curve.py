"""Plot of a training run's loss per step, smoothed, and on validation examples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from reftlens.plot.canvas import BLUE, INK, VERMILLION, house_style, sheet
from reftlens.plot.labels import drawn


@runtime_checkable
class Log(Protocol):
    """What is drawn of a `TrainLog`."""

    @property
    def loss(self) -> Sequence[float]:
        """At each step."""

    @property
    def validation(self) -> Sequence[tuple[int, float]]:
        """(step, loss) at each look."""

    @property
    def best_step(self) -> int | None:
        """The step whose edit was kept."""

    @property
    def unit(self) -> str:
        """Of the losses."""


def training_curve(log: Log) -> Figure:
    """Draws the loss per step, its running median, and the loss on validation examples.

    The axis is logarithmic if the loss spans more than a decade.

    Args:
        log: from `train`.

    Raises:
        ValueError: If there are no steps.
    """
    values = np.asarray(log.loss, dtype=np.float64)
    if values.size == 0:
        raise ValueError("training_curve needs at least one step, got none")
    steps = np.arange(1, values.size + 1)
    window = _window(values.size)
    with house_style():
        figure = sheet(6.5, 2.8, title="Training loss")
        axes = figure.subplots()
        axes.plot(
            steps,
            values,
            color=BLUE,
            alpha=0.35,
            linewidth=0.8,
            marker="." if values.size < 30 else "",
            label="each step",
        )
        # A median, because single steps with a large loss would pull a mean.
        axes.plot(steps, running_median(values, window), color=BLUE, linewidth=2.2, label=f"median of {window} steps")
        looks, seen = np.array([step for step, _ in log.validation]), np.array([loss for _, loss in log.validation])
        if len(looks):
            axes.plot(looks, seen, color=VERMILLION, marker="s", markersize=4, linewidth=1.2, label="validation")
        if log.best_step is not None:
            axes.axvline(log.best_step, color=INK, linewidth=0.9, linestyle=":", label=f"kept: step {log.best_step}")
        finite = np.concatenate([values, seen])
        finite = finite[np.isfinite(finite)]
        if finite.size and finite.min() > 0 and finite.max() > 10 * finite.min():
            axes.set_yscale("log")
            axes.yaxis.set_minor_formatter(NullFormatter())
            # Over more than three decades, labels at 2 and 5 would touch.
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if finite.max() < 2000 * finite.min() else (1,)))
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        elif finite.size and finite.min() >= 0:
            axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("step")
        axes.set_ylabel(f"loss, {drawn(log.unit)}")
        axes.legend(frameon=False)
    return figure


def running_median(values: npt.NDArray[np.float64], window: int) -> npt.NDArray[np.float64]:
    """Computes the median over a centred window, which is narrower at the two ends.

    >>> running_median(np.array([1.0, 9.0, 1.0, 1.0]), 3).tolist()
    [5.0, 1.0, 1.0, 1.0]
    """
    half = window // 2
    return np.array([np.median(values[max(0, i - half) : i + half + 1]) for i in range(values.size)])


def _window(n_steps: int) -> int:
    """A twenty-fifth of the run, odd, at least 5 steps, at most the run."""
    return min(max(5, n_steps // 25) | 1, n_steps | 1)
