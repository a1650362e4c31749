"""Classes of your own, known by name once they are registered: to saved edits, to `at_layers`, on the command line.

Nothing in a file makes a class known. Its module does, when you import it, or name it to the command line by `--import`.
"""

from __future__ import annotations

from typing import Any, TypeVar

from reftlens.interventions.base import Intervention
from reftlens.interventions.check import require_kind
from reftlens.positions import Positions, register_rule

C = TypeVar("C", bound=type)

_KINDS: dict[str, type[Intervention]] = {}


def register(cls: C) -> C:
    """Makes a class of your own known by its name. It stands above the class as `@rl.register`.

    Args:
        cls: an intervention with a `kind`, or a position rule with a `rule` whose `spec()` is `{"rule": its name, ...}` and
            the arguments that make it again, as plain JSON values.

    Returns:
        The class, as it is.

    Raises:
        TypeError: for anything else.
        ValueError: if its name is missing or another class's, or a method is missing.
    """
    if isinstance(cls, type) and issubclass(cls, Positions):
        register_rule(cls)
    else:
        _register_kind(cls)
    return cls


def _register_kind(kind: Any) -> None:
    require_kind(kind)
    before = _KINDS.get(kind.kind)
    # A cell of a notebook that is run again defines its class again.
    if before is not None and (before.__module__, before.__qualname__) != (kind.__module__, kind.__qualname__):
        raise ValueError(f"kind = {kind.kind!r} is that of {before.__qualname__}: give {kind.__qualname__} another")
    _KINDS[kind.kind] = kind


def registered() -> tuple[type[Intervention], ...]:
    """The interventions that were registered."""
    return tuple(_KINDS.values())
