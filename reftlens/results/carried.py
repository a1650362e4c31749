"""Result of carrying an edit to another model: what each direction loses, and what is left of the effect."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import final

import pandas as pd

from reftlens.results.base import Result


@final
@dataclass(frozen=True)
class CarriedDirection:
    """How well the maps between two models represent one direction of an edit, on held-out prompts."""

    site: str
    index: int
    """By strength on the source, the strongest first."""
    read: float
    """R^2 of what the direction reads, computed from the target's states. NaN where it does not vary."""
    write: float
    """R^2 of the target's states along the carried write direction, computed from the source's states."""
    shuffled_read: float
    """The same by maps that were fitted on shuffled prompts."""
    shuffled_write: float


@final
@dataclass(frozen=True)
class CarriedEffect:
    """What one edit does on held-out prompts."""

    edit: str
    """Which edit, on which model."""
    effect: float
    """Mean change of the score."""
    share: float
    """The part of the effect of the edit on its own model."""
    kl: float
    """Mean KL divergence of its model's distribution from that without the edit, in nats."""


@final
@dataclass(frozen=True, eq=False, repr=False)
class Carried(Result):
    """An edit that was carried to another model by maps between their states."""

    effects: tuple[CarriedEffect, ...]
    """On its own model; carried; one trained on the target, if given; and the controls."""
    directions: tuple[CarriedDirection, ...]
    fits: tuple[str, ...]
    """For each site: the kind of map, its penalties, and what it was fitted on."""
    score: str
    """Name of the score, with its unit."""
    n_held_out: int

    def headline(self) -> str:
        own, *others = self.effects
        found = ", ".join(f"{one.edit} {one.effect:+.3g} ({one.share:.0%})" for one in others)
        return (
            f"effect in {self.score} on {self.n_held_out} held-out prompts: {own.edit} {own.effect:+.3g}; {found}; "
            f"{'; '.join(dict.fromkeys(self.fits))}"
        )

    def to_dataframe(self) -> pd.DataFrame:
        """Returns one row per edit: its effect, its share and its KL divergence."""
        return pd.DataFrame([asdict(effect) for effect in self.effects])

    def directions_to_dataframe(self) -> pd.DataFrame:
        """Returns one row per direction: what the maps represent of it, and what those of shuffled prompts do."""
        return pd.DataFrame([asdict(direction) for direction in self.directions])
