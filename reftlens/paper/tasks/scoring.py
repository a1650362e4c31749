"""The paper's rules to extract an answer from a model's output (Wu et al. 2024, section 4; from LLM-Adapters' evaluation).

Only the model's output is read, without the prompt. Published numbers depend on these rules, so
they are reproduced with their faults: any capital letter counts (`Calculate` answers C), and a
range such as "10-12" ends in -12.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence

from reftlens.data import written
from reftlens.paper.tasks.base import Record
from reftlens.results import Answered, Evaluation

TRIGGER = "the correct answer is "
"""The text before a commonsense answer."""
WITHIN = 0.001
"""Maximum distance of a number from the right one."""


def read_trigger(output: str) -> str:
    """Returns the text after the first trigger, stripped; empty if there is none.

    >>> read_trigger("Well, the correct answer is answer2\\n")
    'answer2'
    """
    _, _, rest = output.partition(TRIGGER)
    return rest.strip()


def read_number(output: str) -> str:
    """Returns the last number, without its commas; empty if there is none.

    >>> read_number("3 boxes of 400 are 1,200.")
    '1200.'
    """
    # Commas first, or 1,200 would be read as 200.
    numbers = re.findall(r"-?\d+\.?\d*", output.replace(",", ""))
    return numbers[-1] if numbers else ""


def read_letter(output: str) -> str:
    """Returns the first capital A to E at any place; empty if there is none.

    >>> read_letter("Calculate: the answer is (B)")
    'C'
    """
    found = re.search("[A-E]", output)
    return found.group() if found else ""


def same_text(prediction: str, answer: str) -> bool:
    """Whether the texts are equal, ignoring surrounding white space."""
    return prediction.strip() == answer.strip()


def same_number(prediction: str, answer: str) -> bool:
    """Whether the numbers differ by at most .001."""
    # Not relative: the rule is the evaluation's of LLM-Adapters, whatever the size of the number.
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
    judge: Callable[[str, str], tuple[str, float | bool]],
    metric: str = "accuracy",
) -> Evaluation:
    """Computes the fraction of records answered correctly, or the mean value of their answers.

    Args:
        task: name of the task.
        outputs: one per record.
        records: the records of the task.
        judge: function of output and answer that returns the extracted answer and its value:
            whether it is right, or a part of 1.
        metric: name of the metric.

    Raises:
        ValueError: If there are no records, or the number of outputs differs.
    """
    if not len(records) or len(outputs) != len(records):
        raise ValueError(f"{task}: each record needs one output, got {len(outputs)} outputs for {len(records)} records")
    rows, values = [], []
    for output, record in zip(outputs, records, strict=True):
        prediction, value = judge(output, record.answer)
        # A measure between 0 and 1 is neither right nor wrong.
        right = bool(value) if value in (0, 1) else None
        rows.append(Answered(written(record.prompt), output, prediction, record.answer, right))
        values.append(float(value))
    return Evaluation(task=task, metric=metric, score=sum(values) / len(values), rows=tuple(rows))
