"""Joins one or two texts into one with the tokenizer's separators, as in an encoder's training, and cuts it to a length.

`encode` puts the model's first token before a text and nothing after it. After joining,
`encode(bridge, [text])` has the same tokens as `tokenizer(first, second)`: `<s> A </s></s> B </s>`
for RoBERTa, `[CLS] A [SEP] B [SEP]` for BERT. A text cannot carry BERT's token types, which
distinguish A from B: the bridge runs without them and treats both texts as A.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from transformer_lens.model_bridge import TransformerBridge
from transformers import PreTrainedTokenizerBase

from reftlens.data import token_counts

SHORTEST = 8
"""Minimum length in tokens, which leaves room for the separators and a part of each text."""


class Separators(NamedTuple):
    """The text between two texts, after a single text, and after the second of two texts."""

    between: str
    behind_one: str
    behind_two: str


def separators(tokenizer: PreTrainedTokenizerBase) -> Separators:
    """Returns a tokenizer's separators. If it has none between two texts, as in GPT-2, a line break is used.

    Raises:
        ValueError: If the tokenizer does not mark separators, or encodes written separators as
            other tokens.
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
        # Only the end is compared: the first token, such as [CLS], comes from `encode`.
        if tokens[len(tokens) - len(written) :] != written:
            raise ValueError(
                f"{type(tokenizer).__name__} encodes {joined(marks, *texts)!r} as {written} but {texts!r} as {tokens}, so its "
                "texts cannot be joined with written separators"
            )
    return marks


def _specials(tokenizer: PreTrainedTokenizerBase, *texts: str) -> tuple[str, str]:
    """Returns the special tokens between two texts (empty for one text), and those after the last text."""
    found = tokenizer(*texts)
    tokens, owners = tokenizer.convert_ids_to_tokens(found["input_ids"]), found.sequence_ids(0)
    first_ends = owners.index(0) + owners.count(0)
    last = len(texts) - 1
    begins, ends = owners.index(last), owners.index(last) + owners.count(last)
    return "".join(tokens[first_ends:begins]), "".join(tokens[ends:])


def joined(marks: Separators, first: str, second: str | None = None) -> str:
    """Returns the texts joined with separators."""
    return first + marks.behind_one if second is None else f"{first}{marks.between}{second}{marks.behind_two}"


def tells_texts_apart(bridge: TransformerBridge) -> bool:
    """Returns whether the model was trained with another token type in the second text (BERT was, RoBERTa was not)."""
    types = bridge.tokenizer("a", "b").get("token_type_ids", [])
    return any(types) and getattr(bridge.original_model.config, "type_vocab_size", 1) > 1


def join(
    bridge: TransformerBridge, texts: Sequence[tuple[str, str | None]], *, max_length: int
) -> tuple[list[str], list[bool]]:
    """Joins texts and cuts long ones: token by token from the longer of the two, as tokenizers do.

    Args:
        bridge: gives the tokenizer.
        texts: first and second text; the second is None if there is only one.
        max_length: in tokens of the model, including separators and the first token.

    Returns:
        The joined texts, and whether each was cut.

    Raises:
        ValueError: If max_length is below 8, or the tokenizer is not supported; see `separators`.
    """
    if max_length < SHORTEST:
        raise ValueError(f"max_length must be at least {SHORTEST} tokens, got {max_length}")
    marks = separators(bridge.tokenizer)
    found = [joined(marks, *pair) for pair in texts]
    # All at once, and one by one only where a text is too long: tokenizing is what takes time.
    too_long = [count > max_length for count in token_counts(bridge, found)]
    for row, (first, second) in enumerate(texts):
        limit = max_length
        # A text cut inside a word may be tokenized differently, with one more token, so the limit
        # is lowered until it fits.
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
