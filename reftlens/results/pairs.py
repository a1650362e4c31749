"""Results on pairs of edits: the overlap of their directions and the agreement of their changes."""

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
        """Returns the fraction of the null's draws that overlap at least as much, (1 + count) / (1 + draws).

        Raises:
            KeyError: If the null was not drawn.
        """
        draws = self.null_scores[null]
        # The measured pair counts as a draw of its own null, which keeps p above 0 and valid.
        return (1 + int((draws >= self.score).sum())) / (1 + len(draws))

    def headline(self) -> str:
        nulls = ", ".join(
            f"{null} {float(draws.mean()):.3f} (p = {self.p(null):.2g})" for null, draws in self.null_scores.items()
        )
        return (
            f"{self.first} with {self.second}: {self.score:.3f}; {nulls or 'no null was given, so this is no evidence'}"
        )

    def to_dataframe(self) -> pd.DataFrame:
        """Returns one row per null: the score and the mean angle, measured and under the null, and p."""
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
    """rms |delta_1 - delta_2| over the rms length of both, on held-out activations: 0 is equal,
    1.41 unrelated. NaN without a common site, like all that follows but the KL.
    """
    cosine: float
    """Mean cosine of the two changes of a token."""
    control_error: float
    """The same with the second edit's changes in random directions of the same norm. Unrelated
    trained edits are more similar than this, so it is not a null for trained edits.
    """
    control_cosine: float
    kl: float
    """Mean KL divergence between the next-token distributions of the two edited models, in nats."""
    control_kl: float
    """The same with the second edit's changes in random directions."""
    rank: int
    """Directions compared by angle."""
    angle: float
    """Mean principal angle of the strongest write directions of the decompositions, in degrees."""
    null_angle: float
    """The angle for random subspaces of this dimension (Haar). Unrelated trained edits have smaller angles."""
    raw_angle: float
    """Mean principal angle of span(R), all that the edits can write. It is misleading, because the
    unused directions of R come from its initialisation.
    """
    raw_null_angle: float
    """Of random subspaces of the dimension of R."""
    n_null_edits: int = 0
    """Number of null edits, trained on shuffled answers from other initialisations; 0 without a null."""
    null_cosine: float = float("nan")
    """Mean cosine of the pairs with or among the null edits, which share only site, model and prompts."""
    null_kl: float = float("nan")
    null_trained_angle: float = float("nan")
    p_cosine: float = float("nan")
    """Fraction of all pairs among this pair's edits and the null edits, including this pair, that
    are as close. For unrelated edits, every pair is equally likely to be the closest, so p is
    exact. It is at least 1 / number of pairs.
    """
    p_kl: float = float("nan")
    """The same, by KL in both directions."""
    p_angle: float = float("nan")
    """The same, by the angle of write directions."""
    output_angle: float = float("nan")
    """Mean principal angle of the same write directions in the output metric E[M]^(1/2): 0 where
    both do the same to the outputs, whatever their plain angle.
    """
    output_null_angle: float = float("nan")
    """The mean of that angle over random pairs of subspaces (Haar)."""
    output_null_low: float = float("nan")
    """Its 2.5th percentile over these pairs: below it, chance is unlikely."""
    null_low: float = float("nan")
    """The 2.5th percentile of the plain angle over the same pairs."""
    output_trained_angle: float = float("nan")
    """Mean of the angle over the pairs with or among the null edits."""
    output_trained_low: float = float("nan")
    """The smallest of these."""
    null_trained_low: float = float("nan")
    """The smallest plain angle of those pairs."""
    p_output_angle: float = float("nan")
    """As `p_angle`, in the output metric."""
    turned_kl: float = float("nan")
    """KL between the first edit and the first edit plus the difference of the two, turned to random
    directions at equal norm, beside `kl`: how much the outputs would differ, if the difference
    ignored what they depend on.
    """

    @property
    def not_identified(self) -> bool:
        """Whether outputs nearly agree (KL below a tenth of the control's) and directions differ (by over 15 degrees).

        The training objective then does not determine the directions, and neither edit's directions
        are special.
        """
        return self.kl < 0.1 * self.control_kl and self.angle > 15

    @property
    def n_null_pairs(self) -> int:
        """Number of pairs used for p, including this one; 0 without null edits."""
        n = self.n_null_edits + 2
        return n * (n - 1) // 2 if self.n_null_edits else 0

    def headline(self) -> str:
        found = f"{self.first} and {self.second}: cosine of changes {self.cosine:.2f}, angle {self.angle:.0f}, KL {self.kl:.2g} nats"
        # NaN, where it was not measured, differs from itself.
        if self.output_angle == self.output_angle:
            found += f", angle in the output metric {self.output_angle:.0f} (random pairs {self.output_null_angle:.0f})"
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
        """Returns the result as one row."""
        return agreements_to_dataframe([self])


def agreements_to_dataframe(agreements: Sequence[Agreement]) -> pd.DataFrame:
    """Returns one row per pair of edits."""
    return pd.DataFrame(
        [{**asdict(pair), "sites": ", ".join(pair.sites), "not identified": pair.not_identified} for pair in agreements]
    )
