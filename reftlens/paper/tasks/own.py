"""Your own data: a file, a folder of `datasets` or a dataset on the hub, in any of the layouts of `data.layouts`.

{"prompt": "The tower is in", "completion": " Rome"}
{"messages": [{"role": "user", "content": "Where is the tower?"}, {"role": "assistant", "content":
"In Rome."}]}
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, final

from transformer_lens.model_bridge import TransformerBridge

from reftlens.data import completion_tokens
from reftlens.edit.generate import Decoding
from reftlens.paper.tasks.base import Family, Record, TextTask
from reftlens.paper.tasks.measures import measure_named
from reftlens.paper.tasks.records import read
from reftlens.paper.tasks.scoring import accuracy
from reftlens.results import Evaluation


@final
@dataclass(frozen=True)
class Pairs(TextTask):
    """Prompts and completions, named by their file, folder or hub id."""

    family: ClassVar[Family] = "own"
    max_length: int | None = None
    """Maximum number of prompt and target tokens; no limit by default."""
    prompt_field: str | None = None
    """Field with the prompt; by default the layout decides."""
    completion_field: str | None = None
    """Field with the completion."""

    measure: str = "prefix"
    """How an output is compared with its target; see `paper.tasks.measures`."""
    whole: bool = True
    """Whether an output may be as long as the longest target. Otherwise `decoding` limits it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        # Refused here, before data or a model are loaded.
        measure_named(self.measure)

    @property
    def metric(self) -> str:
        return measure_named(self.measure).label

    def load(self, split: str, *, source: str | Path | None = None, limit: int | None = None) -> list[Record]:
        """Loads the records. A file is one split, whatever its name; a folder or dataset may have several."""
        raws = read(self.name if source is None else source, within=(), split=split, limit=limit)
        examples = [raw.example(prompt_field=self.prompt_field, completion_field=self.completion_field) for raw in raws]
        return [Record(prompt, completion, completion) for prompt, completion in examples]

    def decoding_for(self, bridge: TransformerBridge, records: Sequence[Record]) -> Decoding:
        """Returns the decoding, with room for the longest target and one more token, such as EOS."""
        if not self.whole or not records:
            return self.decoding
        targets = completion_tokens(bridge, [r.prompt for r in records], [r.completion for r in records])
        return replace(self.decoding, max_new_tokens=1 + max(map(len, targets)))

    def score(self, outputs: Sequence[str], records: Sequence[Record]) -> Evaluation:
        """Averages the measure over the records."""
        compare = measure_named(self.measure).compare

        def judge(output: str, answer: str) -> tuple[str, float | bool]:
            return output.strip(), compare(output, answer)

        return accuracy(self.name, outputs, records, judge=judge, metric=self.metric)
