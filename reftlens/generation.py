"""Decoding with an edit: prompt tokens are edited in the prefill, generated ones never."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from transformer_lens.model_bridge import TransformerBridge
from transformers import GenerationConfig

from reftlens.bridge import require_causal
from reftlens.data import encode
from reftlens.reft import Reft


@torch.no_grad()
def generate(
    bridge: TransformerBridge,
    reft: Reft | None,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 32,
    batch_size: int = 16,
    use_cache: bool = True,
    prepend_bos: bool | None = None,
) -> list[str]:
    """Greedy continuations of prompts under an edit, on Hugging Face's own decoding loop.

    Args:
        bridge: the model.
        reft: the edit, or None for the base model.
        prompts: texts.
        max_new_tokens: length of a continuation, in tokens, at most; EOS ends it earlier.
        batch_size: prompts decoded together, padded on the left.
        use_cache: keep keys and values between steps. Without it every step runs the whole prefix again, and
            gives the same text, slower.
        prepend_bos: whether each prompt begins with BOS; the model's own habit if not given.

    Returns:
        One text for each prompt, without the prompt and without special tokens.

    Raises:
        ValueError: for no prompts, a prompt that leaves no room for `max_new_tokens` in the context, or a masked
            language model.
    """
    if max_new_tokens < 1 or batch_size < 1:
        raise ValueError(f"max_new_tokens and batch_size must be at least 1, got {max_new_tokens} and {batch_size}")
    if not len(prompts):
        raise ValueError("there is nothing to generate from: the list of prompts is empty")
    require_causal(bridge, "generate")
    texts: list[str] = []
    for start in range(0, len(prompts), batch_size):
        batch = encode(bridge, prompts[start : start + batch_size], padding_side="left", prepend_bos=prepend_bos)
        width = batch.tokens.shape[1]
        if width + max_new_tokens > bridge.cfg.n_ctx:
            raise ValueError(
                f"the longest prompt has {width} tokens: with {max_new_tokens} new ones it passes the context of {bridge.cfg.n_ctx}"
            )
        edited = nullcontext() if reft is None else reft.hooks(bridge, batch)
        tokenizer = bridge.tokenizer
        greedy = GenerationConfig(
            max_new_tokens=max_new_tokens,
            do_sample=False,
            use_cache=use_cache,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
        )
        with edited:
            out = bridge.original_model.generate(
                batch.tokens, attention_mask=batch.attention_mask, generation_config=greedy
            )
        texts += tokenizer.batch_decode(out[:, width:], skip_special_tokens=True)
    return texts
