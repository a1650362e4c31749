"""Tokenizes prompts and completions into a batch that marks the prompt tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, final

import pandas as pd
import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from reftlens.bridge import pad_id, require_padding
from reftlens.data.chat import completion_text, prompt_text
from reftlens.data.texts import Prompt, as_prompts
from reftlens.data.tokens import continuations, first_token_of_texts, tokenize, tokenizer_of
from reftlens.display import as_html
from reftlens.positions import Prompts

IGNORE = -100
"""Label of a token that the loss ignores."""


@final
@dataclass(frozen=True, eq=False)
class Batch:
    """Tokens of several prompts, each followed by its completion, padded to one length."""

    tokens: Int[Tensor, "batch pos"]
    attention_mask: Int[Tensor, "batch pos"]
    """1 for real tokens, 0 for padding."""
    prompt_mask: Bool[Tensor, "batch pos"]
    """True for prompt tokens, including BOS."""
    labels: Int[Tensor, "batch pos"]
    """The token id for completion tokens, -100 for all others."""
    texts: tuple[str, ...] | None = None
    """The prompts; with `offsets`, what `Span` reads."""
    offsets: Int[Tensor, "batch pos 2"] | None = None
    """First and one-past-last character of each prompt token in its text; None if the tokenizer cannot tell."""

    def __len__(self) -> int:
        return len(self.tokens)

    def to(self, device: str | torch.device) -> Batch:
        """Returns the batch on another device.

        Args:
            device: the target device.
        """
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        moved: dict[str, Any] = {name: v.to(device) for name, v in values.items() if isinstance(v, Tensor)}
        return replace(self, **moved)

    @property
    def prompts(self) -> Prompts:
        """The information about this batch that position rules may use."""
        return Prompts(self.prompt_mask, self.labels != IGNORE, self.texts, self.offsets)

    @property
    def last_prompt_index(self) -> Int[Tensor, " batch"]:
        """Column of each prompt's last token, where the first completion token is predicted."""
        columns = torch.arange(self.tokens.shape[1], device=self.tokens.device)
        # A completion or padding may follow, so neither the last column nor length - 1 is right.
        return torch.where(self.prompt_mask, columns, -1).amax(dim=1)

    @property
    def last_prompt_mask(self) -> Bool[Tensor, "batch pos"]:
        """True at each prompt's last token."""
        return torch.zeros_like(self.prompt_mask).scatter(1, self.last_prompt_index[:, None], True)

    def at_last_prompt_token(self, values: Shaped[Tensor, "batch pos axis"]) -> Shaped[Tensor, "batch axis"]:
        """Selects the values at each prompt's last token. Logits there predict the first completion token.

        Args:
            values: one row per position, such as logits.
        """
        rows = torch.arange(len(self), device=values.device)
        return values[rows, self.last_prompt_index]

    def __repr__(self) -> str:
        prompt, completion = int(self.prompt_mask.sum()), int((self.labels != IGNORE).sum())
        batch, pos = self.tokens.shape
        return f"Batch({batch} prompts x {pos} positions: {prompt} prompt tokens, {completion} completion tokens)"

    def to_dataframe(self) -> pd.DataFrame:
        """Returns one row per prompt: its text, if known, and its numbers of tokens."""
        counts = {"prompt tokens": self.prompt_mask, "completion tokens": self.labels != IGNORE}
        lines = pd.DataFrame({name: mask.sum(dim=1).tolist() for name, mask in counts.items()})
        if self.texts is not None:
            lines.insert(0, "prompt", list(self.texts))
        return lines

    def _repr_html_(self) -> str:
        return as_html(repr(self), self.to_dataframe)


def encode(
    bridge: TransformerBridge,
    prompts: Iterable[Prompt],
    completions: Iterable[Prompt] | None = None,
    *,
    padding_side: Literal["left", "right"] = "right",
    prepend_bos: bool | None = None,
) -> Batch:
    """Tokenizes prompts and optional completions into one batch.

    Prompt + completion has the tokens of the joint text, and a prompt has the same tokens with and
    without a completion (`data.tokens` has the rule for texts that merge across the boundary). A
    completion usually begins with a space, as in `(" The tower is in", " Rome")`. A prompt may also
    be a conversation, which is a list of messages. It is formatted by the tokenizer's chat
    template, and its completion is the assistant's turn.

    Args:
        bridge: gives the tokenizer, the context length and the device.
        prompts: texts or conversations.
        completions: one per prompt, or None.
        padding_side: "left" for generation; "right" lets a causal model run without an attention
            mask.
        prepend_bos: whether each text begins with BOS; `bridge.cfg.default_prepend_bos` by default.
            A text that already begins with BOS does not get a second one, and a chat template sets
            BOS itself.

    Raises:
        TypeError: If a single text is given instead of a list, or an item is not a text.
        ValueError: If there are no prompts, the number of completions differs, a prompt or
            completion is empty, a text is longer than the model's context, the model has no
            embedding for a token, or prompts differ in length and padding on that side changes the
            model's logits.
    """
    given = as_prompts(prompts)
    wants_tail = completions is not None
    if completions is not None:
        completions = as_prompts(completions, "completions", count=len(given))
    if padding_side not in ("left", "right"):
        raise ValueError(f"padding_side must be 'left' or 'right', got {padding_side!r}")
    rows = _Rows(bridge, given, prepend_bos)
    heads, tails = rows.heads, rows.tails(completions) if completions is not None else [[] for _ in given]
    for row, (head, tail) in enumerate(zip(heads, tails, strict=True)):
        if not rows.ids[row]:
            raise ValueError(f"prompt {row} has no tokens: {rows.texts[row]!r}")
        _check_row(bridge, row, rows.texts[row], head, tail, wants_tail=wants_tail)
    require_padding(bridge, padding_side, [len(head) + len(tail) for head, tail in zip(heads, tails, strict=True)])
    batch = _pad(bridge, heads, tails, left=padding_side == "left")
    batch = replace(batch, texts=tuple(rows.texts))
    if rows.offsets is not None:
        batch = replace(batch, offsets=_place_offsets(batch, rows.offsets))
    # Filled on the CPU and moved once, instead of once for every row.
    return batch.to(bridge.cfg.device)


def token_counts(bridge: TransformerBridge, prompts: Iterable[Prompt], *, prepend_bos: bool | None = None) -> list[int]:
    """Counts the tokens of each prompt after `encode`, including BOS.

    Args:
        bridge: gives the tokenizer.
        prompts: texts or conversations.
        prepend_bos: as in `encode`.
    """
    return [len(head) for head in _Rows(bridge, as_prompts(prompts), prepend_bos).heads]


def completion_tokens(
    bridge: TransformerBridge, prompts: Iterable[Prompt], completions: Iterable[Prompt], *, name: str = "completions"
) -> list[list[int]]:
    """Returns the tokens that `encode` gives each completion, without a limit on the length of the text.

    Args:
        bridge: gives the tokenizer.
        prompts: texts or conversations.
        completions: one for each prompt.
        name: of the argument, for errors.

    Raises:
        ValueError: For a completion without tokens.
    """
    given = as_prompts(prompts)
    rows, texts = _Rows(bridge, given, None), as_prompts(completions, name, count=len(given))
    tails = rows.tails(texts)
    for row, tail in enumerate(tails):
        if not tail:
            raise ValueError(f"{name}: {texts[row]!r} has no tokens after prompt {row} ({rows.texts[row][-60:]!r})")
    return tails


def first_tokens(
    bridge: TransformerBridge, prompts: Iterable[Prompt], answers: Iterable[Prompt], *, name: str = "answers"
) -> Int[Tensor, " prompt"]:
    """Returns the first token of each answer after its prompt, on the model's device. The logits after the prompt predict it.

    Args:
        bridge: gives the tokenizer.
        prompts: texts or conversations.
        answers: one for each prompt, usually with a leading space.
        name: of the argument, for errors.

    Raises:
        ValueError: For an answer without tokens, or another number of answers.
    """
    tails = completion_tokens(bridge, prompts, answers, name=name)
    return torch.tensor([tail[0] for tail in tails], device=bridge.cfg.device)


class _Rows:
    """Tokenizes each prompt separately, and the completions that follow them."""

    def __init__(self, bridge: TransformerBridge, prompts: Sequence[Prompt], prepend_bos: bool | None) -> None:
        self.tokenizer, self.prompts = tokenizer_of(bridge), prompts
        self.texts = [prompt_text(self.tokenizer, prompt) for prompt in prompts]
        self.ids, offsets = tokenize(self.tokenizer, self.texts)
        first = first_token_of_texts(bridge, prepend_bos)
        self.fronts: list[list[int]] = [
            [first] if first is not None and isinstance(prompt, str) and row[:1] != [first] else []
            for prompt, row in zip(prompts, self.ids, strict=True)
        ]
        self.heads = [front + row for front, row in zip(self.fronts, self.ids, strict=True)]
        self.offsets = None
        if offsets is not None:
            self.offsets = [[(0, 0)] * len(front) + row for front, row in zip(self.fronts, offsets, strict=True)]

    def tails(self, completions: Sequence[Prompt]) -> list[list[int]]:
        pairs = zip(self.prompts, completions, strict=True)
        texts = [completion_text(self.tokenizer, prompt, completion) for prompt, completion in pairs]
        return continuations(self.tokenizer, self.texts, self.ids, texts)


def _place_offsets(batch: Batch, offsets: Sequence[Sequence[tuple[int, int]]]) -> Int[Tensor, "batch pos 2"]:
    """Returns the character span of each token at its position in the batch; (0, 0) for BOS, completions and padding."""
    placed = torch.zeros((*batch.tokens.shape, 2), dtype=torch.long)
    for row, characters in enumerate(offsets):
        placed[row, batch.prompt_mask[row]] = torch.tensor(list(characters))
    return placed


def _check_row(
    bridge: TransformerBridge, row: int, prompt: str, head: list[int], tail: list[int], *, wants_tail: bool
) -> None:
    if wants_tail and not tail:
        raise ValueError(f"the completion of prompt {row} ({prompt!r}) has no tokens")
    unknown = sorted({token for token in (*head, *tail) if token >= bridge.cfg.d_vocab})
    if unknown:
        pieces = ", ".join(f"{token} ({bridge.tokenizer.convert_ids_to_tokens(token)!r})" for token in unknown[:4])
        raise ValueError(
            f"prompt {row} or its completion has tokens beyond the model's {bridge.cfg.d_vocab} embeddings: {pieces}. Call "
            "hf_model.resize_token_embeddings(len(tokenizer)) before load_bridge, or remove these tokens from the tokenizer"
        )
    limit = bridge.cfg.n_ctx
    if len(head) + len(tail) > limit:
        raise ValueError(
            f"prompt {row} has {len(head)} tokens and its completion {len(tail)}, but the model's context has only {limit}: "
            f"shorten {prompt[:60]!r}"
        )


def _pad(bridge: TransformerBridge, heads: list[list[int]], tails: list[list[int]], *, left: bool) -> Batch:
    width = max(len(head) + len(tail) for head, tail in zip(heads, tails, strict=True))
    tokens = torch.full((len(heads), width), pad_id(bridge))
    attention_mask = torch.zeros_like(tokens)
    prompt_mask = torch.zeros_like(tokens, dtype=torch.bool)
    labels = torch.full_like(tokens, IGNORE)
    for row, (head, tail) in enumerate(zip(heads, tails, strict=True)):
        start = width - len(head) - len(tail) if left else 0
        middle, end = start + len(head), start + len(head) + len(tail)
        tokens[row, start:end] = torch.tensor(head + tail)
        attention_mask[row, start:end] = 1
        prompt_mask[row, start:middle] = True
        labels[row, middle:end] = tokens[row, middle:end]
    return Batch(tokens, attention_mask, prompt_mask, labels)
