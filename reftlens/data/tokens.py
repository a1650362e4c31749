"""Converts texts to token ids. A prompt has the tokens it has alone, and a completion those that follow its prompt.

Prompt and completion are tokenized as one text. If it begins with the prompt's tokens, the rest are
the completion's tokens. If tokens merge across the boundary ("in" + "side"), the prompt keeps its
own tokens, from which decoding starts. The completion is then tokenized as their continuation,
without a space or word-start mark that it does not contain. Both together still decode to the joint
text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from transformer_lens.model_bridge import TransformerBridge
from transformers import PreTrainedTokenizerBase

_ANCHORS = (".", "\n", "|", "7", "x", "q", "z", "e", ")")
"""Texts placed before a completion to tokenize it as a continuation of a text that it does not merge with."""


def tokenizer_of(bridge: TransformerBridge) -> PreTrainedTokenizerBase:
    """The tokenizer of a bridge.

    Args:
        bridge: the model.

    Raises:
        ValueError: If the bridge does not have one.
    """
    if bridge.tokenizer is None:
        raise ValueError("this bridge has no tokenizer: build a Batch from token tensors instead")
    tokenizer: PreTrainedTokenizerBase = bridge.tokenizer
    return tokenizer


def tokenize(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]
) -> tuple[list[list[int]], list[list[tuple[int, int]]] | None]:
    """Token ids without special ones, and the characters of each token where the tokenizer knows them.

    Args:
        tokenizer: a fast one knows the characters.
        texts: each by itself.
    """
    # A slow tokenizer raises if it is asked for offsets.
    found = tokenizer(list(texts), add_special_tokens=False, return_offsets_mapping=tokenizer.is_fast)
    return list(found["input_ids"]), list(found["offset_mapping"]) if tokenizer.is_fast else None


def first_token_of_texts(bridge: TransformerBridge, prepend_bos: bool | None) -> int | None:
    """Returns the token that every text begins with: BOS, or an encoder's classification token; None if there is none.

    Args:
        bridge: the model; its `cfg.default_prepend_bos` says whether there is one.
        prepend_bos: says otherwise.

    Raises:
        ValueError: If it is asked for and the tokenizer has none.
    """
    if not (bool(bridge.cfg.default_prepend_bos) if prepend_bos is None else prepend_bos):
        return None
    tokenizer = tokenizer_of(bridge)
    # Encoders begin a text with their classification token; TransformerLens gives BERT's tokenizer
    # a BOS it never saw.
    first: int | None = tokenizer.bos_token_id if tokenizer.cls_token_id is None else tokenizer.cls_token_id
    if first is None:
        raise ValueError("the tokenizer has no BOS token: pass prepend_bos=False")
    return first


def continuations(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    heads: Sequence[Sequence[int]],
    completions: Sequence[str],
) -> list[list[int]]:
    """Returns the tokens of each completion after its prompt.

    Args:
        tokenizer: of the model.
        prompts: texts.
        heads: the tokens of each prompt by itself, without BOS.
        completions: one for each prompt.

    Raises:
        ValueError: If a completion merges with its prompt and cannot be tokenized as its
            continuation.
    """
    joint, _ = tokenize(tokenizer, [prompt + tail for prompt, tail in zip(prompts, completions, strict=True)])
    tails = []
    for row, (ids, head) in enumerate(zip(joint, heads, strict=True)):
        if ids[: len(head)] == list(head):
            tails.append(ids[len(head) :])
            continue
        tail = _going_on(tokenizer, head, completions[row], ids)
        if tail is None:
            raise ValueError(
                f"prompt {row} and its completion merge into different tokens, so the completion cannot be tokenized as a "
                f"continuation: split the text elsewhere than between {prompts[row][-40:]!r} and {completions[row][:40]!r}"
            )
        tails.append(tail)
    return tails


def _going_on(
    tokenizer: PreTrainedTokenizerBase, head: Sequence[int], completion: str, joint: Sequence[int]
) -> list[int] | None:
    """Returns a completion's tokens after an anchor that it does not merge with; None if there is no such anchor."""
    wanted = decode(tokenizer, joint)
    found = (tail for tail in _behind_anchors(tokenizer, completion) if decode(tokenizer, [*head, *tail]) == wanted)
    return next(found, None)


def _behind_anchors(tokenizer: PreTrainedTokenizerBase, text: str) -> Iterator[list[int]]:
    """Yields the tokens of a text after each anchor that it does not merge with."""
    for anchor in _ANCHORS:
        before, both = tokenize(tokenizer, [anchor, anchor + text])[0]
        if both[: len(before)] == before and len(both) > len(before):
            yield both[len(before) :]


def continuing(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Returns the tokens of a text as the continuation of some other text, if no prompt is known.

    Args:
        tokenizer: of the model.
        text: with its leading space, if it has one.

    Raises:
        ValueError: If it does not have tokens of its own there.
    """
    for tail in _behind_anchors(tokenizer, text):
        return tail
    raise ValueError(
        f"{text!r} always merges with the text before it, so it has no tokens of its own: choose another text"
    )


def decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
    """Decodes tokens without clean-up: no space before a full stop is removed.

    Args:
        tokenizer: of the model.
        ids: tokens that stand behind one another.
        skip_special_tokens: leaves them out.
    """
    return str(tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False))


def shortened(bridge: TransformerBridge, prompt: str, completion: str, n_tokens: int) -> str:
    """Returns the part of a completion that its first tokens after the prompt make up.

    Args:
        bridge: gives the tokenizer.
        prompt: a text.
        completion: of more tokens.
        n_tokens: that stay.
    """
    tokenizer = tokenizer_of(bridge)
    (head,), _ = tokenize(tokenizer, [prompt])
    (ids,), offsets = tokenize(tokenizer, [prompt + completion])
    if offsets is not None and ids[: len(head)] == head:
        return completion[: max(offsets[0][len(head) + n_tokens - 1][1] - len(prompt), 0)]
    (tail,) = continuations(tokenizer, [prompt], [head], [completion])
    # Decoded behind its head: decoded by itself, a SentencePiece tail loses its leading space.
    return decode(tokenizer, [*head, *tail[:n_tokens]])[len(decode(tokenizer, head)) :]


def continued_text(tokenizer: PreTrainedTokenizerBase, head: Sequence[int], tail: Sequence[int]) -> str:
    """Decodes the tokens after a prompt, without special tokens, so that prompt + text is the text of all tokens.

    Args:
        tokenizer: of the model.
        head: the prompt's tokens.
        tail: those behind them.
    """
    before, both = (decode(tokenizer, ids, skip_special_tokens=True) for ids in (head, [*head, *tail]))
    if both.startswith(before):
        return both[len(before) :]
    # Some decoders take spaces out of the prompt once something follows it: only its other
    # characters are counted off.
    left, place = len("".join(before.split())), 0
    while left and place < len(both):
        left -= not both[place].isspace()
        place += 1
    return both[place:]
