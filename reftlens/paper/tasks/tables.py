"""Reads tables: tab-separated without quoting, as in GLUE's files, or comma-separated with quoting.

Each row keeps its line number. `datasets` would parse them with pandas, which turns texts such as
"NA" or "null" into missing values.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

from reftlens.paper.tasks.records import Raw, text_in


def read_tsv(file: Path, *, header: Sequence[str] = ()) -> Iterator[Raw]:
    """Yields the rows of a tab-separated file, in which a quotation mark is an ordinary character.

    Args:
        file: the file.
        header: names of the columns, if the first line of the file does not have them.

    Raises:
        ValueError: If the file is not UTF-8, or a row does not have these columns. The message
            names the line.
    """
    # Not splitlines: a text may contain other line separators.
    rows = [
        line.removesuffix("\r").split("\t") for line in text_in(file, shown=str(file)).removesuffix("\n").split("\n")
    ]
    return _named(file, enumerate(rows, start=1), header)


def read_csv(file: Path) -> Iterator[Raw]:
    """Yields the rows of a comma-separated file with a header; quoted texts may contain commas and line breaks.

    Raises:
        ValueError: If the file is not UTF-8, or a row does not have its columns. The message names
            the line.
    """
    reader = csv.reader(io.StringIO(text_in(file, shown=str(file)), newline=""), strict=True)

    def rows() -> Iterator[tuple[int, list[str]]]:
        line = 1
        try:
            for row in reader:
                yield line, row
                # A quoted text may span lines, so a row's number is not the number of its line.
                line = reader.line_num + 1
        except csv.Error as error:
            raise ValueError(f"{file}, line {line}: not a row of a comma-separated file ({error})") from error

    return _named(file, rows(), ())


def _named(file: Path, rows: Iterator[tuple[int, list[str]]], header: Sequence[str]) -> Iterator[Raw]:
    names = tuple(header) or tuple(next(rows)[1])
    for number, (line, row) in enumerate(rows, start=1):
        where = f"{file}, record {number} (line {line})"
        if len(row) != len(names):
            raise ValueError(
                f"{where}: expected {len(names)} columns ({', '.join(names)}), got {len(row)}: {row[:4]!r}"
            )
        yield Raw(dict(zip(names, row, strict=True)), where)
