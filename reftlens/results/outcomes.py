"""What became of groups of prompts, and of sites."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import final

import pandas as pd

from reftlens.results.base import Result


@final
@dataclass(frozen=True, repr=False)
class Outcome(Result):
    """How one group of prompts fares under an edit."""

    group: str
    """What the prompts have in common, as a reader should see it."""
    wanted: str
    """What counts as right in this group: "new answer" or "old answer"."""
    n: int
    """Prompts."""
    base: float
    """Part of the prompts that the base model gets right."""
    edited: float
    """Part that the edited model gets right."""
    control: float
    """Part under the same edit turned to random directions."""
    kl: float
    """Mean KL divergence of the next-token distribution, base to edited, in nats."""

    def headline(self) -> str:
        return (
            f"{self.group}, {self.n} prompts, {self.wanted}: base {self.base:.0%}, edited {self.edited:.0%}, random "
            f"directions {self.control:.0%}, KL {self.kl:.2g} nats"
        )

    def to_dataframe(self) -> pd.DataFrame:
        """One line."""
        return outcomes_to_dataframe([self])


def outcomes_to_dataframe(outcomes: Sequence[Outcome]) -> pd.DataFrame:
    """One line for each group."""
    return pd.DataFrame([asdict(outcome) for outcome in outcomes])


@final
@dataclass(frozen=True, repr=False)
class SiteCheck(Result):
    """Whether an edit at one site reaches the model (see `check_sites`)."""

    site: str
    """The site as it prints."""
    fired: int
    """Runs of its activation point in one forward pass."""
    logit_change: float
    """|logits under a push there - logits| / |logits|."""
    gradient: float
    """Norm of the gradient that reaches the edit's parameters, for a random sum of the logits."""
    refused: str = ""
    """Why the model does not take an edit there; empty where it does."""

    @property
    def holds(self) -> bool:
        """Fires once, changes the logits by more than rounding, and carries gradient."""
        return not self.refused and self.fired == 1 and self.logit_change > 1e-6 and self.gradient > 0

    def headline(self) -> str:
        found = f"refused, {self.refused}" if self.refused else "holds" if self.holds else "does not hold"
        return f"{self.site}: {found}; fired {self.fired}, logits change by {self.logit_change:.2g}, gradient {self.gradient:.2g}"

    def to_dataframe(self) -> pd.DataFrame:
        """One line."""
        return pd.DataFrame([{**asdict(self), "holds": self.holds}])


@final
@dataclass(frozen=True, repr=False)
class SiteChecks(Result):
    """Every site of an edit, checked on one model."""

    sites: tuple[SiteCheck, ...]

    @property
    def holds(self) -> bool:
        """Whether all sites hold."""
        return all(check.holds for check in self.sites)

    def to_dataframe(self) -> pd.DataFrame:
        """One line for each site."""
        return pd.DataFrame([{**asdict(check), "holds": check.holds} for check in self.sites])

    def headline(self) -> str:
        failing = [check.site for check in self.sites if not check.holds]
        held = f"{len(self.sites) - len(failing)} of {len(self.sites)} sites hold"
        return held + (f"; not {', '.join(failing[:3])}{', ...' * (len(failing) > 3)}" if failing else "")
