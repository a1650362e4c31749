"""Checks of the numbers in settings and arguments (ints count as floats; bools do not), seeds of draws, and an interval."""

from __future__ import annotations

import math
from numbers import Integral, Real

LARGEST = 2**63 - 1
"""Upper bound of every count, index and seed: torch has no larger integers."""


def require_whole_number(name: str, value: object, *, least: int | None = None) -> None:
    """Requires an integer, optionally of a minimum size.

    Args:
        name: name of the setting, for the message.
        value: the given value.
        least: the smallest allowed value.

    Raises:
        ValueError: If it is anything else.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{name} must be an integer{'' if least is None else f' of at least {least}'}, got {value!r}")
    if least is not None and value < least:
        raise ValueError(f"{name} must be at least {least}, got {value!r}")
    if abs(value) > LARGEST:
        raise ValueError(f"{name} must be smaller than 2**63 in absolute value, got {value!r}")


def require_number(
    name: str,
    value: object,
    *,
    least: int | float | None = None,
    above: int | float | None = None,
    below: int | float | None = None,
) -> None:
    """Requires a finite number in a range.

    Args:
        name: name of the setting, for the message.
        value: the given value.
        least: the smallest allowed value.
        above: exclusive lower bound.
        below: exclusive upper bound.

    Raises:
        ValueError: If it is anything else.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, got {value!r}")
    if value < 0 and least == 0 and below is None:
        raise ValueError(f"{name} must not be negative, got {value!r}")
    too_small = (least is not None and value < least) or (above is not None and value <= above)
    if too_small or (below is not None and value >= below):
        raise ValueError(f"{name} must be {_range(least, above, below)}, got {value!r}")


def _range(least: int | float | None, above: int | float | None, below: int | float | None) -> str:
    if below is not None:
        return f"in [{least}, {below})"
    return f"above {above}" if above is not None else f"at least {least}"


_LEAST = {
    "seed": 0,
    **dict.fromkeys(("batch_size", "d_model", "directions", "memory_bytes", "most", "n", "rank", "top", "window"), 1),
    **dict.fromkeys(("n_draws", "n_null", "n_placebo", "n_random", "n_resamples", "max_new_tokens"), 1),
}
"""The smallest meaningful integer for each argument name, in every function."""


def plain_number(name: str, annotation: str, value: object) -> object:
    """Converts a number argument to Python's own type, which torch requires, and checks its range.

    Args:
        name: name of the argument. In every function a `seed` must not be negative and a
            `tolerance` must be positive.
        annotation: "int" or "float", or either with " | None", as written in the function.
        value: the given value; numpy numbers are accepted.

    Raises:
        ValueError: If the value does not fit the annotation or the range.
    """
    if value is None and annotation.endswith(" | None"):
        return None
    if isinstance(value, Real) and not isinstance(value, bool | int | float):
        value = int(value) if isinstance(value, Integral) else float(value)
    if annotation.startswith("int"):
        require_whole_number(name, value, least=_LEAST.get(name))
    else:
        require_number(name, value, above=0 if name in ("noise", "tolerance") else None)
    return value


def seeds_of_draws(seed: int, n: int) -> list[int]:
    """Returns the seeds of n draws of one control.

    Args:
        seed: seed of all of them.
        n: number of draws.
    """
    # Far apart, because seed + draw would give neighbouring seeds the same draws. A seed may be
    # any that torch takes, so the product is kept in its range.
    return [(seed * 1_000_003 + draw) % (LARGEST + 1) for draw in range(n)]


def wilson(hits: int, n: int, *, z: float = 1.96) -> tuple[float, float]:
    """Computes the Wilson interval of a share, by default of 95% (Wilson 1927): it stays inside [0, 1] and is not empty at 0 and 1.

    Args:
        hits: how many.
        n: of how many; without any, the interval is everything.
        z: quantile of the normal distribution.
    """
    if n == 0:
        return 0.0, 1.0
    share, shrink = hits / n, 1 + z * z / n
    middle = (share + z * z / (2 * n)) / shrink
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / shrink
    return max(0.0, middle - half), min(1.0, middle + half)
