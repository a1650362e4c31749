"""Your own data: prompts and completions, in JSON lines or a JSON list; right is an output that equals the completion.

{"prompt": "The tower is in", "completion": " Rome"}

Of a chat model a line may also be a conversation, whose last turn is the completion:
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
    """A file of prompts and completions, named by its path."""

    family: ClassVar[Family] = "own"
    max_length: int | None = None
    """As of every task in text, but nothing is cut if not said otherwise."""

    @property
    def metric(self) -> str:
        return "exact match"

    def load(self, split: str, *, source: str | Path | None = None, limit: int | None = None) -> list[Record]:
        """The records of the file; it is one split, whatever that is called."""
        raws = read(Path(self.name) if source is None else source, within=(), split=split, limit=limit)
        examples = [raw.example() for raw in raws]
        return [Record(prompt, completion, completion) for prompt, completion in examples]

    def score(self, outputs: Sequence[str], records: Sequence[Record]) -> Evaluation:
        """Spaces at either end do not count."""
        return accuracy(self.name, outputs, records, judge=_judge, metric=self.metric)


def _judge(output: str, answer: str) -> tuple[str, bool]:
    return output.strip(), same_text(output, answer)
