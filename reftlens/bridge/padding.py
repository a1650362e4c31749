"""Measures whether padding or a key-value cache changes a model's results, once for all models like it.

Attention masks padding. A recurrent state may pass through padding, and a padded row then differs
from the prompt alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Literal

import torch
from transformer_lens.model_bridge import TransformerBridge
from transformers import GenerationConfig

from reftlens.bridge.forwards import last_block_alone, own_config_aside, watch_forwards
from reftlens.bridge.proving import TOLERANCE, difference, made_up, pad_id, proved

_LENGTHS = (12, 7)
_NEW = 4
"""Tokens decoded."""


def require_padding(bridge: TransformerBridge, side: Literal["left", "right"], lengths: Sequence[int]) -> None:
    """Raises if rows of different lengths would be padded on a model whose results padding changes.

    Args:
        bridge: the model.
        side: the side on which rows are padded.
        lengths: of the rows, in tokens.

    Raises:
        ValueError: If the lengths differ and padding on that side changes the logits.
    """
    if len(set(lengths)) < 2:
        return
    change = padding_change(bridge, side)
    # Ten times what is tolerated where a slower way exists: in half precision a mixture of experts
    # may route a token elsewhere. "not <=" also refuses NaN.
    if not change <= 10 * TOLERANCE[bridge.original_model.dtype]:
        other: Literal["left", "right"] = "right" if side == "left" else "left"
        instead = f"padding_side={other!r}, or " if padding_holds(bridge, other) else ""
        raise ValueError(
            f"padding on the {side} changes the logits of {type(bridge.original_model).__name__} (by {change:.1g} of their "
            f"spread), because its state passes through padding: pass {instead}prompts of equal length"
        )


def padding_holds(bridge: TransformerBridge, side: Literal["left", "right"]) -> bool:
    """Returns whether a prompt padded on this side has the same logits as without padding."""
    return padding_change(bridge, side) <= TOLERANCE[bridge.original_model.dtype]


def side_for_ends(bridge: TransformerBridge) -> Literal["left", "right"]:
    """Returns the padding side to use if only the ends of prompts matter.

    With padding on the left, all last tokens share a column, so one narrow cone covers all prompts.

    Args:
        bridge: the model. The side is "right" if padding on the left changes its logits.
    """
    return "left" if padding_holds(bridge, "left") else "right"


def padding_change(bridge: TransformerBridge, side: Literal["left", "right"]) -> float:
    """Computes how much padding changes the logits of a prompt, by `difference`."""

    def prove() -> float:
        long, short = (min(length, bridge.cfg.n_ctx) for length in _LENGTHS)
        tokens = made_up(bridge, 2, long)
        mask = torch.ones_like(tokens)
        kept = slice(long - short, long) if side == "left" else slice(0, short)
        mask[1] = 0
        mask[1, kept] = 1
        together = bridge(tokens.where(mask.bool(), pad_id(bridge)), attention_mask=mask, use_cache=False)[1, kept]
        alone = bridge(tokens[1:, kept], attention_mask=mask[1:, kept], use_cache=False)[0]
        return difference(together, alone)

    return proved(bridge, f"padding on the {side}", prove)


def caching_holds(bridge: TransformerBridge) -> bool:
    """Returns whether cached decoding gives the same logits as whole runs, and the cache reports its length."""

    def prove() -> bool:
        long, short = (min(length, bridge.cfg.n_ctx - _NEW) for length in _LENGTHS)
        if short < 1:
            return True
        tokens = made_up(bridge, 2, long)
        mask = torch.ones_like(tokens)
        # Otherwise the padding would fail this proof, and the cache would get the blame.
        if padding_holds(bridge, "left"):
            mask[1, : long - short] = 0
        runs, offsets = [], list[int]()
        try:
            for use_cache in (True, False):
                with watch_forwards(bridge) as start:
                    handle = bridge.original_model.register_forward_hook(lambda *_: offsets.append(start.offset))
                    try:
                        runs.append(
                            _decode(bridge, tokens.where(mask.bool(), pad_id(bridge)), mask, use_cache=use_cache)
                        )
                    finally:
                        handle.remove()
        except Exception:  # whatever an architecture's own cache may raise
            return False
        # The first run has the cache: the prompt at offset 0, then one token a step.
        tells = offsets[:_NEW] == [0, *range(long, long + _NEW - 1)]
        return tells and difference(*runs) <= TOLERANCE[bridge.original_model.dtype]

    return proved(bridge, "decoding with a cache", prove)


def _decode(bridge: TransformerBridge, tokens: torch.Tensor, mask: torch.Tensor, *, use_cache: bool) -> torch.Tensor:
    """Logits of a few greedy steps."""
    model = bridge.original_model
    config = GenerationConfig(
        max_new_tokens=_NEW,
        # Made-up tokens may be followed by EOS, and the runs must have the same length.
        min_new_tokens=_NEW,
        do_sample=False,
        use_cache=use_cache,
        output_logits=True,
        return_dict_in_generate=True,
        pad_token_id=pad_id(bridge),
    )
    with own_config_aside(bridge):
        found = model.generate(tokens, attention_mask=mask, generation_config=config)
    return torch.stack(found.logits)


def last_block_splits(bridge: TransformerBridge) -> bool:
    """Returns whether `last_block_alone` keeps the logits of its tokens unchanged on this model."""

    def prove() -> bool:
        tokens = made_up(bridge, 2, min(_LENGTHS[0], bridge.cfg.n_ctx))
        wanted = torch.zeros_like(tokens, dtype=torch.bool)
        wanted[0, -1] = wanted[1, -1] = True
        runs = []
        try:
            for inside in (nullcontext(), last_block_alone(bridge, wanted)):
                with inside:
                    runs.append(bridge(tokens, attention_mask=torch.ones_like(tokens), use_cache=False)[wanted])
        except Exception:  # a block that is built of other parts, or in which they are called otherwise
            return False
        return difference(*runs) <= TOLERANCE[bridge.original_model.dtype]

    return proved(bridge, "the last block for some tokens", prove)
