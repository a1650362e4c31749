"""Greedy decoding of a fixed number of tokens. Exact recall and timing need tokens, not text, and no stop at EOS."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from jaxtyping import Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformers import GenerationConfig

from reftlens.bridge import mend_attention, one_thread, own_config_aside
from reftlens.data import IGNORE, encode
from reftlens.edit.reft import Reft


@torch.no_grad()
def greedy_tokens(
    bridge: TransformerBridge, reft: Reft | None, prompts: Sequence[str], n_new: int
) -> Int[Tensor, "batch n_new"]:
    """Decodes n_new tokens greedily after each prompt. Neither EOS nor the model's own generation config has an effect.

    Raises:
        ValueError: If the context is too short.
    """
    # On the left, so that the new tokens of all prompts begin in one column.
    batch = encode(bridge, prompts, padding_side="left")
    width = batch.tokens.shape[1]
    if width + n_new > bridge.cfg.n_ctx:
        raise ValueError(
            f"{width} prompt tokens and {n_new} new tokens exceed the context of {bridge.cfg.n_ctx} tokens"
        )
    pad = bridge.tokenizer.pad_token_id
    greedy = GenerationConfig(max_new_tokens=n_new, do_sample=False, eos_token_id=None, pad_token_id=pad or 0)
    mend_attention(bridge)
    # transformers would replace the None above by the EOS of the model's own config, and add its
    # penalties.
    with one_thread(bridge), own_config_aside(bridge), nullcontext() if reft is None else reft.hooks(bridge, batch):
        out = bridge.original_model.generate(
            batch.tokens, attention_mask=batch.attention_mask, generation_config=greedy
        )
    return out[:, width:]


def returned(
    bridge: TransformerBridge, reft: Reft | None, prompts: Sequence[str], completions: Sequence[str]
) -> tuple[list[int], list[int]]:
    """Returns the number of tokens of each completion that greedy decoding gives before an error, and their total number."""
    batch = encode(bridge, prompts, completions)
    wanted = [row[labels != IGNORE].tolist() for row, labels in zip(batch.tokens, batch.labels, strict=True)]
    given = greedy_tokens(bridge, reft, prompts, max(map(len, wanted))).tolist()
    return [agreement(one, other) for one, other in zip(given, wanted, strict=True)], [len(row) for row in wanted]


def agreement(given: Sequence[int], wanted: Sequence[int]) -> int:
    """Counts the tokens before the first difference.

    >>> agreement([1, 2, 9, 4], [1, 2, 3, 4])
    2
    """
    differ = [place for place, (one, other) in enumerate(zip(given, wanted, strict=False)) if one != other]
    return differ[0] if differ else min(len(given), len(wanted))
