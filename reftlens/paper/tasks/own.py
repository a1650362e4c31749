"""Your own data: prompts and completions in JSON Lines or a JSON list. An output is correct if it equals the completion.

{"prompt": "The tower is in", "completion": " Rome"}

For a chat model, a line may also be a conversation whose last turn is the completion:
{"messages": [{"role": "user", "content": "Where is the tower?"}, {"role": "assistant", "content": "In Rome."}]}
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, final

from reftlens.paper.tasks.base import Family, Record, TextTask
from reftlens.paper.tasks.records import read
from reftlens.paper.tasks.scoring import accuracy, same_text
from reftlens.results import Evaluation


@final
@dataclass(frozen=True)
class Pairs(TextTask):
    """A file of prompts and completions; its name is its path."""

    family: ClassVar[Family] = "own"
    max_length: int | None = None
    """As in `TextTask`, but by default nothing is cut."""

    @property
    def metric(self) -> str:
        return "exact match"

    def load(self, split: str, *, source: str | Path | None = None, limit: int | None = None) -> list[Record]:
        """Returns the records of the file, which has one split; its name is ignored."""
        raws = read(Path(self.name) if source is None else source, within=(), split=split, limit=limit)
        examples = [raw.example() for raw in raws]
        return [Record(prompt, completion, completion) for prompt, completion in examples]

    def score(self, outputs: Sequence[str], records: Sequence[Record]) -> Evaluation:
        """Compares outputs with completions, ignoring whitespace at either end."""
        return accuracy(self.name, outputs, records, judge=_judge, metric=self.metric)


def _judge(output: str, answer: str) -> tuple[str, bool]:
    return output.strip(), same_text(output, answer)
