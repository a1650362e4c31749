"""Your own data: a file, a folder of `datasets` or a dataset on the hub, in any of the layouts of `data.layouts`.

{"prompt": "The tower is in", "completion": " Rome"}
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
    """Prompts and completions, named by their file, folder or hub id."""

    family: ClassVar[Family] = "own"
    max_length: int | None = None
    """Maximum number of prompt and target tokens; no limit by default."""
    prompt_field: str | None = None
    """Field with the prompt; by default the layout says it."""
    completion_field: str | None = None
    """Field with the completion."""

    @property
    def metric(self) -> str:
        return "exact match"

    def load(self, split: str, *, source: str | Path | None = None, limit: int | None = None) -> list[Record]:
        """Loads the records. A file is one split, whatever its name; a folder or dataset may have several."""
        raws = read(self.name if source is None else source, within=(), split=split, limit=limit)
        examples = [raw.example(prompt_field=self.prompt_field, completion_field=self.completion_field) for raw in raws]
        return [Record(prompt, completion, completion) for prompt, completion in examples]

    def score(self, outputs: Sequence[str], records: Sequence[Record]) -> Evaluation:
        """Spaces at either end do not count."""
        return accuracy(self.name, outputs, records, judge=_judge, metric=self.metric)


def _judge(output: str, answer: str) -> tuple[str, bool]:
    return output.strip(), same_text(output, answer)
