"""Registers your own classes by name, for saved edits, `at_layers` and the command line.

A saved file cannot register a class. Import the module that defines it, or name that module with
`--import` on the command line.
"""

from __future__ import annotations

from typing import Any, TypeVar

from reftlens.interventions.base import Intervention
from reftlens.interventions.check import require_kind
from reftlens.positions import Positions, register_rule

C = TypeVar("C", bound=type)

_KINDS: dict[str, type[Intervention]] = {}


def register(cls: C) -> C:
    """Registers your own class by its name. Use it as the decorator `@rl.register`.

    Args:
        cls: an intervention with a `kind`, or a position rule with a `rule` whose `spec()` is
            `{"rule": its name, ...}` plus its constructor arguments as plain JSON values.

    Returns:
        The class, unchanged.

    Raises:
        TypeError: If it is neither.
        ValueError: If its name is missing or belongs to another class, or a method is missing.
    """
    if isinstance(cls, type) and issubclass(cls, Positions):
        register_rule(cls)
    else:
        _register_kind(cls)
    return cls


def _register_kind(kind: Any) -> None:
    require_kind(kind)
    before = _KINDS.get(kind.kind)
    # Running a notebook cell again defines its class again.
    if before is not None and (before.__module__, before.__qualname__) != (kind.__module__, kind.__qualname__):
        raise ValueError(
            f"kind = {kind.kind!r} already belongs to {before.__qualname__}: choose another kind for {kind.__qualname__}"
        )
    _KINDS[kind.kind] = kind


def registered() -> tuple[type[Intervention], ...]:
    """Returns the registered interventions."""
    return tuple(_KINDS.values())
