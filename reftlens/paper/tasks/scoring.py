"""How the paper reads an answer from what a model said (Wu et al. 2024, section 4; LLM-Adapters' evaluation before it).

What is read is the model's part alone, without the prompt. These rules decide published numbers, so they are kept as they
are, faults included: a letter is looked for everywhere (`Calculate` answers C), and a range such as "10-12" ends in -12.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence

from reftlens.data import written
from reftlens.paper.tasks.base import Record
from reftlens.results import Answered, Evaluation

TRIGGER = "the correct answer is "
"""What a commonsense answer is introduced by."""
WITHIN = 0.001
"""How far a number may be from the right one."""


def read_trigger(output: str) -> str:
    """The text after the first trigger, stripped; empty where there is none.

    >>> read_trigger("Well, the correct answer is answer2\\n")
    'answer2'
    """
    _, _, rest = output.partition(TRIGGER)
    return rest.strip()


def read_number(output: str) -> str:
    """The last number, as it stands there but for its commas; empty where there is none.

    >>> read_number("3 boxes of 400 are 1,200.")
    '1200.'
    """
    numbers = re.findall(r"-?\d+\.?\d*", output.replace(",", ""))
    return numbers[-1] if numbers else ""


def read_letter(output: str) -> str:
    """The first capital A to E, wherever it stands; empty where there is none.

    >>> read_letter("Calculate: the answer is (B)")
    'C'
    """
    found = re.search("[A-E]", output)
    return found.group() if found else ""


def same_text(prediction: str, answer: str) -> bool:
    """Whether they are equal, white space around them aside."""
    return prediction.strip() == answer.strip()


def same_number(prediction: str, answer: str) -> bool:
    """Whether they are within .001."""
    return bool(prediction) and abs(float(prediction) - float(answer)) <= WITHIN


def is_number(answer: str) -> bool:
    """Whether an answer is a finite number, else a letter.

    >>> is_number("-15.0"), is_number("A"), is_number("nan")
    (True, False, False)
    """
    try:
        return math.isfinite(float(answer))
    except ValueError:
        return False


def accuracy(
    task: str,
    outputs: Sequence[str],
    records: Sequence[Record],
    *,
    judge: Callable[[str, str], tuple[str, bool]],
    metric: str = "accuracy",
) -> Evaluation:
    """The part of the records that is answered right.

    Args:
        task: its name.
        outputs: one for each record.
        records: of the task.
        judge: (output, answer) -> what was read from the output, and whether it is right.
        metric: what to call it.

    Raises:
        ValueError: for no records, or another number of outputs.
    """
    if not len(records) or len(outputs) != len(records):
        raise ValueError(f"{task}: wanted one output for each record, got {len(outputs)} for {len(records)} records")
    rows = []
    for output, record in zip(outputs, records, strict=True):
        prediction, right = judge(output, record.answer)
        rows.append(Answered(written(record.prompt), output, prediction, record.answer, right))
    score = sum(bool(row.right) for row in rows) / len(rows)
    return Evaluation(task=task, metric=metric, score=score, rows=tuple(rows))
