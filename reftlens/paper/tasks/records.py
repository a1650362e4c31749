"""Reads records, each with its place: JSON lists, JSON lines, CSV, Parquet, a folder of `datasets`, or a dataset on the hub.

JSON and CSV are parsed here. `datasets` converts a 4 to "4" and a missing field to null, and cannot
name the line of a fault.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, final

import pyarrow
import pyarrow.parquet
from datasets import DatasetDict, config, load_dataset, load_from_disk
from torch.hub import download_url_to_file

from reftlens.data.layouts import example_of, prompt_of, text_of
from reftlens.data.texts import Prompt
from reftlens.files.reading import once

_SPACE = " \t\r\n"
_SAVED = ("dataset_info.json", "dataset_dict.json")
"""A folder that `datasets` saved has one of these files."""


@final
@dataclass(frozen=True)
class Raw:
    """A record as read. It is an object, but its fields are not checked yet."""

    fields: Mapping[str, Any]
    where: str
    """File, number (from 1) and line, for error messages."""

    def text(self, field: str, *, may_be_empty: bool = False) -> str:
        """Returns the text of a field.

        Raises:
            ValueError: If the field is missing, not a string, or blank although it must not be.
        """
        try:
            return text_of(self.fields, field, may_be_empty=may_be_empty)
        except ValueError as error:
            raise ValueError(f"{self.where}: {error}") from error

    def asked(self, *, prompt_field: str | None = None) -> Prompt:
        """Reads a prompt without its completion, in any of the layouts of `data.layouts`.

        Raises:
            ValueError: If it is missing or malformed.
        """
        try:
            return prompt_of(self.fields, prompt_field=prompt_field)
        except ValueError as error:
            raise ValueError(f"{self.where}: {error}") from error

    def example(self, *, prompt_field: str | None = None, completion_field: str | None = None) -> tuple[Prompt, str]:
        """Reads a prompt and its completion in any of the layouts of `data.layouts`.

        Raises:
            ValueError: If they are missing or malformed.
        """
        try:
            return example_of(self.fields, prompt_field=prompt_field, completion_field=completion_field)
        except ValueError as error:
            raise ValueError(f"{self.where}: {error}") from error

    def no_input(self) -> None:
        """Refuses an input, for tasks whose prompt has no place for it.

        Raises:
            ValueError: If the record has one.
        """
        if self.fields.get("input"):
            raise ValueError(f"{self.where}: 'input' must be empty, because this task's prompt has no place for it")


def read(
    source: str | Path, *, within: Sequence[str], split: str, limit: int | None = None, blob: str | None = None
) -> list[Raw]:
    """Returns the records of a split, in order.

    Args:
        source: a file, a folder, the URL of a file, or the name of a dataset on the hub.
        within: paths inside a folder; the first that exists is read.
        split: of a dataset on the hub.
        limit: number of records to return, from the first; later records are not checked.
        blob: Git's digest of the file, if it is known and the source is a URL.

    Raises:
        ValueError: If the file does not match its digest, is malformed or has no records, or the
            limit is below 1.
        FileNotFoundError: If the file, folder, URL or dataset does not exist.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}")
    # Records are read one by one, so a limit also saves the reading of the rest.
    found = list(islice(_records(source, within, split, blob), limit))
    if not found:
        raise ValueError(f"{source} has no records")
    return found


def _records(source: str | Path, within: Sequence[str], split: str, blob: str | None) -> Iterator[Raw]:
    place = Path(source)
    if isinstance(source, str) and "://" in source:
        return parse(_download(source, blob), shown=source)
    if any((place / name).is_file() for name in _SAVED):
        return _of_folder(place, split)
    if place.is_dir():
        place = _in_folder(place, within)
    if place.is_file():
        return _READERS.get(place.suffix.lower(), parse)(place, shown=str(place))
    if (
        isinstance(source, str)
        and source.count("/") <= 1
        and not place.suffix
        and not (place.parent != Path() and place.parent.exists())
    ):
        return of_hub(source, split=split)
    raise FileNotFoundError(f"no such file or folder: {source}")


def _in_folder(folder: Path, within: Sequence[str]) -> Path:
    for path in within:
        if (folder / path).is_file():
            return folder / path
    raise FileNotFoundError(f"{folder} has none of {', '.join(within)}")


def _download(address: str, blob: str | None) -> Path:
    """Downloads a file once into the cache of `datasets`, and compares it with its digest at every read."""
    # Two addresses may end in the same file name.
    digest = hashlib.sha256(address.encode()).hexdigest()[:16]
    file = Path(config.HF_DATASETS_CACHE) / "reftlens" / f"{digest}-{address.rsplit('/', 1)[-1]}"
    if not file.is_file():
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            download_url_to_file(address, str(file))
        except OSError as error:
            raise FileNotFoundError(
                f"{address} could not be fetched ({error}): download it, and pass the file as source"
            ) from error
    content = file.read_bytes()
    # Git's own digest, with its header; it guards against damage, not against forgery.
    found = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
    if blob is not None and found != blob:
        # Otherwise the damaged file would be found in the cache, and refused, for ever.
        file.unlink()
        raise ValueError(f"{address} is not the published file: its Git digest is {found}, not {blob}")
    return file


def _of_folder(folder: Path, split: str) -> Iterator[Raw]:
    """Reads a folder that `datasets` saved. If it holds several splits, `split` chooses one."""
    found = load_from_disk(str(folder))
    if isinstance(found, DatasetDict):
        if split not in found:
            raise ValueError(f"the split of {folder} must be one of {', '.join(found)}, got {split!r}")
        found = found[split]
    for number, row in enumerate(found, start=1):
        yield Raw(row, f"{folder}, record {number}")


def _parquet(file: Path, *, shown: str) -> Iterator[Raw]:
    try:
        rows = pyarrow.parquet.read_table(file).to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise ValueError(f"{shown} is not a Parquet file: {error}") from error
    for number, row in enumerate(rows, start=1):
        yield Raw(row, f"{shown}, record {number}")


def _csv(file: Path, *, shown: str) -> Iterator[Raw]:
    """Reads a CSV file with a header. Every value is a text."""
    with io.StringIO(text_in(file, shown=shown), newline="") as lines:
        reader = csv.DictReader(lines, strict=True)
        try:
            for number, row in enumerate(reader, start=1):
                where = f"{shown}, record {number} (line {reader.line_num})"
                # DictReader puts surplus values under None, and None for missing ones.
                if None in row or None in row.values():
                    raise ValueError(f"{where}: the number of values differs from that of the header")
                yield Raw(row, where)
        except csv.Error as error:
            raise ValueError(f"{shown}, line {reader.line_num}: not CSV ({error})") from error


def of_hub(name: str, *, split: str, subset: str | None = None) -> Iterator[Raw]:
    """Yields the records of a dataset on the hub.

    Raises:
        FileNotFoundError: If it does not exist or cannot be fetched.
    """
    of = "" if subset is None else f" of {subset!r}"
    try:
        rows = load_dataset(name, subset, split=split)
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"no such file or folder: {name}, and loading the split {split!r}{of} of that dataset from the hub failed: {error}"
        ) from error
    for number, row in enumerate(rows, start=1):
        yield Raw(row, f"{name} ({split}{of}), record {number}")


def parse(file: Path, *, shown: str) -> Iterator[Raw]:
    """Yields the records of a JSON list or of JSON Lines. The first character decides which of them it is.

    Args:
        file: the file.
        shown: name of the file in error messages.

    Raises:
        ValueError: If the file is neither. The message names the line.
    """
    text = text_in(file, shown=shown)
    return _list(text, shown) if text.lstrip(_SPACE).startswith("[") else _lines(text, shown)


def text_in(file: Path, *, shown: str) -> str:
    """Reads the text of a file, without the byte order mark that some editors put in front.

    Args:
        file: the file.
        shown: name of the file in error messages.

    Raises:
        ValueError: If it is not UTF-8. The message names the line.
    """
    raw = file.read_bytes()
    try:
        # With or without a byte order mark, which some editors write and JSON does not allow.
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{shown}, line {line}: not UTF-8 ({error.reason})") from error


def _list(text: str, shown: str) -> Iterator[Raw]:
    """Parses record by record, so that the line in which each begins is known."""
    place, line, number = text.index("[") + 1, 1 + text.count("\n", 0, text.index("[")), 0

    def at(new: int) -> int:
        """Moves to a place and skips whitespace from there."""
        nonlocal place, line
        while new < len(text) and text[new] in _SPACE:
            new += 1
        line += text.count("\n", place, new)
        place = new
        return new

    at(place)
    while not text.startswith("]", place):
        number += 1
        if number > 1:
            if not text.startswith(",", place):
                raise ValueError(
                    f"{shown}, line {line}: expected a comma or the end of the list after record {number - 1}"
                )
            at(place + 1)
        where = f"{shown}, record {number} (line {line})"
        value, end = _decode(text, place, where, line)
        yield _object(value, where)
        at(end)
    if at(place + 1) < len(text):
        raise ValueError(f"{shown}, line {line}: unexpected text after the end of the list")


def _lines(text: str, shown: str) -> Iterator[Raw]:
    # Not splitlines: JSON strings may contain other line separators.
    for number, line in enumerate(text.removesuffix("\n").split("\n") if text else [], start=1):
        where = f"{shown}, record {number} (line {number})"
        value, end = _decode(line, len(line) - len(line.lstrip(_SPACE)), where, number)
        if line[end:].strip(_SPACE):
            raise ValueError(f"{where}: unexpected text after the record: {line[end : end + 40]!r}")
        yield _object(value, where)


def _decode(text: str, place: int, where: str, line: int) -> tuple[Any, int]:
    """Decodes the JSON value that begins at a place. Returns it and where it ends."""
    try:
        value, end = _DECODER.raw_decode(text, place)
    except json.JSONDecodeError as error:
        fault = line + text.count("\n", place, error.pos)
        raise ValueError(f"{where}: not JSON, in line {fault} ({error.msg})") from error
    # Not a ValueError, unlike JSON's errors above and those of `once`.
    except RecursionError as error:
        raise ValueError(f"{where}: lists and objects are nested too deeply") from error
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    return value, end


def _object(value: Any, where: str) -> Raw:
    if not isinstance(value, dict):
        raise ValueError(f"{where}: a record must be an object with named fields, got {type(value).__name__}")
    return Raw(value, where)


_DECODER = json.JSONDecoder(object_pairs_hook=once)
_READERS: dict[str, Callable[..., Iterator[Raw]]] = {".csv": _csv, ".parquet": _parquet}
"""Ending of a file -> its reader; other files are JSON."""
