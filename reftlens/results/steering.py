"""Results on steered text: the scores of single texts, and methods compared at calibrated strength."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, final

import numpy as np
import pandas as pd

from reftlens.results.base import Result

_DRAWS = 2000


def harmonic_mean(scores: Sequence[float]) -> float:
    """Computes n / sum(1 / s); 0 if a score is 0.

    Args:
        scores: not negative, at least one.
    """
    return 0.0 if min(scores) == 0 else len(scores) / sum(1 / score for score in scores)


@final
@dataclass(frozen=True, repr=False)
class Steered(Result):
    """Judged texts."""

    prompts: tuple[str, ...]
    texts: tuple[str, ...]
    concept: tuple[float, ...]
    """0 to 2, one per text; so are the next two."""
    instruct: tuple[float, ...]
    fluency: tuple[float, ...]

    @property
    def overall(self) -> tuple[float, ...]:
        """The harmonic mean of the three scores of each text."""
        return tuple(map(harmonic_mean, zip(self.concept, self.instruct, self.fluency, strict=True)))

    def mean(self) -> float:
        """The mean of `overall` over the texts."""
        return float(np.mean(self.overall))

    def headline(self) -> str:
        parts = ", ".join(f"{name} {np.mean(getattr(self, name)):.2f}" for name in ("concept", "instruct", "fluency"))
        return f"{self.mean():.2f} of 2 over {len(self.texts)} texts: {parts}"

    def to_dataframe(self) -> pd.DataFrame:
        """Returns one row per text."""
        return pd.DataFrame({**asdict(self), "overall": self.overall})


@final
@dataclass(frozen=True)
class SteeringRun:
    """One method, with one concept and one seed."""

    method: str
    concept: str
    seed: int
    layer: int | None
    """The block after which the edit is applied, chosen on validation prompts; None for the base."""
    factor: float | None
    """Its strength, chosen with it."""
    validation: float
    """Score of that choice on the validation prompts."""
    test: Steered
    """On prompts that were neither trained on nor used for the choice."""


@final
@dataclass(frozen=True, repr=False)
class SteeringComparison(Result):
    """Steering methods at calibrated strength, each with the same number of candidates."""

    reference: str
    """The method that the others are compared with."""
    n_candidates: int
    """Layers times factors, for every method."""
    runs: tuple[SteeringRun, ...]

    def of(self, method: str) -> list[SteeringRun]:
        """Returns the runs of a method.

        Args:
            method: its name.

        Raises:
            ValueError: If it was not compared.
        """
        names = list(dict.fromkeys(run.method for run in self.runs))
        if method not in names:
            raise ValueError(f"Unknown method {method!r}. Choose from: {', '.join(names)}")
        return [run for run in self.runs if run.method == method]

    def gain(self, method: str) -> tuple[float, float, float]:
        """Returns the mean gain over the reference, and the ends of its 95% interval.

        The test prompts are drawn with replacement. A prompt keeps all its concepts and seeds,
        which share the prompt and are not independent. So the interval is about other prompts, not
        about other concepts or models.

        Args:
            method: its name.
        """
        gains = self._by_prompt(method) - self._by_prompt(self.reference)
        # Axes: draw, prompt. The seed is fixed, so one comparison always shows the same interval.
        drawn = np.random.default_rng(0).integers(len(gains), size=(_DRAWS, len(gains)))
        low, high = np.quantile(gains[drawn].mean(1), (0.025, 0.975))
        return float(gains.mean()), float(low), float(high)

    def _by_prompt(self, method: str) -> np.ndarray:
        """The overall score of each test prompt: the mean over concepts and seeds."""
        runs = {(run.concept, run.seed): run for run in self.of(method)}
        # The same order for every method, so that differences are of pairs.
        return np.mean([runs[key].test.overall for key in sorted(runs)], axis=0)

    def by_method(self) -> list[dict[str, Any]]:
        """Returns one line per method: means over concepts, seeds and prompts; the range over seeds; the gain."""
        lines = []
        for method in dict.fromkeys(run.method for run in self.runs):
            runs = self.of(method)
            seeds = [np.mean([run.test.mean() for run in runs if run.seed == seed]) for seed in {r.seed for r in runs}]
            scores = {
                name: float(np.mean([getattr(run.test, name) for run in runs]))
                for name in ("concept", "instruct", "fluency", "overall")
            }
            gain, low, high = self.gain(method)
            lines.append(
                {"method": method, **scores, "lowest seed": min(seeds), "highest seed": max(seeds)}
                | {"gain": gain, "from": low, "to": high}
            )
        return lines

    def to_dataframe(self) -> pd.DataFrame:
        """Returns `by_method` as a table."""
        return pd.DataFrame(self.by_method())

    def to_markdown(self) -> str:
        """Returns the table in Markdown, with the range over seeds and the interval of the gain in brackets."""
        head = ("method", "concept", "instruct", "fluency", "overall (seeds)", f"gain over {self.reference} (95%)")
        rows = []
        for line in self.by_method():
            parts = [f"{line[name]:.2f}" for name in ("concept", "instruct", "fluency")]
            overall = f"{line['overall']:.2f} ({line['lowest seed']:.2f} to {line['highest seed']:.2f})"
            gain = f"{line['gain']:+.2f} ({line['from']:+.2f} to {line['to']:+.2f})"
            rows.append((line["method"], *parts, overall, "" if line["method"] == self.reference else gain))
        return "\n".join("| " + " | ".join(row) + " |" for row in (head, ("---",) * len(head), *rows))

    def headline(self) -> str:
        means = {name: np.mean(self._by_prompt(name)) for name in dict.fromkeys(run.method for run in self.runs)}
        best = max(means, key=lambda name: means[name])
        return (
            f"{len(means)} methods, {self.n_candidates} candidates each: {best} has the highest score, {means[best]:.2f} of 2; "
            f"{self.reference} {means[self.reference]:.2f}"
        )
