"""Result of a search for settings: every trial, what it was tuned on, and the best one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, final

import pandas as pd

from reftlens.results.base import Result


@final
@dataclass(frozen=True)
class Trial:
    """One training run of a search."""

    settings: dict[str, Any]
    """The settings that were searched, by name."""
    losses: tuple[tuple[int, float], ...]
    """(step, loss on the validation examples) at each look."""
    score: float | None
    """Score on the validation examples at the end; None unless the trial is finished."""
    ended: Literal["finished", "pruned", "diverged"]
    """A pruned trial was stopped early, because its losses were above the median of the finished trials at the same step."""

    @property
    def loss(self) -> float:
        """The last loss on the validation examples; infinite if there is none."""
        return self.losses[-1][1] if self.losses else float("inf")

    def order(self) -> tuple[float, float]:
        """Returns the key that sorts finished trials, best first: by the score, and by the loss among equals."""
        return -(self.score if self.score is not None else float("-inf")), self.loss


@final
@dataclass(frozen=True, repr=False)
class Search(Result):
    """A search for the settings of one method. Test data take no part in it."""

    method: str
    metric: str
    """Of the scores."""
    n_train: int
    n_validation: int
    """Examples that the trials are compared on. No trial is trained on them."""
    steps: int
    """Steps of a trial that is not pruned."""
    space: dict[str, str]
    """Setting -> the values that are tried, as text."""
    about: dict[str, str]
    """What the trials depend on besides their settings. A search is continued only under the same."""
    seed: int
    """Of the proposals."""
    trials: tuple[Trial, ...]

    @property
    def best(self) -> Trial | None:
        """The finished trial with the best score, and the lowest loss among equals; None if no trial is finished."""
        return min((trial for trial in self.trials if trial.ended == "finished"), key=Trial.order, default=None)

    def to_dataframe(self) -> pd.DataFrame:
        """Returns one row per trial, in their order."""
        rows = [
            {
                "trial": number,
                **_as_text(trial.settings),
                "loss": trial.loss,
                "score": trial.score,
                "ended": trial.ended,
            }
            for number, trial in enumerate(self.trials)
        ]
        # Named, because a search without trials has these columns too.
        return pd.DataFrame(rows, columns=["trial", *self.space, "loss", "score", "ended"])

    def headline(self) -> str:
        best, pruned = self.best, sum(trial.ended == "pruned" for trial in self.trials)
        tried = f"{self.method}: {len(self.trials)} trials, {pruned} of them pruned"
        if best is None:
            return f"{tried}; none finished"
        chosen = ", ".join(f"{name} {value}" for name, value in _as_text(best.settings).items())
        return f"{tried}; best {self.metric} {best.score:.3f} on {self.n_validation} validation examples: {chosen}"


def _as_text(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Rates with three digits, lists without brackets."""
    return {name: shown(value) for name, value in settings.items()}


def shown(value: Any) -> Any:
    """Returns a setting as tables show it: a rate with three digits, a run of layers by its ends.

    >>> shown(0.00123456), shown((0, 1, 2)), shown((1, 4)), shown("all"), shown(8)
    ('0.00123', '0-2', '1,4', 'all', 8)

    Args:
        value: of the setting.
    """
    if isinstance(value, float):
        return f"{value:.3g}"
    if not isinstance(value, tuple):
        return value
    if len(value) > 2 and value == tuple(range(value[0], value[-1] + 1)):
        return f"{value[0]}-{value[-1]}"
    return ",".join(map(str, value))
