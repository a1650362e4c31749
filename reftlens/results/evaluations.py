"""What became of each record of a task, and the score of all of them."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, final

import pandas as pd

from reftlens.results.base import Result


@final
@dataclass(frozen=True, repr=False)
class Answered(Result):
    """One record of a task, and what a model made of it."""

    prompt: str
    output: str
    """What the model said, or the label it chose, as text."""
    prediction: str
    """What the scorer read from the output; empty where it found nothing."""
    answer: str
    """What it was compared with."""
    right: bool | None
    """None where a metric over all records says nothing of a single one (a correlation)."""

    def headline(self) -> str:
        found = {True: "right", False: "wrong", None: "not judged by itself"}[self.right]
        return f"{found}: {self.prediction[:60]!r}, wanted {self.answer[:60]!r}; output {self.output[:60]!r}"

    def to_dataframe(self) -> pd.DataFrame:
        """One line."""
        return pd.DataFrame([asdict(self)])


@final
@dataclass(frozen=True, repr=False)
class Evaluation(Result):
    """One model, base or edited, on one task."""

    task: str
    metric: str
    """Such as "accuracy" (a part of 1) or "Matthews correlation"."""
    score: float
    rows: tuple[Answered, ...]
    """One for each record, in their order."""

    @property
    def n(self) -> int:
        """Records."""
        return len(self.rows)

    def to_dataframe(self) -> pd.DataFrame:
        """One line for each record."""
        return pd.DataFrame([asdict(row) for row in self.rows], columns=[field.name for field in fields(Answered)])

    def save(self, file: str | Path) -> Path:
        """Writes JSON lines, whole or not at all: the task, metric and score first, then one line for each record.

        Raises:
            OSError: if it cannot be written.
        """
        place = Path(file)
        head = {"task": self.task, "metric": self.metric, "score": self.score, "n": self.n}
        lines = [json.dumps(line, ensure_ascii=False) for line in (head, *map(asdict, self.rows))]
        place.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{place.name}-", dir=place.parent)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as out:
                out.write("\n".join(lines) + "\n")
            Path(temporary).chmod(0o644)
            Path(temporary).replace(place)
        finally:
            Path(temporary).unlink(missing_ok=True)
        return place

    @classmethod
    def load(cls, file: str | Path) -> Evaluation:
        """Reads what `save` wrote.

        Raises:
            ValueError: if it is not a saved evaluation, or is damaged; it names the line.
        """
        # Not splitlines: an output may hold line separators that JSON leaves as they are.
        lines = Path(file).read_text(encoding="utf-8").removesuffix("\n").split("\n")
        head = _line(file, 1, lines[0], {"task", "metric", "score", "n"})
        if head["n"] != len(lines) - 1:
            raise ValueError(f"{file} is damaged: it says {head['n']} records and holds {len(lines) - 1}")
        names = {field.name for field in fields(Answered)}
        rows = tuple(Answered(**_line(file, number, text, names)) for number, text in enumerate(lines[1:], start=2))
        return cls(task=head["task"], metric=head["metric"], score=head["score"], rows=rows)

    def headline(self) -> str:
        return f"{self.task}: {self.metric} {self.score:.4f} on {self.n:,} records"


def _line(file: str | Path, number: int, text: str, names: set[str]) -> Mapping[str, Any]:
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{file}, line {number}: not JSON ({error.msg})") from error
    if not isinstance(found, dict) or set(found) != names:
        raise ValueError(
            f"{file}, line {number}: not of a saved evaluation, which has {', '.join(sorted(names))} there"
        )
    return found
