"""Stores the rows of the table in a file as they are computed (JSON Lines), so that an interrupted run resumes.

A unit is finished if its last line says so. An unfinished unit is run again, and its rows leave the
file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from reftlens._version import __version__
from reftlens.benchmark.known import Known
from reftlens.files.folder import write_whole


def run_kept(units: Mapping[str, Callable[[], Iterator[Known]]], file: Path | None) -> Iterator[Known]:
    """Yields the rows of all units: first those in the file, then the others as they are computed.

    Args:
        units: functions by name that yield the rows.
        file: file that stores the rows; None stores none.

    Raises:
        ValueError: If the file holds anything else, or is of another version.
    """
    done = {} if file is None else _read(file)
    for name, make in units.items():
        if name in done:
            yield from done[name]
            continue
        rows = []
        for row in make():
            rows.append(row)
            yield row
        if file is not None:
            done[name] = rows
            # The whole file: appended lines would stay behind if the process ended between two of
            # them.
            write_whole(file, "".join(json.dumps(line) + "\n" for line in _lines(done)).encode())


def _lines(done: Mapping[str, Sequence[Known]]) -> Iterator[dict[str, Any]]:
    for name, rows in done.items():
        yield from ({"piece": name, **vars(row)} for row in rows)
        yield {"done": name, "version": __version__}


def _read(file: Path) -> dict[str, list[Known]]:
    """Reads the finished units."""
    if not file.exists():
        return {}
    rows: dict[str, list[Known]] = {}
    done = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            found = json.loads(line)
            if "done" in found:
                if found["version"] != __version__:
                    raise ValueError(f"it was written by version {found['version']}, and this is version {__version__}")
                done.append(found["done"])
            else:
                rows.setdefault(found.pop("piece"), []).append(Known(**found))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"the benchmark in {file} cannot be continued, because of line {number} ({error}): delete the file, or choose "
                "another --out"
            ) from error
    return {name: rows.get(name, []) for name in done}
