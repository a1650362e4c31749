"""Results of small experiments on the ReFT paper's side claims: the claim, its settings, and rows with controls."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import final

import numpy as np
import pandas as pd

from reftlens.results.base import Result
from reftlens.results.steering import SteeringComparison


@final
@dataclass(frozen=True)
class Claim:
    """The claim, its source, and the settings of the experiment."""

    text: str
    source: str
    settings: tuple[tuple[str, str, str], ...]
    """(setting, in the paper or its reference code, here)."""
    model: str


class ClaimResult(Result):
    """A tested claim. Its table has one row per run, including controls."""

    claim: Claim

    @abstractmethod
    def findings(self) -> tuple[str, ...]:
        """The findings, in sentences generated from the numbers."""

    def headline(self) -> str:
        return f"{self.claim.model}: {'; '.join(self.findings())}"


@final
@dataclass(frozen=True)
class Recall:
    """One string recalled from one edit."""

    series: str
    """What the string is, or what was done to the edit."""
    layer: int
    length: int
    """Tokens of the string."""
    returned: int
    """Tokens that greedy decoding gives before the first wrong one."""
    base: int
    """The same of the model without an edit."""


@final
@dataclass(frozen=True, repr=False)
class Memorised(ClaimResult):
    """Length of the string that one vector can store."""

    claim: Claim
    rows: tuple[Recall, ...]

    def of(self, series: str) -> list[Recall]:
        """One series, by length."""
        return sorted((row for row in self.rows if row.series == series), key=lambda row: row.length)

    @property
    def series(self) -> tuple[str, ...]:
        """The names of the series, in order."""
        return tuple(dict.fromkeys(row.series for row in self.rows))

    def to_dataframe(self) -> pd.DataFrame:
        return pd.DataFrame([asdict(row) for row in self.rows])

    def findings(self) -> tuple[str, ...]:
        longest = max((row.length for row in self.of("text") if row.returned == row.length), default=0)
        verdict = f"claimed up to 2,048 tokens of text for LLaMA-7B; {self.claim.model} gave back {longest}"
        return (*(f"{name}: {_recalled(self.of(name))}" for name in self.series), verdict)


def _recalled(rows: Sequence[Recall]) -> str:
    whole = [row.length for row in rows if row.returned == row.length]
    failed = [row for row in rows if row.returned < row.length]
    longest = f"longest string returned whole {max(whole)} tokens" if whole else "no string was returned whole"
    if not failed:
        return f"{longest}; none of those tried failed, so the limit lies above"
    return f"{longest}; first failure at {failed[0].length} tokens, of which {failed[0].returned} came back"


@final
@dataclass(frozen=True)
class Coded:
    """One codebook in one edit."""

    keys: str
    """Form of the keys."""
    pairs: int
    rank: int
    accuracy: float
    """Fraction of keys answered with their own word."""
    shuffled: float
    """Control: fraction of keys answered with the word of the next key."""
    base: float
    """Accuracy of the model without an edit."""


@final
@dataclass(frozen=True, repr=False)
class Codebook(ClaimResult):
    """Number of codebook keys that one edit can answer."""

    claim: Claim
    rows: tuple[Coded, ...]

    def to_dataframe(self) -> pd.DataFrame:
        return pd.DataFrame([asdict(row) for row in self.rows])

    def findings(self) -> tuple[str, ...]:
        found = []
        for keys, rank in dict.fromkeys((row.keys, row.rank) for row in self.rows):
            rows = [row for row in self.rows if (row.keys, row.rank) == (keys, rank)]
            held = ", ".join(f"{row.accuracy:.0%} of {row.pairs}" for row in rows)
            found.append(f"{keys}, rank {rank}: {held}; shuffled keys at most {max(row.shuffled for row in rows):.0%}")
        return tuple(found)


@final
@dataclass(frozen=True)
class Spoken:
    """Answers of one model, edited or not, to prompts that no edit was trained on."""

    edit: str
    manner: float
    """Part of the answers in the new manner."""
    moved: float
    """Part that give the new fact; NaN where none was taught."""
    kept: float
    """Part that give every other fact right."""
    together: float
    """Part in the new manner that also give the new fact, or, where none was taught, every fact right."""
    n: int
    sample: str
    """The first answer."""


@final
@dataclass(frozen=True, repr=False)
class Composed(ClaimResult):
    """Two tasks trained in two halves of one edit, used alone and together."""

    claim: Claim
    rows: tuple[Spoken, ...]

    def to_dataframe(self) -> pd.DataFrame:
        return pd.DataFrame([asdict(row) for row in self.rows])

    def findings(self) -> tuple[str, ...]:
        return tuple(
            f"{row.edit}: {row.manner:.0%} in the new manner, {row.moved:.0%} with the new fact, {row.together:.0%} with both"
            for row in self.rows
        )


@final
@dataclass(frozen=True, repr=False)
class Mannered(ClaimResult):
    """A manner learnt from a few examples, on prompts that were not among them."""

    claim: Claim
    rows: tuple[Spoken, ...]

    def to_dataframe(self) -> pd.DataFrame:
        return pd.DataFrame([asdict(row) for row in self.rows]).drop(columns="moved")

    def findings(self) -> tuple[str, ...]:
        return tuple(
            f"{row.edit}: {row.manner:.0%} in the new manner, {row.kept:.0%} with the facts right" for row in self.rows
        )


@final
@dataclass(frozen=True)
class Timed:
    """One way to decode, timed in rounds."""

    run: str
    seconds: tuple[float, ...]
    """CPU seconds of each round."""
    changes: int
    """How often the edits computed a change in one round, over all sites and steps."""
    passes: int
    """Forward passes of the model in one round."""


@final
@dataclass(frozen=True, repr=False)
class Overhead(ClaimResult):
    """Time of decoding with an edit over the time without, round by round."""

    claim: Claim
    rows: tuple[Timed, ...]
    """The first is the base model, which the others are divided by."""

    def ratio(self, row: Timed) -> tuple[float, float, float]:
        """Lower quartile, median and upper quartile of time / base time in the same round."""
        # Round by round, because the speed of a machine drifts and both runs of a round share it.
        ratios = np.array(row.seconds) / np.array(self.rows[0].seconds)
        low, middle, high = np.quantile(ratios, (0.25, 0.5, 0.75))
        return float(low), float(middle), float(high)

    def to_dataframe(self) -> pd.DataFrame:
        lines = []
        for row in self.rows:
            low, middle, high = self.ratio(row)
            lines.append(
                {
                    "run": row.run,
                    "median CPU s": float(np.median(row.seconds)),
                    "ratio, lower quartile": low,
                    "ratio, median": middle,
                    "ratio, upper quartile": high,
                    "changes made": row.changes,
                    "forward passes": row.passes,
                    "rounds": len(row.seconds),
                }
            )
        return pd.DataFrame(lines)

    def findings(self) -> tuple[str, ...]:
        found = []
        for row in self.rows[1:]:
            low, middle, high = self.ratio(row)
            found.append(
                f"{row.run}: {middle - 1:+.1%} CPU time (quartiles {low - 1:+.1%} to {high - 1:+.1%}); {row.changes} changes "
                f"in {row.passes} forward passes"
            )
        return tuple(found)


@final
@dataclass(frozen=True, repr=False)
class SteeringClaim(ClaimResult):
    """Steering methods at calibrated strength, on topics whose facts are known."""

    claim: Claim
    compared: SteeringComparison

    def to_dataframe(self) -> pd.DataFrame:
        return self.compared.to_dataframe()

    def findings(self) -> tuple[str, ...]:
        lines, reference = self.compared.by_method(), self.compared.reference
        (own,) = [line["overall"] for line in lines if line["method"] == reference]
        found = [f"{reference}: {own:.2f} of 2"]
        for line in lines:
            if line["method"] != reference:
                # By the interval, because the sign of a gain near 0 says nothing.
                sign = "more" if line["from"] > 0 else "less" if line["to"] < 0 else "not clearly different"
                gain = f"{line['gain']:+.2f}, 95% {line['from']:+.2f} to {line['to']:+.2f}"
                found.append(f"{line['method']}: {line['overall']:.2f}, {sign} ({gain})")
        return tuple(found)
