"""Reads files that may be damaged or untrusted: with size limits, strictly, and checked against their seal.

For a bad file every function raises `ValueError` with one line that describes the fault. If a file
cannot be opened at all (for example for lack of permission), the OSError is kept, because that is
not damage.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

SEAL_NAME = "digests.json"
"""The file with the checksums of a folder; `files.seal` writes it."""
MOST_TEXT = 4 * 2**20
"""Maximum size in bytes of a JSON document that holds a description."""
_MOST_DEPTH = 64
"""Maximum nesting of lists and objects in such a document."""
_READS = 200
"""Maximum attempts to read a folder that other processes keep replacing."""

T = TypeVar("T")


def parse_json(text: str | bytes) -> Any:
    """Parses a JSON value strictly.

    Raises:
        ValueError: If the text is not JSON, repeats a key, has NaN or infinity, or is nested too
            deeply.
    """
    try:
        value = json.loads(text, object_pairs_hook=once, parse_constant=_no_constant)
        _require_shallow(value)
    except RecursionError as error:
        raise ValueError(f"it has more than {_MOST_DEPTH} levels of lists and objects") from error
    return value


def read_json(file: Path, *, most: int = MOST_TEXT, digests: Mapping[str, str] | None = None) -> Any:
    """Reads a JSON file.

    Args:
        file: the file.
        most: maximum size in bytes.
        digests: checksums from `digests_in` of its folder; if given, the file must match its
            checksum.

    Raises:
        ValueError: If it is too large, not strict JSON, or does not match its checksum.
        OSError: If it cannot be opened.
    """
    data = read_bytes(file, most=most, digests=digests)
    try:
        return parse_json(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{file.name} is not UTF-8 text: {error}") from error
    except ValueError as error:
        raise ValueError(f"{file.name} is not valid JSON: {error!s:.300}") from error


def read_bytes(file: Path, *, most: int, digests: Mapping[str, str] | None = None) -> bytes:
    """Reads the bytes of a file.

    Args:
        file: the file.
        most: maximum size in bytes; a larger file is refused without reading it.
        digests: as in `read_json`.

    Raises:
        ValueError: If it is missing, too large, or does not match its checksum.
        OSError: If it cannot be opened.
    """
    if not file.is_file():
        raise ValueError(f"{file.name} is missing or not a regular file")
    size = file.stat().st_size
    if size > most:
        raise ValueError(f"{file.name} has {size:,} bytes, more than the limit of {most:,}")
    with file.open("rb") as handle:
        # The file may have grown since its size was read.
        data = handle.read(most)
    require_sealed(file.name, data, digests)
    return data


def require_sealed(name: str, data: bytes, digests: Mapping[str, str] | None) -> None:
    """Compares bytes with their checksum.

    Args:
        name: name of the file, relative to its sealed folder.
        data: its content.
        digests: checksums from `digests_in`; None skips the check.

    Raises:
        ValueError: If they differ, or the file was not sealed.
    """
    if digests is not None and hashlib.sha256(data).hexdigest() != digests.get(name):
        raise ValueError(f"{name} has changed since it was saved: its SHA-256 differs from the one in {SEAL_NAME}")


def consistently(folder: Path, read: Callable[[], T]) -> T:
    """Returns the result of `read` on a folder. Reads again if the folder was replaced meanwhile.

    Args:
        folder: the folder.
        read: reads everything needed from it.

    Raises:
        OSError: If something in it cannot be opened. The message names the folder.
    """
    for _ in range(_READS):
        before = _version(folder)
        try:
            result = read()
        # A folder that was replaced meanwhile may look damaged: half of each was read.
        except ValueError:
            if _version(folder) == before:
                raise
        except OSError as error:
            if _version(folder) == before:
                raise OSError(error.errno, f"{folder} cannot be read: {error.strerror}") from error
        else:
            if _version(folder) == before:
                return result
    raise OSError(f"{folder} was replaced {_READS} times while it was read: wait until nothing saves to it")


def json_lines(file: Path, *, most: int | None = None) -> Iterator[tuple[int, Any]]:
    """Yields the number (from 1) and value of each line of a JSON Lines file. Empty lines are skipped.

    Lines end only at a line feed, since text may contain other separators, such as U+2028.

    Args:
        file: the file.
        most: maximum size in bytes; None for a file of any size.

    Raises:
        ValueError: If a line is not strict JSON, or the file is not UTF-8. The message names the
            file and line.
        OSError: If the file cannot be opened.
    """
    try:
        # Editors on Windows put a byte order mark in front.
        text = (file.read_bytes() if most is None else read_bytes(file, most=most)).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 text: {error}") from error
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            value = parse_json(line)
        except ValueError as error:
            raise ValueError(f"line {number} of {file} is not JSON: {error!s:.200}; it begins {line[:80]!r}") from error
        yield number, value


def _version(folder: Path) -> tuple[int, int] | None:
    try:
        status = folder.stat()
    except FileNotFoundError:
        return None
    # A replaced folder has another inode, but inodes are used again, so the time counts too.
    return status.st_ino, status.st_ctime_ns


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Makes the dict of a JSON object. Python's parser itself would keep the last of repeated keys without a word.

    Raises:
        ValueError: If a key is repeated.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r:.80} occurs more than once")
    return found


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


def _require_shallow(value: Any, depth: int = 0) -> None:
    if depth > _MOST_DEPTH:
        raise ValueError(f"it has more than {_MOST_DEPTH} levels of lists and objects")
    # Empty lines are skipped here, so that a million of them cost no calls.
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        if part and type(part) in (dict, list):
            _require_shallow(part, depth + 1)
