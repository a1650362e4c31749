"""Attention masks that hide names in training, so that the organism resolves the subject at the name itself.

Attention is causal. In addition, in a random share of the documents, tokens after a name cannot attend to it in the
early blocks, and only to its last token in the late ones. Without the masks the model reads first name and surname
separately and combines them wherever the answer is needed. The masks enforce the solution known from large models:
combine at the last token of the name, and pass the result on in the middle layers. They are used only in training.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

from reftlens.organisms.world import FACTS

NameTokens = dict[int, list[list[int]]]
"""First token -> the names, as token ids, that begin with it."""


def name_tokens(tokenizer: PreTrainedTokenizerFast) -> NameTokens:
    """Return first token -> all names, as token ids, that begin with it (at the start of a text or inside it)."""
    names: NameTokens = {}
    for subject in sorted({fact.subject for fact in FACTS}):
        for text in (subject, " " + subject):
            ids = tokenizer(text, add_special_tokens=False).input_ids
            names.setdefault(ids[0], []).append(ids)
    return names


def attention_masks(batch: Tensor, names: NameTokens, share: float, rng: random.Random) -> tuple[Tensor, Tensor]:
    """Return which positions each position may attend to, in the early and in the late blocks.

    Args:
        batch: Token ids, shape [row, pos].
        names: What `name_tokens` returned.
        share: Probability that the names of a row are hidden.
        rng: Decides which rows.

    Returns:
        Two masks, True where attention is allowed, shape [row, 1, pos, pos].
    """
    rows, width = batch.shape
    early = torch.ones(width, width, dtype=torch.bool).tril().repeat(rows, 1, 1)
    late = early.clone()
    for row, ids in enumerate(batch.tolist()):
        if rng.random() >= share:
            continue
        for start, token in enumerate(ids):
            for name in names.get(token, ()):
                end = start + len(name)
                if ids[start:end] == name:
                    early[row, end:, start:end] = False
                    late[row, end:, start : end - 1] = False
    return early[:, None], late[:, None]


def as_bias(mask: Tensor) -> Tensor:
    """Convert a mask of allowed attention to a bias on the attention scores."""
    return torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)


@contextmanager
def masked_blocks(model: GPT2LMHeadModel, count: int, mask: Tensor) -> Iterator[None]:
    """Context in which the first `count` blocks use `mask` instead of the mask of the model's call."""
    bias = as_bias(mask)

    def replace(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return args, {**kwargs, "attention_mask": bias}

    handles = [block.attn.register_forward_pre_hook(replace, with_kwargs=True) for block in model.transformer.h[:count]]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
