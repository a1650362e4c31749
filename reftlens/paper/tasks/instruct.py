"""Instruction following: Alpaca's and UltraFeedback's records, trained on whole responses.

Prompt: the Alpaca template, with an input if the record has one. Target: its `output` (Wu et al.
2024, section 4.3). The paper scores by Alpaca-Eval 1.0, where GPT-4 compares each response with
text-davinci-003's. This package does not run that: `save_for_alpaca_eval` writes the file that
`alpaca_eval --model_outputs` reads. The score here is a much stricter one, the fraction of
responses equal to the record's, word for word. It shows whether training records were learned.

According to the reference's scripts, its data are: `ultrafeedback` on GitHub (130 MB, by Git LFS),
`alpaca_data_cleaned` in LLM-Adapters' files, and `alpaca_eval` on the hub, 805 instructions. These
addresses are untested, since no network was available.
`source="argilla/ultrafeedback-binarized-preferences-cleaned"` reads the dataset from which the
first was made: its `prompt` and the last of its `chosen` messages. Which of its 61,000 records the
paper kept is not known.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, final

from reftlens.data.templates import alpaca
from reftlens.edit.generate import Decoding
from reftlens.paper.tasks.base import Family, Record, TextTask
from reftlens.paper.tasks.llm_adapters import PUBLISHED
from reftlens.paper.tasks.records import Raw, read
from reftlens.paper.tasks.scoring import accuracy, same_text
from reftlens.results import Evaluation

DECODING = Decoding(max_new_tokens=2048, no_repeat_ngram_size=5, repetition_penalty=1.1)
"""The paper's decoding. The reference includes the prompt's tokens in the 2,048."""


@final
@dataclass(frozen=True)
class Instruct(TextTask):
    """A set of instructions and responses."""

    family: ClassVar[Family] = "instruct"
    decoding: Decoding = DECODING
    max_length: int | None = 768
    split: str = "train"
    """The only split."""
    published: str = ""
    """URL of the file."""

    @property
    def metric(self) -> str:
        return "exact match"

    def load(self, split: str, *, source: str | Path | None = None, limit: int | None = None) -> list[Record]:
        if split != self.split:
            raise ValueError(f"split must be {self.split}, the only split of {self.name}, got {split!r}")
        within = (f"{self.name}/{split}.json", f"{self.name}/{split}.jsonl", f"ft-training_set/{self.name}.json")
        raws = read(self.published if source is None else source, within=within, split=split, limit=limit)
        return [_record(raw) for raw in raws]

    def score(self, outputs: Sequence[str], records: Sequence[Record]) -> Evaluation:
        return accuracy(self.name, outputs, records, judge=_judge, metric=self.metric)


def _record(raw: Raw) -> Record:
    if "chosen" in raw.fields:
        response = _last_message(raw)
        return Record(alpaca(raw.text("prompt")), response, response)
    given = raw.text("input", may_be_empty=True) if "input" in raw.fields else ""
    response = raw.text("output")
    return Record(alpaca(raw.text("instruction"), given), response, response)


def _last_message(raw: Raw) -> str:
    match raw.fields["chosen"]:
        # Only the last message is the response; the first repeats the prompt.
        case [*_, {"role": "assistant", "content": str(response)}] if response.strip():
            return response
        case other:
            raise ValueError(
                f"{raw.where}: 'chosen' must be messages (role, content) that end with the assistant's, got {str(other)[:60]!r}"
            )


def _judge(output: str, answer: str) -> tuple[str, bool]:
    return output.strip(), same_text(output, answer)


def save_for_alpaca_eval(
    file: str | Path, instructions: Sequence[str], outputs: Sequence[str], *, generator: str
) -> Path:
    """Writes responses in the format of `alpaca_eval --model_outputs FILE`.

    Args:
        file: the target file.
        instructions: the instructions, without the template.
        outputs: one per instruction.
        generator: name of the model in alpaca_eval's tables.

    Raises:
        ValueError: If the numbers of outputs and instructions differ.
        OSError: If the file cannot be written.
    """
    if len(instructions) != len(outputs):
        raise ValueError(
            f"each instruction needs one output, got {len(outputs)} outputs for {len(instructions)} instructions"
        )
    rows = [
        {"instruction": instruction, "output": output, "dataset": "alpaca_eval", "generator": generator}
        for instruction, output in zip(instructions, outputs, strict=True)
    ]
    place = Path(file)
    place.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return place


TASKS = (
    Instruct("alpaca_data_cleaned", published=f"{PUBLISHED}/ft-training_set/alpaca_data_cleaned.json"),
    Instruct(
        "ultrafeedback",
        published="https://media.githubusercontent.com/media/frankaging/ultrafeedback-dataset/"
        "d1b3193643daff9361fe95885ac580e0991f471a/train.json",
    ),
    Instruct(
        "alpaca_eval",
        split="test",
        published="https://huggingface.co/datasets/tatsu-lab/alpaca_eval/resolve/main/alpaca_eval.json",
    ),
)
