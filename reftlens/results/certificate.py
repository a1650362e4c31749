"""The result of `analysis.certify`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import pandas as pd

from reftlens.results.base import Result


@final
@dataclass(frozen=True, repr=False)
class WorstPrompt(Result):
    """A prompt that a search found. It need not belong to the population."""

    prompt: str
    start: str
    """The prompt of the population that the search began with."""
    kl: float
    """KL(base || edited) of the next token, in nats."""
    start_kl: float
    swapped: int
    """Number of tokens that differ."""
    tokens: tuple[int, ...] = ()
    """The prompt as tokens; its text may be divided differently."""

    def headline(self) -> str:
        return (
            f"{self.prompt!r}: KL {self.kl:.3g} nats, {self.swapped} tokens from {self.start!r} ({self.start_kl:.3g})"
        )

    def to_dataframe(self) -> pd.DataFrame:
        """Returns the result as one row."""
        line = {"prompt": self.prompt, "kl": self.kl, "swapped": self.swapped, "start": self.start}
        return pd.DataFrame([{**line, "start_kl": self.start_kl}])


@final
@dataclass(frozen=True, repr=False)
class Certificate(Result):
    """Upper bounds on KL(base || edited) of the next token over a population, which hold together; and what a search found."""

    n: int
    """Prompts of the population that were measured."""
    digest: str
    """Checksum of their tokens."""
    confidence: float
    cap: float
    """Nats at which KL is cut for its mean."""
    mean: float
    """Mean of the cut KL."""
    mean_bound: float
    thresholds: tuple[float, ...]
    exceeding: tuple[int, ...]
    """Prompts above each threshold."""
    exceeding_bound: tuple[float, ...]
    """Largest fraction of the population above each threshold."""
    largest: float
    """Largest KL that was measured."""
    worst: tuple[WorstPrompt, ...] = ()
    """Finds of the search, largest first. No part of the bounds."""

    def headline(self) -> str:
        # `certify` always has the cap among the thresholds.
        above = self.exceeding_bound[self.thresholds.index(self.cap)]
        found = f"; a search found {self.worst[0].kl:.3g} nats" if self.worst else ""
        return (
            f"with {self.confidence:.0%} confidence, the mean of min(KL, {self.cap:g}) is at most {self.mean_bound:.3g} nats and at "
            f"most {above:.2%} of prompts exceed {self.cap:g} ({self.n:,} prompts, mean {self.mean:.3g}){found}"
        )

    def to_dataframe(self) -> pd.DataFrame:
        """Returns one row per bound: what is bounded, measured and bound."""
        mean = {"bounded": f"mean of min(KL, {self.cap:g})", "measured": self.mean, "at_most": self.mean_bound}
        parts = zip(self.thresholds, self.exceeding, self.exceeding_bound, strict=True)
        tails = [
            {"bounded": f"fraction of prompts above {level:g} nats", "measured": count / self.n, "at_most": bound}
            for level, count, bound in parts
        ]
        return pd.DataFrame([mean, *tails])
