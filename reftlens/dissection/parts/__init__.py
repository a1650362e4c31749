"""The parts of a dissection, in the order of a reader's questions. A new analysis is one file and one line here."""

from __future__ import annotations

from difflib import get_close_matches
from typing import get_args

from reftlens.dissection.parts.base import BASE
from reftlens.dissection.parts.directions import DIRECTIONS, IDENTIFIED, TERMS
from reftlens.dissection.parts.elsewhere import ELSE
from reftlens.dissection.parts.natural import NATURAL
from reftlens.dissection.parts.part import Part, Preset
from reftlens.dissection.parts.readouts import READOUTS
from reftlens.dissection.parts.reads import OVERLAPS, PLANE, READS
from reftlens.dissection.parts.seeds import SEEDS
from reftlens.dissection.parts.through import PATHS, THROUGH
from reftlens.dissection.parts.where import SITES, SPREAD, WHERE
from reftlens.dissection.parts.works import DOSE, WORKS

__all__ = ["PARTS", "PRESETS", "chosen"]

_ALL = (
    WORKS,
    DOSE,
    WHERE,
    SITES,
    SPREAD,
    THROUGH,
    PATHS,
    DIRECTIONS,
    IDENTIFIED,
    TERMS,
    READS,
    READOUTS,
    OVERLAPS,
    PLANE,
    BASE,
    ELSE,
    NATURAL,
    SEEDS,
)
PARTS: dict[str, Part] = {part.name: part for part in _ALL}
"""Name -> part, in order."""

_SIZES: tuple[Preset, ...] = get_args(Preset)
PRESETS: dict[str, tuple[str, ...]] = {
    preset: tuple(name for name, part in PARTS.items() if _SIZES.index(part.preset) <= place)
    for place, preset in enumerate(_SIZES)
}
"""Preset -> names of its parts. Each holds those of the smaller ones."""


def chosen(parts: str | tuple[str, ...]) -> list[Part]:
    """Returns the parts of these names, with those that they start from, in order.

    Args:
        parts: a preset, or names of parts.

    Raises:
        ValueError: If there is no such preset or part, or none is named.
    """
    if isinstance(parts, str) and parts not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}, got {parts!r}: parts are named in a tuple")
    names = list(PRESETS[parts] if isinstance(parts, str) else parts)
    if not names:
        raise ValueError(f"pass a preset or at least one part. Choose parts from: {', '.join(PARTS)}")
    for name in names:
        if name not in PARTS:
            near = get_close_matches(str(name), PARTS, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"Unknown part {name!r}. Choose from: {', '.join(PARTS)}{hint}")
        # The loop reaches what it appends, so needs of needs are added too.
        names += [needed for needed in PARTS[name].needs if needed not in names]
    return [part for name, part in PARTS.items() if name in names]
