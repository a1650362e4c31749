"""What several ways of training one base came to, on the same examples and in the same number of steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import final

import pandas as pd

from reftlens.results.base import Result


@final
@dataclass(frozen=True)
class ComparedRun:
    """One method, trained once."""

    method: str
    seed: int
    score: float
    """On examples that were not trained on."""
    trained: int
    """Numbers that the optimiser changes, the head of a classifier not counted."""
    head: int
    """Numbers of that head; 0 where there is none."""
    lr: float
    loss: float
    """Of the last step."""
    cpu_seconds: float
    """Of the process, all its threads together, for training alone; runs of the base that are held for it included."""
    memory: int | None
    """Bytes of tensors alive at once, at most, in a first step, beyond what was alive before it; None if not measured."""


@final
@dataclass(frozen=True, repr=False)
class Comparison(Result):
    """Methods side by side. What they share is said once; what differs has a line for each method."""

    metric: str
    n_train: int
    n_test: int
    steps: int
    """Of the optimiser, in every run."""
    batch_size: int
    base_parameters: int
    base_score: float | None
    """Of the untrained base; None where scoring wants a trained head."""
    runs: tuple[ComparedRun, ...]

    def _by_method(self) -> dict[str, list[ComparedRun]]:
        names = dict.fromkeys(run.method for run in self.runs)
        return {name: [run for run in self.runs if run.method == name] for name in names}

    def runs_to_dataframe(self) -> pd.DataFrame:
        """One line for each run."""
        return pd.DataFrame([asdict(run) for run in self.runs])

    def to_dataframe(self) -> pd.DataFrame:
        """One line for each method: means over seeds, and the least and greatest score."""
        lines = []
        for method, runs in self._by_method().items():
            scores = [run.score for run in runs]
            lines.append(
                {
                    "method": method,
                    "seeds": len(runs),
                    "score": _mean(scores),
                    "lowest": min(scores),
                    "highest": max(scores),
                    "trained": runs[0].trained,
                    "percent": 100 * runs[0].trained / self.base_parameters,
                    "head": runs[0].head,
                    "lr": runs[0].lr,
                    "cpu_seconds": _mean([run.cpu_seconds for run in runs]),
                    "mib": None if runs[0].memory is None else runs[0].memory / 2**20,
                }
            )
        return pd.DataFrame(lines)

    def to_markdown(self) -> str:
        """The same table for a README: the mean score, in brackets the lowest and the highest of the seeds."""
        head = ("method", self.metric, "trained", "% of the base", "lr", "CPU s", "MiB")
        rows = [] if self.base_score is None else [("base, untrained", f"{self.base_score:.3f}", "0", "0", "", "", "")]
        for line in self.to_dataframe().to_dict("records"):
            score = f"{line['score']:.3f} ({line['lowest']:.3f}-{line['highest']:.3f})"
            cost = (
                f"{line['lr']:g}",
                f"{line['cpu_seconds']:.1f}",
                "" if pd.isna(line["mib"]) else f"{line['mib']:.1f}",
            )
            rows.append((line["method"], score, f"{line['trained']:,}", f"{line['percent']:.3g}", *cost))
        return "\n".join("| " + " | ".join(row) + " |" for row in (head, ("---",) * len(head), *rows))

    def headline(self) -> str:
        means = {name: _mean([run.score for run in runs]) for name, runs in self._by_method().items()}
        scores = ", ".join(f"{name} {mean:.3f}" for name, mean in means.items())
        return f"{self.metric} on {self.n_test} examples, {self.steps} steps of {self.batch_size} on {self.n_train}: {scores}"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
