"""A seal over a folder: the SHA-256 of every file in it, and one of that list, in `digests.json`.

A folder that has its seal holds what was written, to the bit, and nothing else. A seal tells damage; anyone who can change
the files can also seal them again.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

SEAL_NAME = "digests.json"
_MOST_TEXT = 4 * 2**20
"""Bytes of a seal."""


def seal(folder: Path) -> None:
    """Writes the seal of a folder whose files are all there; it is the last file that is written."""
    digests = {name: _digest(folder / name) for name in _names(folder)}
    (folder / SEAL_NAME).write_text(json.dumps({"files": digests, "sha256": _of(digests)}, indent=2) + "\n", "utf-8")


def why_broken(folder: Path) -> str | None:
    """Why a folder is not what was sealed; None if it is.

    A folder without a seal is broken as well. Files whose names begin with a dot are not looked at: systems leave such.
    """
    place = folder / SEAL_NAME
    try:
        if not place.is_file():
            return f"it has no {SEAL_NAME}"
        if place.stat().st_size > _MOST_TEXT:
            return f"{SEAL_NAME} has {place.stat().st_size:,} bytes"
        said = json.loads(place.read_bytes().decode("utf-8"))
        digests = said["files"]
        if set(said) != {"files", "sha256"} or not isinstance(digests, dict) or said["sha256"] != _of(digests):
            return f"{SEAL_NAME} is damaged"
        names = _names(folder)
        missing, more = sorted(set(digests) - set(names)), sorted(set(names) - set(digests))
        if missing:
            return f"{missing[0]} is missing"
        if more:
            return f"{more[0]} was not saved with it"
        changed = [name for name in names if _digest(folder / name) != digests[name]]
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        return f"{SEAL_NAME} or a file cannot be read ({error!s:.200})"
    return f"{changed[0]} has changed" if changed else None


def _names(folder: Path) -> list[str]:
    files = (path.relative_to(folder) for path in folder.rglob("*") if not path.is_dir())
    return sorted(file.as_posix() for file in files if file.name != SEAL_NAME and not file.name.startswith("."))


def _digest(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as handle:
        while piece := handle.read(2**20):
            digest.update(piece)
    return digest.hexdigest()


def _of(digests: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()
