"""Commonsense reasoning: eight tasks of choosing one of the named answers, and the 170,000 records trained on for all.

Prompt `instruction + "\\n"`, target `"the correct answer is " + answer`, greedy decoding of 32
tokens. An output is correct if its text after the trigger is exactly the answer (Wu et al. 2024,
section 4.1). The files are LLM-Adapters' (Hu et al. 2023), which the reference implementation
copies from GitHub. The authors did not publish them on the hub.

One difference: the trigger is searched in the output, while the reference searches prompt and
output together. None of the instructions in the seven test files that were checked contains it
(hellaswag's file was not available).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, final

from reftlens.edit.generate import Decoding
from reftlens.paper.tasks.base import Family, Record, TextTask
from reftlens.paper.tasks.llm_adapters import read_split
from reftlens.paper.tasks.scoring import TRIGGER, accuracy, read_trigger, same_text
from reftlens.results import Evaluation

BEAMS = Decoding(max_new_tokens=32, num_beams=4, temperature=0.1, top_p=0.75, top_k=40)
"""The reference's decoding if greedy decoding is not requested. The paper's numbers use greedy decoding."""


@final
@dataclass(frozen=True)
class Commonsense(TextTask):
    """One of the eight tasks, or the training set."""

    family: ClassVar[Family] = "commonsense"
    answers: tuple[str, ...] = ()
    """Allowed answers."""
    splits: tuple[str, ...] = ("train", "test")

    @property
    def metric(self) -> str:
        return "accuracy"

    def load(self, split: str, *, source: str | Path | None = None, limit: int | None = None) -> list[Record]:
        records = []
        for raw in read_split(self.name, split, splits=self.splits, source=source, limit=limit):
            answer = raw.text("answer").strip()
            if answer not in self.answers:
                raise ValueError(f"{raw.where}: 'answer' must be one of {', '.join(self.answers)}, got {answer!r}")
            raw.no_input()
            records.append(Record(raw.text("instruction") + "\n", TRIGGER + answer, answer))
        return records

    def score(self, outputs: Sequence[str], records: Sequence[Record]) -> Evaluation:
        return accuracy(self.name, outputs, records, judge=_judge)


def _judge(output: str, answer: str) -> tuple[str, bool]:
    prediction = read_trigger(output)
    return prediction, same_text(prediction, answer)


def _numbered(word: str, n: int) -> tuple[str, ...]:
    return tuple(f"{word}{number}" for number in range(1, n + 1))


_ANSWERS = {
    "boolq": ("true", "false"),
    "piqa": _numbered("solution", 2),
    "social_i_qa": _numbered("answer", 3),
    "hellaswag": _numbered("ending", 4),
    "winogrande": _numbered("option", 2),
    "ARC-Easy": _numbered("answer", 5),
    "ARC-Challenge": _numbered("answer", 5),
    "openbookqa": _numbered("answer", 4),
}
"""Tasks in the order of the paper's tables. A few questions of ARC have five answers."""

TASKS = tuple(Commonsense(name, answers=answers) for name, answers in _ANSWERS.items())
TRAINING = Commonsense(
    "commonsense_170k",
    answers=tuple(dict.fromkeys(answer for answers in _ANSWERS.values() for answer in answers)),
    splits=("train",),
)
