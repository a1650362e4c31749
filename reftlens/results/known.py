"""Results on how far outputs determine an edit (see `analysis.identify`)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import final

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from reftlens.results.base import Result, SiteResult

LIMIT = 80.0
"""Degrees up to which a direction is turned."""


@final
@dataclass(frozen=True, repr=False)
class Turn(Result):
    """A direction of an edit, turned to either side until the outputs move by eps."""

    site: str
    what: str
    """"write", "read", or "write subspace": the strongest write directions together, with the rest refitted at each angle."""
    direction: int
    """The number of the direction, or how many the subspace has."""
    toward: str
    """"stiffest" or "freest" by the quadratic form, or the name of a direction that was asked about."""
    predicted: float
    """Degrees by the quadratic form alone."""
    minus: float
    """Degrees to the negative side, at the real KL."""
    plus: float
    kl: float
    """Real KL at the larger of the two, in nats."""
    held_out_kl: float
    """The same turn on the held-out prompts."""
    eps: float

    @property
    def degrees(self) -> float:
        """How far it may turn, to the side where it may turn further."""
        return max(-self.minus, self.plus)

    @property
    def free(self) -> bool:
        """Whether outputs move by less than eps up to the largest angle that is walked."""
        # The angle was walked as a tangent, and turning it back rounds.
        return self.degrees >= LIMIT - 1e-3

    def headline(self) -> str:
        what = f"top {self.direction} write directions" if "subspace" in self.what else f"{self.what} {self.direction}"
        reach = f"at least {LIMIT:.0f}" if self.free else f"{self.degrees:.1f}"
        return (
            f"{self.site}, {what}, {self.toward}: known to {reach} degrees at {self.eps:g} nats "
            f"(held-out KL {self.held_out_kl:.2g}; quadratic form alone {self.predicted:.1f})"
        )

    def to_dataframe(self) -> pd.DataFrame:
        """Returns the result as one row."""
        turned = f"top {self.direction}" if self.what == "write subspace" else str(self.direction)
        return pd.DataFrame(
            [
                {
                    "site": self.site,
                    "turned": self.what,
                    "which": turned,
                    "toward": self.toward,
                    "predicted_angle": self.predicted,
                    "from_angle": self.minus,
                    "to_angle": self.plus,
                    "walked_kl": self.kl,
                    "held_out_kl": self.held_out_kl,
                }
            ]
        )


@final
@dataclass(frozen=True, repr=False)
class Calibrated(Result):
    """The scale at which an edit has a given side effect (see `analysis.calibrate`)."""

    scale: float
    """On top of the scales that the edit has."""
    kl: float
    """Mean KL(base, edited) at this scale, in nats."""
    budget: float
    unscaled: float
    """That KL of the edit as it is."""
    n: int

    @property
    def met(self) -> bool:
        """Whether the budget is met within 5%; not where even the largest scale stays below it."""
        return abs(self.kl / self.budget - 1) <= 0.05

    def headline(self) -> str:
        missed = "" if self.met else f" (the budget of {self.budget:g} is not met)"
        return (
            f"scale {self.scale:.3g}: KL {self.kl:.3g} nats on {self.n} prompts, at scale 1 {self.unscaled:.3g}{missed}"
        )

    def to_dataframe(self) -> pd.DataFrame:
        """Returns the result as one row."""
        return pd.DataFrame([asdict(self)])


@final
@dataclass(frozen=True)
class Smaller:
    """An edit on the path to the smallest one."""

    stage: str
    """What was left out last: "sites", "tokens", "rank", "coordinates"; "all" for the edit itself; or a seed."""
    sites: int
    tokens: float
    """Edited tokens of a prompt, averaged over sites."""
    rank: int
    """The largest rank of a site."""
    numbers: int
    """Parameters that are not zero."""
    effect: float
    """Mean log-probability of the wanted answers, beyond the base's, in nats."""
    kl: float
    """Mean KL(base, edited) on prompts that should not change, in nats."""


@final
@dataclass(frozen=True, repr=False)
class Minimal(Result):
    """The path from an edit to the smallest one that keeps its effect (see `analysis.minimal`)."""

    path: tuple[Smaller, ...]
    seeds: tuple[Smaller, ...]
    """Edits of the smallest shape, trained from the start with other seeds; none without training settings."""
    share: float
    """Part of the effect that had to be kept."""
    kl: float
    """Largest KL elsewhere that was allowed, in nats."""
    n_examples: int
    n_kept: int

    def headline(self) -> str:
        first, last = self.path[0], self.path[-1]
        return (
            f"{last.sites} of {first.sites} sites, {last.tokens:.3g} of {first.tokens:.3g} tokens, rank {last.rank} of {first.rank}, "
            f"{last.numbers:,} of {first.numbers:,} numbers keep {last.effect / first.effect:.0%} of the effect "
            f"(KL elsewhere {last.kl:.2g}, at first {first.kl:.2g} nats)"
        )

    def to_dataframe(self) -> pd.DataFrame:
        """Returns one row per step of the path, then one per seed."""
        return pd.DataFrame([asdict(step) for step in (*self.path, *self.seeds)])


@final
@dataclass(frozen=True, eq=False, repr=False)
class Identified(SiteResult):
    """How far the directions of one site are determined. Counts are local: they hold where the quadratic form does."""

    hook_name: str
    write_free: Float[Tensor, " direction"]
    """For each write direction, strongest first: in how many dimensions it may turn by 45 degrees
    for less than eps, by the quadratic form of the held-out prompts along axes of the others.
    """
    write_dimensions: int
    """Dimensions in which a write direction may turn: those outside the space the edit writes to that later layers can see."""
    read_free: Float[Tensor, " direction"]
    """The same for each read direction, the constant refitted."""
    read_dimensions: int
    read_met: int
    """Dimensions in which the given activations vary; a reading along the others is never met."""
    traded: Float[Tensor, " direction"]
    """Part of what growing or shrinking each write direction does to the outputs that the other
    sites can undo; NaN for an edit of one site.
    """
    mean_unseen: bool
    """Whether later layers cannot see the mean of the coordinates, as a LayerNorm cannot. It is then left out of the count."""
    site: str = ""

    def headline(self) -> str:
        free = ", ".join(f"{count:.0f}" for count in self.write_free[:4].tolist())
        return f"{self.where}: free dimensions of each write direction {free} of {self.write_dimensions} (local)"

    def to_dataframe(self) -> pd.DataFrame:
        """Returns one row per write direction."""
        n = len(self.write_free)
        return pd.DataFrame(
            {
                "site": self.where,
                "direction": range(n),
                "write_identified": (self.write_dimensions - self.write_free).round().int().tolist(),
                "write_dimensions": self.write_dimensions,
                "read_identified": (self.read_dimensions - self.read_free).round().int().tolist(),
                "read_dimensions": self.read_dimensions,
                "read_met": self.read_met,
                "traded": self.traded.tolist(),
            }
        )


@final
@dataclass(frozen=True, eq=False, repr=False)
class Identification(Result):
    """How far outputs determine an edit: dimensions, and the angles by which its directions may turn."""

    eps: float
    """Nats of KL that count as no change."""
    sites: tuple[Identified, ...]
    turns: tuple[Turn, ...]
    dimensions: int
    """Dimensions of the whole edit as a function (A and c of every site, on activations that are met)."""
    free: float
    """In how many of them the function may change by its own size for less than eps (local, held-out)."""
    n_rows: int
    """Probes that the axes come from; no more dimensions than these can be found to be identified."""
    n_prompts: int
    n_held_out: int

    def of(self, what: str) -> tuple[Turn, ...]:
        """Returns the turns of one kind.

        Args:
            what: "write", "read" or "write subspace".
        """
        return tuple(turn for turn in self.turns if turn.what == what)

    def headline(self) -> str:
        known = ", ".join(f"{turn.degrees:.0f} ({turn.toward})" for turn in self.of("write")[:2])
        return (
            f"at {self.eps:g} nats the strongest write direction may turn by {known or 'unknown'} degrees (walked), and "
            f"{self.free:.0f} of {self.dimensions} dimensions of the function are free (local)"
        )

    def to_dataframe(self) -> pd.DataFrame:
        """Returns one row per turn."""
        return pd.concat([turn.to_dataframe() for turn in self.turns], ignore_index=True)
