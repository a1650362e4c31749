"""Compares the false-alarm rate of a null or verdict with its nominal level.

The rate k / n over draws without an effect is compared by its Clopper-Pearson interval. The
interval is 99%, because there are many such rows: one in a hundred valid ones misses by chance.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from reftlens.benchmark.known import Known

CONFIDENCE = 0.99


def interval(hits: int, n: int) -> tuple[float, float]:
    """Computes the Clopper-Pearson interval of a rate.

    Args:
        hits: number of draws with an alarm.
        n: number of draws.
    """
    tail = (1 - CONFIDENCE) / 2
    low = 0.0 if hits == 0 else _solve(lambda rate: 1 - _at_most(hits - 1, n, rate), tail)
    # In 1 - rate, because _solve needs a rising function.
    high = 1.0 if hits == n else 1 - _solve(lambda rest: _at_most(hits, n, 1 - rest), tail)
    return low, high


def alarm_row(what: str, alarms: Sequence[bool], *, level: float, at_most: bool = False) -> Known:
    """Makes a row from the alarms over draws without an effect, and their nominal level.

    Args:
        what: the null or verdict, and the kind of draw.
        alarms: whether each draw raised an alarm.
        level: the nominal rate.
        at_most: the level is an upper bound, so a lower rate also holds.
    """
    hits, n = sum(alarms), len(alarms)
    low, high = interval(hits, n)
    error = max(0.0, low - level, 0.0 if at_most else level - high)
    claim = f"{'at most ' if at_most else ''}{level:.1%}"
    found = f"{hits / n:.1%} of {n} draws, {CONFIDENCE:.0%} interval {low:.1%} to {high:.1%}"
    return Known("false alarms", f"{what}: {claim}", found, error, 0.0, "share")


def _at_most(k: int, n: int, rate: float) -> float:
    """Computes the probability of k hits or fewer."""
    return math.fsum(math.comb(n, i) * rate**i * (1 - rate) ** (n - i) for i in range(k + 1))


def _solve(rising: Callable[[float], float], target: float) -> float:
    """Finds the point where an increasing function on [0, 1] reaches the target."""
    low, high = 0.0, 1.0
    # Halved 60 times, [0, 1] is narrower than the spacing of floats near 1.
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < target else (low, middle)
    return low
