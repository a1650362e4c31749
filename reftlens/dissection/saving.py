"""Saves a dissection to a folder, in the format of single results."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from reftlens.dissection.found import Found
from reftlens.results.base import known_classes
from reftlens.results.saving import Format, read, write

F = TypeVar("F", bound=Found)

FORMAT = Format("dissection", schema=2, unsealed=1)
JSON_NAME = FORMAT.json_name


def save_dissection(result: Found, directory: Path) -> Path:
    """Writes the folder; see `Dissection.save`."""
    return write(result, directory, FORMAT, _classes(type(result)))


def read_dissection(folder: Path, kind: type[F]) -> F:
    """Reads a folder as this kind of results; see `load_dissection`."""
    return read(folder, kind, FORMAT, _classes(kind))


def _classes(kind: type[Found]) -> dict[str, type[Any]]:
    return {**known_classes(), kind.__name__: kind}
