"""One text, or two as one, as an encoder met them in its own training: the tokenizer's separators written out, cut to a length.

`encode` begins a text with the model's first token and puts nothing behind it. Joined here, `encode(bridge, [text])` has
the tokens of `tokenizer(first, second)`: `<s> A </s></s> B </s>` for RoBERTa, `[CLS] A [SEP] B [SEP]` for BERT. What no
text can carry are BERT's token types, which tell A from B: the bridge is run without, and takes all of it for A.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from transformer_lens.model_bridge import TransformerBridge
from transformers import PreTrainedTokenizerBase

from reftlens.data import token_counts

SHORTEST = 8
"""Tokens that room is left for at least: separators, and something of each text."""


class Separators(NamedTuple):
    """What stands between and behind texts, as text."""

    between: str
    behind_one: str
    behind_two: str


def separators(tokenizer: PreTrainedTokenizerBase) -> Separators:
    """A tokenizer's own separators; a line break between two texts where it has none, as in GPT-2.

    Raises:
        ValueError: if the tokenizer does not know texts from separators, or written into the text they become other tokens.
    """
    if not tokenizer.is_fast:
        raise ValueError(
            f"{type(tokenizer).__name__} does not mark which tokens are separators: use the fast tokenizer"
        )
    one, two = ("a",), ("a", "b")
    _, behind_one = _specials(tokenizer, *one)
    between, behind_two = _specials(tokenizer, *two)
    marks = Separators(between or "\n", behind_one, behind_two)
    for texts in (one, two) if between else (one,):
        written = tokenizer(joined(marks, *texts), add_special_tokens=False)["input_ids"]
        tokens = tokenizer(*texts)["input_ids"]
        if tokens[len(tokens) - len(written) :] != written:
            raise ValueError(
                f"{type(tokenizer).__name__} encodes {joined(marks, *texts)!r} as {written} but {texts!r} as {tokens}, so its "
                "texts cannot be joined with written separators"
            )
    return marks


def _specials(tokenizer: PreTrainedTokenizerBase, *texts: str) -> tuple[str, str]:
    """The special tokens before the last text, unless it is the first, and those behind it."""
    found = tokenizer(*texts)
    tokens, owners = tokenizer.convert_ids_to_tokens(found["input_ids"]), found.sequence_ids(0)
    first_ends = owners.index(0) + owners.count(0)
    last = len(texts) - 1
    begins, ends = owners.index(last), owners.index(last) + owners.count(last)
    return "".join(tokens[first_ends:begins]), "".join(tokens[ends:])


def joined(marks: Separators, first: str, second: str | None = None) -> str:
    """The texts with separators."""
    return first + marks.behind_one if second is None else f"{first}{marks.between}{second}{marks.behind_two}"


def tells_texts_apart(bridge: TransformerBridge) -> bool:
    """Whether the model was trained with another token type in the second text, as BERT was and RoBERTa was not."""
    types = bridge.tokenizer("a", "b").get("token_type_ids", [])
    return any(types) and getattr(bridge.original_model.config, "type_vocab_size", 1) > 1


def join(
    bridge: TransformerBridge, texts: Sequence[tuple[str, str | None]], *, max_length: int
) -> tuple[list[str], list[bool]]:
    """Joins texts, and cuts what is too long: the longer of the two first, token by token, as tokenizers do it.

    Args:
        bridge: gives the tokenizer.
        texts: first and second, which is None where there is one text.
        max_length: in tokens of the model, separators and first token included.

    Returns:
        The joined texts, and of each whether it was cut.

    Raises:
        ValueError: if max_length is below 8, or the tokenizer cannot be used; see `separators`.
    """
    if max_length < SHORTEST:
        raise ValueError(f"max_length must be at least {SHORTEST} tokens, got {max_length}")
    marks = separators(bridge.tokenizer)
    found = [joined(marks, *pair) for pair in texts]
    too_long = [count > max_length for count in token_counts(bridge, found)]
    for row, (first, second) in enumerate(texts):
        limit = max_length
        # A text that ends in the middle of a word may have another token there, and one more.
        while token_counts(bridge, found[row : row + 1])[0] > max_length and limit > 0:
            found[row] = joined(marks, *_cut(bridge.tokenizer, first, second, limit))
            limit -= 1
    return found, too_long


def _cut(tokenizer: PreTrainedTokenizerBase, first: str, second: str | None, limit: int) -> tuple[str, ...]:
    texts = (first,) if second is None else (first, second)
    kept = tokenizer(*texts, truncation=True, max_length=limit, return_offsets_mapping=True)
    owners = kept.sequence_ids(0)
    ends = [
        max((end for (_, end), owner in zip(kept["offset_mapping"], owners, strict=True) if owner == which), default=0)
        for which in range(len(texts))
    ]
    return tuple(text[:end] for text, end in zip(texts, ends, strict=True))
