"""Seals a folder with the SHA-256 checksum of every file in it, and one of that list, in `digests.json`.

A folder that matches its seal holds exactly the bytes that were written and nothing else. A seal
detects damage, not tampering: anyone who can change the files can also seal them again.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from reftlens.arguments import warn
from reftlens.files.reading import SEAL_NAME, read_json

__all__ = ["SEAL_NAME", "UncheckedWarning", "digests_in", "seal", "warn_unchecked", "why_broken"]


class UncheckedWarning(UserWarning):
    """The data that was read has no checksum, so damage cannot be detected."""


def seal(folder: Path) -> None:
    """Writes the seal of a complete folder. It must be the last file written."""
    digests = {name: _digest(folder / name) for name in _names(folder)}
    (folder / SEAL_NAME).write_text(json.dumps({"files": digests, "sha256": _of(digests)}, indent=2) + "\n", "utf-8")


def why_broken(folder: Path) -> str | None:
    """Returns why a folder does not match its seal; None if it does.

    A folder without a seal is broken as well. Files whose names begin with a dot are ignored:
    operating systems create them.
    """
    try:
        digests = digests_in(folder)
        if digests is None:
            return f"it has no {SEAL_NAME}"
        names = _names(folder)
        missing, more = sorted(set(digests) - set(names)), sorted(set(names) - set(digests))
        if missing:
            return f"{missing[0]} is missing"
        if more:
            return f"{more[0]} was added after it was saved"
        strange = [name for name in names if not (folder / name).is_file()]
        if strange:  # for example a pipe, whose reading never ends
            return f"{strange[0]} is not a regular file"
        # Last, because this reads every byte.
        changed = [name for name in names if _digest(folder / name) != digests[name]]
    except ValueError as error:
        return f"{error!s:.200}"
    except OSError as error:
        return f"{SEAL_NAME} or a file cannot be read ({error!s:.200})"
    return f"{changed[0]} has changed" if changed else None


def digests_in(folder: Path) -> dict[str, str] | None:
    """Reads the checksums of a sealed folder, by file; None if it has no seal.

    Raises:
        ValueError: If the seal itself is damaged.
        OSError: If it cannot be opened.
    """
    if not (folder / SEAL_NAME).exists():
        return None
    said = read_json(folder / SEAL_NAME)
    digests = said.get("files") if isinstance(said, dict) and set(said) == {"files", "sha256"} else None
    if not isinstance(digests, dict) or not all(isinstance(value, str) for value in digests.values()):
        raise ValueError(f"{SEAL_NAME} is damaged: it does not list the files")
    # Without a checksum of its own, a damaged list would put the blame on a file.
    if said["sha256"] != _of(digests):
        raise ValueError(f"{SEAL_NAME} is damaged: its own SHA-256 does not match")
    return digests


def seal_over(file: Path) -> tuple[str, dict[str, str]] | None:
    """Returns a file's name in its sealed folder and the folder's checksums; None if no parent folder is sealed.

    Raises:
        ValueError: If the seal itself is damaged.
        OSError: If it cannot be opened.
    """
    for folder in file.absolute().parents[:2]:
        digests = digests_in(folder)
        if digests is not None:
            return file.absolute().relative_to(folder).as_posix(), digests
    return None


def warn_unchecked(folder: Path) -> None:
    """Warns that a folder has no seal."""
    message = (
        f"{folder} was saved by an earlier version without {SEAL_NAME}, so damage cannot be detected: save it again"
    )
    warn(message, UncheckedWarning)


def _names(folder: Path) -> list[str]:
    # Not is_file(): a pipe or a dangling link was added too.
    files = (path.relative_to(folder) for path in folder.rglob("*") if not path.is_dir())
    return sorted(file.as_posix() for file in files if file != Path(SEAL_NAME) and not file.name.startswith("."))


def _digest(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as handle:
        while piece := handle.read(2**20):
            digest.update(piece)
    return digest.hexdigest()


def _of(digests: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()
