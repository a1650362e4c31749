"""The Alpaca template (Taori et al. 2023), with and without an input, used by the paper's arithmetic and instruct tasks."""

from __future__ import annotations

_BEGIN = "Below is an instruction that describes a task"
_END = "Write a response that appropriately completes the request."


def alpaca(instruction: str, input_text: str = "") -> str:
    """Returns the prompt for an instruction and an optional input.

    >>> print(alpaca("Name a river."), end="")
    Below is an instruction that describes a task. Write a response that appropriately completes the request.
    <BLANKLINE>
    ### Instruction:
    Name a river.
    <BLANKLINE>
    ### Response:
    """
    if not input_text:
        return f"{_BEGIN}. {_END}\n\n### Instruction:\n{instruction}\n\n### Response:\n"
    return (
        f"{_BEGIN}, paired with an input that provides further context. {_END}\n\n"
        f"### Instruction:\n{instruction}\n\n### Input:\n{input_text}\n\n### Response:\n"
    )
