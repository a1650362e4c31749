"""Checks of the numbers in settings. Ints count as floats; bools do not."""

from __future__ import annotations

import math


def require_whole_number(name: str, value: object, *, least: int) -> None:
    """Refuses anything but an integer of at least this size.

    Args:
        name: of the setting, for the message.
        value: what was given.
        least: the smallest that is allowed.

    Raises:
        ValueError: if it is something else.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value!r}")


def require_number(
    name: str,
    value: object,
    *,
    least: int | float | None = None,
    above: int | float | None = None,
    below: int | float | None = None,
) -> None:
    """Refuses anything but a finite number in a range.

    Args:
        name: of the setting, for the message.
        value: what was given.
        least: the smallest that is allowed.
        above: it must be larger than this.
        below: it must be smaller than this.

    Raises:
        ValueError: if it is something else.
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
