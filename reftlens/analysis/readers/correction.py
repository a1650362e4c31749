"""Corrects what several methods say about several vectors for everything that was looked at, by one max-statistic.

Every look has a furthest score, for the edit's vector and for each random set. These are put in units of the look's own
spread, (furthest - median) / (90th percentile - median) over all sets, the edit's included. The largest over looks, in each
random set, is the null of everything (Westfall & Young 1993). If the edit's vectors are themselves random, all sets are
exchangeable, so the corrected p is at most .05 in 5% of cases.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from reftlens.analysis.readers.looks import Case, Look
from reftlens.results import Meaning

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
    scores: tuple[float, ...]
    furthest: Float[Tensor, " set"]
    """Size of the furthest score, of the edit's vector first."""
    n_names: int
    unit: str
    two_sided: bool = True
    """Whether a negative score is as far as a positive one."""
    controls: tuple[tuple[str, float], ...] = ()
    states: tuple[tuple[str, tuple[str, ...]], ...] = ()


def corrected(case: Case, scored: Sequence[Scored]) -> list[Meaning]:
    """Adds p to every score.

    Args:
        case: the edit.
        scored: what all methods say about all looks.
    """
    if not scored:
        return []
    sizes = torch.stack([one.furthest.double() for one in scored])
    middle = sizes.median(dim=1).values
    # Over all sets, the edit's included: otherwise its units would not be exchangeable with theirs.
    spread = (sizes.quantile(0.9, dim=1) - middle).clamp(min=1e-12)
    units = (sizes - middle[:, None]) / spread[:, None]
    # Set i of every look together is one draw of the null for all of them.
    null = units[:, 1:].amax(dim=0)
    allowed = max(1, int(LEVEL * (len(null) + 1) + 1e-9))
    chance = middle + spread * null.sort(descending=True).values[allowed - 1]
    found = []
    for place, one in enumerate(scored):
        size = torch.tensor(one.scores, dtype=torch.float64)
        size = size.abs() if one.two_sided else size
        alone = [_p(sizes[place, 1:], float(value)) for value in size]
        every = [_p(null, float((value - middle[place]) / spread[place])) for value in size]
        operator = case.operators[one.look.place]
        found.append(
            Meaning(
                hook_name=operator.hook_name,
                looked_at=one.look.name,
                method=one.method,
                said=tuple(zip(one.names, one.scores, alone, every, strict=True)),
                unit=one.unit,
                chance=float(chance[place]),
                n_null=len(null),
                n_names=one.n_names,
                n_looks=len(scored),
                controls=one.controls,
                states=one.states,
                site=operator.site,
            )
        )
    return found


def _p(null: Float[Tensor, " draw"], size: float) -> float:
    # A score is compared with itself in another precision, so equality needs room.
    return (1 + int((null >= size - 1e-9 * abs(size)).sum())) / (1 + len(null))
