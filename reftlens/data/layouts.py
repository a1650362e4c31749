"""Reads a prompt and its completion from a record, in the layouts in which people keep them.

| fields | prompt | completion |
|---|---|---|
| `messages` | the conversation up to the assistant's last turn | that turn |
| `prompt`, `completion` | as it is: a text or a conversation | as it is |
| `instruction`, `output`, perhaps `input` | the Alpaca template (`data.templates`) | `output` |
| `question`, `answer` | "Question: ...\\nAnswer:" | a space and `answer` |

Any other two fields are read if they are named. They are used as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from reftlens.data.chat import split_conversation
from reftlens.data.templates import alpaca
from reftlens.data.texts import Prompt, is_conversation

LAYOUTS: dict[str, tuple[str, ...]] = {
    "messages": ("messages",),
    "prompt and completion": ("prompt",),
    "instruction, input and output": ("instruction", "output"),
    "question and answer": ("question", "answer"),
}
"""Name of a layout -> the fields by which it is recognised, in the order in which layouts are tried."""


def example_of(
    record: Mapping[str, Any], *, prompt_field: str | None = None, completion_field: str | None = None
) -> tuple[Prompt, str]:
    """Reads the prompt and the completion of a record.

    Args:
        record: field -> value.
        prompt_field: the field with the prompt; both fields are named, or neither.
        completion_field: the field with the completion.

    Raises:
        ValueError: If the record has none of the layouts, a field is missing, or a value is not a
            text or a conversation.
    """
    if (prompt_field is None) != (completion_field is None):
        raise ValueError("pass both prompt_field and completion_field, or neither")
    if prompt_field is not None and completion_field is not None:
        return _prompt(record, prompt_field), text_of(record, completion_field)
    match layout_of(record):
        case "messages":
            return split_conversation(record["messages"])
        case "instruction, input and output":
            return prompt_of(record), text_of(record, "output")
        case "question and answer":
            # With its space: in most vocabularies a word and the space before it are one token.
            return prompt_of(record), " " + text_of(record, "answer").lstrip()
        case _:
            prompt, completion = record["prompt"], record.get("completion")
            if is_conversation(prompt) and is_conversation(completion):
                return split_conversation([*prompt, *completion])
            return _prompt(record, "prompt"), text_of(record, "completion")


def prompt_of(record: Mapping[str, Any], *, prompt_field: str | None = None) -> Prompt:
    """Reads the prompt of a record as `example_of` does. The record may lack the completion.

    Args:
        record: field -> value.
        prompt_field: the field with the prompt, if it has none of the usual names.

    Raises:
        ValueError: If there is no prompt, or it is not a text or a conversation.
    """
    if prompt_field is not None:
        return _prompt(record, prompt_field)
    whole = [name for name, needed in LAYOUTS.items() if all(record.get(field) is not None for field in needed)]
    begun = [name for name, needed in LAYOUTS.items() if record.get(needed[0]) is not None]
    # What trains on a record decides first, so that a record has one prompt.
    match next(iter(whole + begun), None):
        case "messages":
            turns = _prompt(record, "messages")
            return turns[:-1] if not isinstance(turns, str) and turns[-1]["role"] == "assistant" else turns
        case "instruction, input and output":
            given = text_of(record, "input", may_be_empty=True) if record.get("input") is not None else ""
            return alpaca(text_of(record, "instruction"), given)
        case "question and answer":
            return f"Question: {text_of(record, 'question')}\nAnswer:"
        case _:
            return _prompt(record, "prompt")


def layout_of(record: Mapping[str, Any]) -> str:
    """Returns the name of a record's layout.

    Raises:
        ValueError: If it has none. The message lists the layouts and the record's fields.
    """
    for name, needed in LAYOUTS.items():
        # In a Dataset every record has every column; what it lacks is None.
        if all(record.get(field) is not None for field in needed):
            return name
    raise ValueError(
        f"no layout fits the fields {', '.join(map(str, record)) or '(none)'}: a record has {'; or '.join(LAYOUTS)}. For "
        "other names, name the two fields (prompt_field and completion_field; on the command line --prompt-field and "
        "--completion-field)"
    )


def text_of(record: Mapping[str, Any], field: str, *, may_be_empty: bool = False) -> str:
    """Returns the text in a field.

    Raises:
        ValueError: If it is missing, not text, or blank where it must not be.
    """
    if field not in record:
        raise ValueError(f"the field {field!r} is missing; the record has {', '.join(map(str, record)) or 'no fields'}")
    value = record[field]
    if not isinstance(value, str):
        raise ValueError(f"{field!r} must be a string, got {value!r:.60} ({type(value).__name__})")
    if not value.strip() and not may_be_empty:
        raise ValueError(f"{field!r} is empty")
    return value


def _prompt(record: Mapping[str, Any], field: str) -> Prompt:
    value = record.get(field)
    return tuple(value) if is_conversation(value) else text_of(record, field)
