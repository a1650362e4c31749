"""Corrects what several methods say about several vectors for everything that was looked at, by one max-statistic.

Every look has a furthest score, for the edit's vector and for each random set. Its rank among all
sets of the look, the edit's included, makes looks comparable whose scores have different units and
tails. Equal ranks are told apart by the distance from the median, (furthest - median) / (90th
percentile - median), so that many looks do not need many random sets. The best key over looks, in
each random set, is the null of everything (Westfall & Young 1993). If the edit's vectors are
themselves random, all sets are exchangeable, so the corrected p is at most .05 in 5% of cases.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from reftlens.analysis.readers.vectors import Look
from reftlens.results import Meaning, Operator

LEVEL = 0.05
"""Probability under the null that any score is beyond `Meaning.chance`."""


@final
@dataclass(frozen=True, eq=False)
class Scored:
    """What one method says about one look."""

    method: str
    look: Look
    names: tuple[str, ...]
    """The furthest names for the edit's own vector."""
    readings: tuple[float, ...]
    scores: tuple[float, ...]
    """By which names are compared."""
    furthest: Float[Tensor, " set"]
    """Size of the furthest score, of the edit's vector first."""
    n_names: int
    unit: str
    two_sided: bool = True
    """Whether a negative score is as far as a positive one."""
    controls: tuple[tuple[str, float], ...] = ()
    states: tuple[tuple[str, tuple[str, ...]], ...] = ()


@final
class _Ranked:
    """Keys of one look: larger is rarer. The whole part is minus the rank, and the rest is below one half."""

    def __init__(self, furthest: Float[Tensor, " set"]) -> None:
        # All sets, the edit's included: otherwise its rank and units would not be exchangeable with
        # theirs.
        everything = furthest.double()
        self.null = everything[1:].sort(descending=True).values
        self.middle = everything.median()
        self.spread = (everything.quantile(0.9) - self.middle).clamp(min=1e-12)
        # A set counts in its own rank, as the edit's scores do in `keys`: the furthest has rank 1.
        rank = (everything[None, 1:] >= everything[1:, None]).sum(dim=1) + (everything[0] >= everything[1:])
        self.null_keys = self._keys(rank, everything[1:])

    def _keys(self, rank: Tensor, size: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        z = (size - self.middle) / self.spread
        return z / (1 + z.abs()) / 2 - rank

    def alone(self, size: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Returns p among the sets of this look."""
        return (1 + (self.null[None] >= size[:, None]).sum(dim=1)).double() / (1 + len(self.null))

    def keys(self, size: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Returns the keys of the edit's scores."""
        return self._keys(1 + (self.null[None] >= size[:, None]).sum(dim=1), size)

    def size_of(self, key: float) -> float:
        """Returns the size beyond which scores have a larger key."""
        rank = min(round(-key), len(self.null))
        # The inverse of `_keys`, kept between the null's values of the ranks beside it.
        part = 2 * (key + rank)
        size = float(self.middle + self.spread * part / max(1 - abs(part), 1e-12))
        least = float(self.null[rank - 1])
        return max(least, size if rank == 1 else min(size, float(self.null[rank - 2])))


def corrected(operators: Sequence[Operator], scored: Sequence[Scored]) -> list[Meaning]:
    """Adds p to every score.

    Args:
        operators: of the edit's sites.
        scored: what all methods say about all looks.
    """
    if not scored:
        return []
    looks = [_Ranked(one.furthest) for one in scored]
    # Set i of every look together is one draw of the null for all of them.
    null = torch.stack([look.null_keys for look in looks]).amax(dim=0).sort(descending=True).values
    critical = float(null[max(1, int(LEVEL * (len(null) + 1) + 1e-9)) - 1])
    found = []
    for look, one in zip(looks, scored, strict=True):
        size = torch.tensor(one.scores, dtype=torch.float64)
        size = size.abs() if one.two_sided else size
        every = (1 + (null[None] >= look.keys(size)[:, None]).sum(dim=1)).double() / (1 + len(null))
        operator = operators[one.look.place]
        found.append(
            Meaning(
                hook_name=operator.hook_name,
                looked_at=one.look.name,
                method=one.method,
                said=tuple(
                    zip(one.names, one.readings, one.scores, look.alone(size).tolist(), every.tolist(), strict=True)
                ),
                unit=one.unit,
                chance=look.size_of(critical),
                n_null=len(null),
                n_names=one.n_names,
                n_looks=len(scored),
                controls=one.controls,
                states=one.states,
                site=operator.site,
            )
        )
    return found
