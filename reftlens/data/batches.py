"""Converts the prompts of an analysis (texts, pairs, conversations, one or several batches) to batches."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from typing import Any, Literal, TypeAlias

from transformer_lens.model_bridge import TransformerBridge

from reftlens.data.batch import Batch, encode
from reftlens.data.texts import Prompt, as_list, is_conversation

Given: TypeAlias = Batch | Iterable[Batch] | Iterable[Prompt] | Iterable[tuple[Prompt, Prompt]]
"""Prompts, pairs of a prompt and its completion, or batches of either from `encode`."""


def as_batches(
    bridge: TransformerBridge,
    prompts: Given,
    *,
    name: str = "prompts",
    batch_size: int = 64,
    at_least: int = 1,
    padding_side: Literal["left", "right"] = "right",
) -> list[Batch]:
    """Divides prompts into batches, in order. Given batches are returned unchanged.

    Args:
        bridge: gives the tokenizer.
        prompts: texts, conversations, pairs, one batch or several.
        name: of the argument, for errors.
        batch_size: prompts in a batch, at most.
        padding_side: as of `encode`.
        at_least: batches that are needed; smaller ones are made where there are few prompts.

    Raises:
        TypeError: For a single text where a list is wanted, or items that are not prompts.
        ValueError: For no prompts, batches among texts, or pairs among prompts.
    """
    if isinstance(prompts, Batch):
        return [prompts]
    items = as_list(prompts, name)
    if any(isinstance(item, Batch) for item in items):
        if not all(isinstance(item, Batch) for item in items):
            raise ValueError(f"{name} must be all texts or all batches, got both in one list")
        return items
    size = max(1, min(batch_size, len(items) // at_least))
    pieces = [items[start : start + size] for start in range(0, len(items), size)]
    return [_encoded(bridge, piece, name, padding_side) for piece in pieces]


def as_batch(
    bridge: TransformerBridge,
    prompts: Given,
    *,
    name: str = "prompts",
    padding_side: Literal["left", "right"] = "right",
) -> Batch:
    """Returns all prompts as one batch.

    Args:
        bridge: gives the tokenizer.
        prompts: texts, conversations, pairs, or one batch.
        name: of the argument, for errors.
        padding_side: as of `encode`.

    Raises:
        TypeError: As for `as_batches`.
        ValueError: As for `as_batches`, and for several batches.
    """
    # Read once: a generator has no length, and cannot be read again.
    items = prompts if isinstance(prompts, Batch) else as_list(prompts, name)
    batches = as_batches(bridge, items, name=name, batch_size=len(items), padding_side=padding_side)
    if len(batches) > 1:
        raise ValueError(f"{name} must be a single batch, got {len(batches)}: pass the texts, or encode them together")
    return batches[0]


def first_rows(batch: Batch, n: int) -> Batch:
    """Returns the first n examples of a batch, all if there are fewer, with their texts.

    Args:
        batch: from `encode`.
        n: number of examples.
    """
    return _rows(batch, slice(n))


def rows_in_groups(batch: Batch, n: int) -> list[Batch]:
    """Divides a batch into batches of n examples, the last one perhaps of fewer. Columns and texts stay.

    Args:
        batch: from `encode`.
        n: number of examples, at least 1.
    """
    if n >= len(batch):
        return [batch]
    return [_rows(batch, slice(start, start + n)) for start in range(0, len(batch), n)]


def _rows(batch: Batch, rows: slice) -> Batch:
    values: dict[str, Any] = {field.name: getattr(batch, field.name) for field in fields(batch)}
    kept: dict[str, Any] = {name: value if value is None else value[rows] for name, value in values.items()}
    return replace(batch, **kept)


def batches_by_length(counts: Sequence[int], batch_size: int) -> list[list[int]]:
    """Groups rows of similar length into batches, so that there is little padding.

    The longest rows come first, so that running out of memory shows at once.

    Args:
        counts: the length of each row.
        batch_size: rows in a batch, at most.

    Returns:
        For each batch, the indices of its rows; rows of one length keep their order.
    """
    order = sorted(range(len(counts)), key=lambda row: -counts[row])
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def _encoded(
    bridge: TransformerBridge, items: Sequence[Any], name: str, padding_side: Literal["left", "right"]
) -> Batch:
    if not any(_is_pair(item) for item in items):
        return encode(bridge, items, padding_side=padding_side)
    if not all(_is_pair(item) for item in items):
        raise ValueError(f"{name} must be all prompts or all (prompt, completion) pairs, got both in one list")
    heads, tails = zip(*items, strict=True)
    return encode(bridge, heads, tails, padding_side=padding_side)


def _is_pair(item: object) -> bool:
    if not isinstance(item, tuple | list) or len(item) != 2:
        return False
    # A conversation of two messages has messages as its parts, and is no pair.
    return all(isinstance(part, str) or is_conversation(part) for part in item)
