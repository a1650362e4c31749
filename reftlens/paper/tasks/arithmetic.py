"""Arithmetic reasoning: word problems whose last number, or first capital A to E, is the answer.

Prompt: the Alpaca template; target: the record's `output`, a rationale that ends in the answer (Wu
et al. 2024, section 4.2). The paper trains on `math_10k` and reports AQuA, GSM8K, MAWPS and SVAMP.

AddSub, MultiArith and SingleEq are parts of MAWPS, whose training half is in `math_10k`. As
LLM-Adapters' authors state, models trained on it cannot be evaluated on these sets. They are
provided for models trained on other data, and loading one warns of this. The reference also tunes
its settings on the last 300 records of GSM8K's training set, with another prompt; that is not
implemented.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, final

from reftlens.arguments import warn
from reftlens.data.templates import alpaca
from reftlens.edit.generate import Decoding
from reftlens.paper.tasks.base import Family, Record, TextTask
from reftlens.paper.tasks.llm_adapters import read_split
from reftlens.paper.tasks.scoring import accuracy, is_number, read_letter, read_number, same_number, same_text
from reftlens.results import Evaluation

LETTERS = tuple("ABCDE")
GREEDY = Decoding(max_new_tokens=512)
"""The decoding of the commands in the reference's README."""
BEAMS = Decoding(max_new_tokens=512, num_beams=4, temperature=0.3, top_p=0.75, top_k=40)
"""The decoding in the paper's text; use `dataclasses.replace(task, decoding=BEAMS)`."""


class LeakWarning(UserWarning):
    """A test set that is part of the paper's training set was loaded."""


@final
@dataclass(frozen=True)
class Arithmetic(TextTask):
    """One test set, or the training set."""

    family: ClassVar[Family] = "arithmetic"
    decoding: Decoding = GREEDY
    numbers: bool = True
    """Whether answers may be numbers."""
    letters: bool = False
    """Whether answers may be letters, A to E."""
    splits: tuple[str, ...] = ("test",)
    leaked: bool = False
    """Whether `math_10k` contains records of it."""

    @property
    def metric(self) -> str:
        return "accuracy"

    def load(self, split: str, *, source: str | Path | None = None, limit: int | None = None) -> list[Record]:
        records = []
        for raw in read_split(self.name, split, splits=self.splits, source=source, limit=limit):
            answer = raw.text("answer").strip()
            if not (self.letters and answer in LETTERS) and not (self.numbers and is_number(answer)):
                wanted = " or ".join(["a number"] * self.numbers + ["a letter A to E"] * self.letters)
                raise ValueError(f"{raw.where}: 'answer' must be {wanted}, got {answer!r}")
            raw.no_input()
            output = raw.text("output", may_be_empty=split != "train")
            records.append(Record(alpaca(raw.text("instruction")), output, answer))
        if self.leaked:
            warn(
                f"{self.name} is part of MAWPS, whose training set is in math_10k: a model trained on math_10k has seen these "
                "or similar problems, so its score here is not evidence",
                LeakWarning,
            )
        return records

    def score(self, outputs: Sequence[str], records: Sequence[Record]) -> Evaluation:
        return accuracy(self.name, outputs, records, judge=_judge)


def _judge(output: str, answer: str) -> tuple[str, bool]:
    # The record's answer says how to read the output: those of AQuA are letters.
    if is_number(answer):
        number = read_number(output)
        return number, same_number(number, answer)
    letter = read_letter(output)
    return letter, same_text(letter, answer)


TASKS = (
    Arithmetic("AQuA", numbers=False, letters=True),
    Arithmetic("gsm8k"),
    Arithmetic("mawps"),
    Arithmetic("SVAMP"),
    Arithmetic("AddSub", leaked=True),
    Arithmetic("MultiArith", leaked=True),
    Arithmetic("SingleEq", leaked=True),
)
TRAINING = Arithmetic("math_10k", letters=True, splits=("train",))
