"""Results of alignment search: how often swapping a subspace gives the answer that a causal model predicts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import final

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from reftlens.numbers import wilson
from reftlens.results.base import Result
from reftlens.results.behaviour import Interchanged

NOTHING, WHOLE, RANDOM = "nothing swapped", "the whole activation", "random subspaces of the same rank"
ARBITRARY, BLANK = "trained on arbitrary labels", "trained on a random model"


@final
@dataclass(frozen=True, eq=False, repr=False)
class Alignment(Result):
    """Interchange accuracy of trained subspaces on held-out pairs, with its controls."""

    sites: tuple[str, ...]
    widths: dict[str, int]
    """Variable -> dimensions that are swapped, summed over sites."""
    variables: tuple[str, ...]
    """The variable that each pair swaps."""
    labels: tuple[str, ...]
    """The answer that the causal model predicts for each pair."""
    changes: Float[Tensor, " pair"]
    """1 if the label differs from the base's own answer, 0 if not, NaN if that answer is not known."""
    right: Float[Tensor, " pair"]
    """1 if the model gives the label under the swap."""
    nothing: Float[Tensor, " pair"]
    """1 if it gives the label without a swap. By definition this is the share of pairs that do not change."""
    whole: Float[Tensor, " pair"]
    """1 if it gives the label when the whole activation is the source's."""
    random: Float[Tensor, "draw pair"]
    """The same for random subspaces of the same rank."""
    trained: float = float("nan")
    """Accuracy on the pairs that were trained on; NaN if the subspace was given."""
    controls: dict[str, Float[Tensor, " pair"]] = field(default_factory=dict)
    """Trained control -> 1 where it gives its own label: an arbitrary one, or the label on a random model."""
    shares: dict[str, Interchanged] = field(default_factory=dict)
    """Variable -> its effect through what is read and what is not, with the power of the test (`analysis.interchange`)."""

    def accuracy(self, variable: str | None = None) -> float:
        """Returns the share of held-out pairs with the predicted answer.

        Args:
            variable: only pairs that swap this one.
        """
        return float(self.right[self._of(variable)].mean())

    def interval(self, name: str | None = None) -> tuple[float, float]:
        """Returns the 95% Wilson interval of an accuracy over pairs.

        Args:
            name: of a trained control; the alignment itself by default.
        """
        right = self.right if name is None else self.controls[name]
        return wilson(int(right.sum()), len(right))

    @property
    def chance(self) -> float:
        """1 / number of labels, the accuracy of guessing."""
        return 1 / len(set(self.labels))

    @property
    def majority(self) -> float:
        """Accuracy of always giving the most frequent label."""
        return max(Counter(self.labels).values()) / len(self.labels)

    def at_chance(self, name: str) -> bool:
        """Whether guessing lies inside the 95% interval of a trained control.

        Args:
            name: of the control.
        """
        low, high = self.interval(name)
        return low <= self.chance <= high

    @property
    def p(self) -> float:
        """Fraction of random subspaces that are at least as accurate, (1 + count) / (1 + draws)."""
        # The subspace counts as a draw of its own null, which keeps p above 0 and valid.
        count = int((self.random.mean(dim=1) >= self.right.mean()).sum())
        return (1 + count) / (1 + len(self.random))

    def cause(self, variable: str | None = None) -> float:
        """Accuracy on pairs whose swap must change the answer (RAVEL's Cause; Huang et al. 2024, arXiv:2402.17700)."""
        # NaN, where the base's own answer is unknown, counts as neither.
        return _mean(self.right[self._of(variable) & (self.changes == 1)])

    def isolate(self, variable: str | None = None) -> float:
        """Accuracy on pairs whose swap must leave the answer as it is (RAVEL's Isolate)."""
        return _mean(self.right[self._of(variable) & (self.changes == 0)])

    def disentangle(self, variable: str | None = None) -> float:
        """Mean of cause and isolate, RAVEL's main score. Swapping nothing or everything scores about one half."""
        return (self.cause(variable) + self.isolate(variable)) / 2

    def headline(self) -> str:
        low, high = self.interval()
        kinds = ", ".join(f"{name} {float(right.mean()):.2f}" for name, right in self.controls.items())
        widths = ", ".join(f"{name} {width}" for name, width in self.widths.items())
        return (
            f"{' and '.join(self.sites)} (dimensions: {widths}): {self.accuracy():.2f} of {len(self.right)} held-out pairs, 95% "
            f"interval {low:.2f} to {high:.2f}; the whole activation {float(self.whole.mean()):.2f}, random subspaces "
            f"{float(self.random.mean()):.2f} (p = {self.p:.2g}), majority label {self.majority:.2f}"
            + (f"; {kinds}" if kinds else "; no control was trained, so this is no evidence")
        )

    def to_dataframe(self) -> pd.DataFrame:
        """Returns one row per variable and kind of swap: accuracy, its interval, cause, isolate and disentangle.

        Random subspaces have their mean, and their lowest and highest accuracy in place of an
        interval.
        """
        names = list(dict.fromkeys(self.variables))
        lines = [line for name in names for line in self._lines(name)]
        if len(names) > 1:
            lines = [*self._lines(None), *lines]
        return pd.DataFrame(lines)

    def _lines(self, variable: str | None) -> list[dict[str, object]]:
        rows = self._of(variable)
        shown = {"the subspace": self.right, **self.controls, WHOLE: self.whole, NOTHING: self.nothing}
        named: dict[str, object] = {"variable": "all" if variable is None else variable}
        lines: list[dict[str, object]] = []
        for name, right in shown.items():
            low, high = wilson(int(right[rows].sum()), int(rows.sum()))
            line: dict[str, object] = {
                **named,
                "swapped": name,
                "pairs": int(rows.sum()),
                "accuracy": _mean(right[rows]),
                "low": low,
                "high": high,
            }
            # `changes` is about the causal model's labels, not about arbitrary ones.
            if name != ARBITRARY:
                cause, isolate = (_mean(right[rows & (self.changes == kind)]) for kind in (1, 0))
                line |= {"cause": cause, "isolate": isolate, "disentangle": (cause + isolate) / 2}
            lines.append(line)
        draws = self.random[:, rows].mean(dim=1)
        if len(draws):
            spread = {"accuracy": float(draws.mean()), "low": float(draws.min()), "high": float(draws.max())}
            lines.append({**named, "swapped": RANDOM, "pairs": int(rows.sum()), **spread})
        return lines

    def _of(self, variable: str | None) -> Tensor:
        return _are(self.variables, variable)


@final
@dataclass(frozen=True, eq=False, repr=False)
class AlignmentMap(Result):
    """Interchange accuracy of one subspace per cell, trained there, with a control in every cell."""

    right: Float[Tensor, "rows columns pair"]
    """1 if the model gives a held-out pair's label under the subspace trained in this cell."""
    arbitrary: Float[Tensor, "rows columns pair"]
    """1 if it gives the pair's arbitrary label under a subspace trained in this cell on arbitrary labels."""
    whole: Float[Tensor, "rows columns pair"]
    """1 if it gives the label when the whole activation of the cell is the source's."""
    labels: tuple[str, ...]
    rows: tuple[str, ...]
    """The points where the subspaces are."""
    columns: tuple[str, ...]
    """Names of the position rules."""
    budget: str
    """Class, rank, number of steps and seed of each training."""

    def accuracy(self) -> Float[Tensor, "rows columns"]:
        """Accuracy on held-out pairs."""
        return self.right.mean(-1)

    def control(self) -> Float[Tensor, "rows columns"]:
        """Accuracy of subspaces trained on arbitrary labels, on arbitrary labels of the held-out pairs."""
        return self.arbitrary.mean(-1)

    def headline(self) -> str:
        best = divmod(int(self.accuracy().argmax()), len(self.columns))
        majority = max(Counter(self.labels).values()) / len(self.labels)
        return (
            f"{len(self.rows)} x {len(self.columns)} cells, {len(self.labels)} held-out pairs; best "
            f"{float(self.accuracy()[best]):.2f} at {self.rows[best[0]]}, {self.columns[best[1]]} (arbitrary labels "
            f"{float(self.control()[best]):.2f}, the whole activation {float(self.whole.mean(-1)[best]):.2f}, majority label "
            f"{majority:.2f}); {self.budget}"
        )

    def to_dataframe(self) -> pd.DataFrame:
        """Returns one row per cell: the accuracy with its 95% interval, and the controls."""
        lines = []
        for r, row in enumerate(self.rows):
            for c, column in enumerate(self.columns):
                right = self.right[r, c]
                low, high = wilson(int(right.sum()), len(right))
                found = (part[r, c] for part in (self.accuracy(), self.control(), self.whole.mean(-1)))
                lines.append((row, column, *map(float, found), low, high))
        names = ["row", "column", "accuracy", "arbitrary labels", "the whole activation", "low", "high"]
        return pd.DataFrame(lines, columns=names)


def _are(names: Sequence[str], wanted: str | None) -> Tensor:
    return torch.tensor([wanted is None or name == wanted for name in names], dtype=torch.bool)


def _mean(values: Tensor) -> float:
    return float(values.mean()) if len(values) else float("nan")
