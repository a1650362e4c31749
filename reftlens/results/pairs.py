"""Two edits side by side: the overlap of their directions and the agreement of their changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import final

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from reftlens.results.base import Result


@final
@dataclass(frozen=True, eq=False, repr=False)
class Overlap(Result):
    """Principal angles between two subspaces of one activation space."""

    first: str
    second: str
    """Names of the two, for a reader."""
    angles: Float[Tensor, " angle"]
    """Principal angles in degrees, smallest first: 0 is a shared direction, 90 a perpendicular one."""
    score: float
    """Mean squared cosine of the angles: 1 if the smaller subspace lies inside the larger, 0 if they are perpendicular."""
    null_scores: dict[str, Float[Tensor, " draw"]]
    """Null -> scores of random subspaces of the first one's dimension against the second."""
    null_angles: dict[str, Float[Tensor, " angle"]]
    """Null -> mean angles of these draws, in degrees."""

    def p(self, null: str) -> float:
        """Part of the null's draws that overlap at least as much, (1 + count) / (1 + draws).

        Raises:
            KeyError: for a null that was not drawn.
        """
        draws = self.null_scores[null]
        return (1 + int((draws >= self.score).sum())) / (1 + len(draws))

    def headline(self) -> str:
        nulls = ", ".join(
            f"{null} {float(draws.mean()):.3f} (p = {self.p(null):.2g})" for null, draws in self.null_scores.items()
        )
        return (
            f"{self.first} with {self.second}: {self.score:.3f}; {nulls or 'no null was given, so this is no evidence'}"
        )

    def to_dataframe(self) -> pd.DataFrame:
        """One line for each null: the score and the mean angle, measured and under the null, and p."""
        lines = [
            {
                "first": self.first,
                "second": self.second,
                "score": self.score,
                "mean angle": float(self.angles.mean()),
                "null": null,
                "null score": float(draws.mean()),
                "null mean angle": float(self.null_angles[null].mean()),
                "p": self.p(null),
            }
            for null, draws in self.null_scores.items()
        ]
        if not lines:
            alone = {"first": self.first, "second": self.second, "score": self.score}
            lines = [{**alone, "mean angle": float(self.angles.mean()), "null": "none"}]
        return pd.DataFrame(lines)


@final
@dataclass(frozen=True, repr=False)
class Agreement(Result):
    """Two edits compared as functions, in their decompositions, and in their raw matrices."""

    first: str
    second: str
    sites: tuple[str, ...]
    """Hooks where both act on the same tokens: only there can deltas and directions be compared."""
    relative_error: float
    """rms |delta_1 - delta_2| over the rms length of both, on held-out activations: 0 is equal, 1.41 unrelated. NaN
    without a common site, like all that follows but the KL."""
    cosine: float
    """Mean cosine of the two changes of a token."""
    control_error: float
    """The same with the second edit turned to random directions: what edits of these lengths have that know neither model nor
    data. Trained edits that share nothing have more in common, so this is not a null of them."""
    control_cosine: float
    kl: float
    """Mean KL divergence between the next-token distributions of the two edited models, in nats."""
    control_kl: float
    """The same with the second edit turned."""
    rank: int
    """Directions compared by angle."""
    angle: float
    """Mean principal angle of the strongest write directions of the decompositions, in degrees."""
    null_angle: float
    """Of random subspaces of this dimension (Haar), which trained edits that share nothing fall below."""
    raw_angle: float
    """Mean principal angle of all that the edits can write, span(R): known to mislead, since what R holds beside the
    used directions is left from its first weights."""
    raw_null_angle: float
    """Of random subspaces of the dimension of R."""
    n_null_edits: int = 0
    """Edits trained on shuffled answers from other first weights that were given as the null; 0 for none."""
    null_cosine: float = float("nan")
    """Mean cosine of the pairs with or among the null edits, which have nothing in common but site, model and prompts."""
    null_kl: float = float("nan")
    null_trained_angle: float = float("nan")
    p_cosine: float = float("nan")
    """Part of all pairs among this pair's edits and the null edits, this pair included, that are as close. Where nothing is
    shared, each pair is as likely to be the closest, so p is exact; it is at least 1 / the number of pairs."""
    p_kl: float = float("nan")
    """The same, by KL in both directions."""
    p_angle: float = float("nan")
    """The same, by the angle of write directions."""

    @property
    def not_identified(self) -> bool:
        """Whether both say nearly the same (KL below a tenth of the turned control's) by other directions (over 15 degrees).

        What they were trained for then does not fix their directions, and neither edit's can be read as the ones.
        """
        return self.kl < 0.1 * self.control_kl and self.angle > 15

    @property
    def n_null_pairs(self) -> int:
        """Pairs that p counts, this one included; 0 without null edits."""
        n = self.n_null_edits + 2
        return n * (n - 1) // 2 if self.n_null_edits else 0

    def headline(self) -> str:
        found = f"{self.first} and {self.second}: cosine of changes {self.cosine:.2f}, angle {self.angle:.0f}, KL {self.kl:.2g} nats"
        found += " (outputs agree, directions do not: not identified)" * self.not_identified
        if not self.n_null_edits:
            return (
                f"{found}; no claim without edits trained on shuffled answers (null=...): turned at random cosine "
                f"{self.control_cosine:.2f}, KL {self.control_kl:.2g}"
            )
        return (
            f"{found}; edits of shuffled answers {self.null_cosine:.2f} (p = {self.p_cosine:.2g}), {self.null_trained_angle:.0f} "
            f"(p = {self.p_angle:.2g}), {self.null_kl:.2g} (p = {self.p_kl:.2g}), smallest p {1 / self.n_null_pairs:.2g}"
        )

    def to_dataframe(self) -> pd.DataFrame:
        """One line."""
        return agreements_to_dataframe([self])


def agreements_to_dataframe(agreements: Sequence[Agreement]) -> pd.DataFrame:
    """One line for each pair of edits."""
    return pd.DataFrame(
        [{**asdict(pair), "sites": ", ".join(pair.sites), "not identified": pair.not_identified} for pair in agreements]
    )
