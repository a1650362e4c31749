"""How often a null or a verdict raises a false alarm, beside how often it says it does.

A rate k / n of draws in which nothing is there is held against the nominal level by its Clopper-Pearson interval, at 99%
because there are many such lines: one in a hundred honest ones misses by chance.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from reftlens.benchmark.known import Known

CONFIDENCE = 0.99


def interval(hits: int, n: int) -> tuple[float, float]:
    """Clopper-Pearson's interval of a rate.

    Args:
        hits: draws with an alarm.
        n: all draws.
    """
    tail = (1 - CONFIDENCE) / 2
    low = 0.0 if hits == 0 else _solve(lambda rate: 1 - _at_most(hits - 1, n, rate), tail)
    high = 1.0 if hits == n else 1 - _solve(lambda rest: _at_most(hits, n, 1 - rest), tail)
    return low, high


def alarm_row(what: str, alarms: Sequence[bool], *, level: float, at_most: bool = False) -> Known:
    """One line: alarms over draws in which nothing is there, and the level that is claimed for them.

    Args:
        what: the null or verdict, and what was drawn.
        alarms: of each draw.
        level: the claimed rate.
        at_most: the claim is a bound; a lower rate holds it.
    """
    hits, n = sum(alarms), len(alarms)
    low, high = interval(hits, n)
    error = max(0.0, low - level, 0.0 if at_most else level - high)
    claim = f"{'at most ' if at_most else ''}{level:.1%}"
    found = f"{hits / n:.1%} of {n} draws, {CONFIDENCE:.0%} interval {low:.1%} to {high:.1%}"
    return Known("false alarms", f"{what}: {claim}", found, error, 0.0, "share")


def _at_most(k: int, n: int, rate: float) -> float:
    """Chance of k hits or fewer."""
    return math.fsum(math.comb(n, i) * rate**i * (1 - rate) ** (n - i) for i in range(k + 1))


def _solve(rising: Callable[[float], float], target: float) -> float:
    """Where a function that rises on [0, 1] reaches the target."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < target else (low, middle)
    return low
