"""Reads prompts, answers and subjects from any ordered iterable of texts, once, and checks their number.

A prompt is a text, or a conversation: a list of messages such as `{"role": "user", "content":
"..."}`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, TypeGuard

import pandas as pd

Message: TypeAlias = Mapping[str, Any]
"""One turn of a conversation, with its role and its content, and whatever else the chat template reads."""
Prompt: TypeAlias = str | Sequence[Message]


def as_texts(values: object, name: str, *, count: int | None = None) -> list[str]:
    """Reads texts from a list, tuple, generator, Series, array or column of a Dataset.

    Args:
        values: the texts. A Series is read in the order of its lines, whatever its index says.
        name: of the argument, for errors: "answers".
        count: how many there must be, one for each prompt; any number above zero if not given.

    Raises:
        TypeError: For a single text, for an iterable without an order, or for an item that is not a
            text.
        ValueError: For no texts, or for another number of them than `count`.
    """
    texts = as_list(values, name, count)
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"{name} must be strings, got {_shown(text)} at index {row}")
    return [str(text) for text in texts]


def as_prompts(values: object, name: str = "prompts", *, count: int | None = None) -> list[Prompt]:
    """Reads prompts, which may be texts or conversations.

    Args:
        values: the prompts.
        name: of the argument, for errors.
        count: how many there must be; any number above zero if not given.

    Raises:
        TypeError: For a single prompt, for an iterable without an order, or for an item that is
            neither a text nor a list of messages.
        ValueError: For no prompts, or for another number of them than `count`.
    """
    prompts = as_list(values, name, count)
    if any(isinstance(prompt, Mapping) for prompt in prompts):
        raise TypeError(f"{name} must be a list, got a single conversation: write [messages]")
    for row, prompt in enumerate(prompts):
        if not isinstance(prompt, str) and not is_conversation(prompt):
            raise TypeError(
                f"{name} must be strings or lists of messages with a role and a content, got {_shown(prompt)} at index {row}"
            )
    return [str(prompt) if isinstance(prompt, str) else tuple(prompt) for prompt in prompts]


def as_list(values: Any, name: str, count: int | None = None) -> list[Any]:
    """Reads the items of a list of any kind once, in their order.

    Args:
        values: a list, tuple, generator, Series, array or column of a Dataset.
        name: of the argument, for errors.
        count: how many there must be; any number above zero if not given.

    Raises:
        TypeError: For a single text, and for what has no order.
        ValueError: For no items, or for another number of them than `count`.
    """
    if isinstance(values, str | bytes):
        raise TypeError(f"{name} must be a list of strings, got a single string: write [{_shown(values)}]")
    # Iterating a mapping or a frame gives its keys or columns, which would pass for prompts.
    if isinstance(values, Mapping | set | frozenset | pd.DataFrame):
        what = "has no order" if isinstance(values, set | frozenset) else "has several parts"
        raise TypeError(
            f"{name} must be a list of strings, got a {type(values).__name__}, which {what}: pass a list or one column"
        )
    try:
        given = iter(values)
    except TypeError as error:
        raise TypeError(f"{name} must be a list of strings, got {_shown(values)}") from error
    items = list(given)
    if count is not None and len(items) != count:
        raise ValueError(f"{name} must have one item for each prompt, got {count} prompts and {len(items)} {name}")
    if not items:
        raise ValueError(f"the list of {name} is empty")
    return items


def is_conversation(value: object) -> TypeGuard[Sequence[Message]]:
    """Returns whether a value is a list of messages, each with a role and a content.

    Args:
        value: anything.
    """
    if not isinstance(value, list | tuple) or not value:
        return False
    return all(isinstance(message, Mapping) and {"role", "content"} <= message.keys() for message in value)


def written(prompt: Prompt) -> str:
    """Formats a prompt for display: a text unchanged, a conversation with one line per turn.

    Args:
        prompt: a text or a conversation.
    """
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{message['role']}: {message['content']}" for message in prompt)


def _shown(value: object) -> str:
    return f"{value!r:.60}" if isinstance(value, str | bytes) else f"{type(value).__name__} {value!r:.60}"
