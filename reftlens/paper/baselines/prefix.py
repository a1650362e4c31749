"""Prefix tuning: trained keys and values before the prompt, to which every token attends in every layer.

(Li and Liang 2021, arXiv:2101.00190.) There are three differences. The keys and values are trained
directly, not through an MLP (which is off by default in `peft`). They are initialised to those of
random tokens in the base, which the paper found better than random numbers. The prompt's tokens
keep their position ids, as if there were no prefix.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge
from transformers import DynamicCache
from transformers.utils import ModelOutput

from reftlens.bridge import cache_in, cache_name, in_this_thread, one_thread, require_causal, with_cache
from reftlens.numbers import require_whole_number
from reftlens.paper.baselines.base import Method
from reftlens.training.objectives import Objective
from reftlens.training.objectives.base import Example

_NAME = "trained_prefix"


@final
@dataclass(frozen=True, kw_only=True)
class PrefixTuning(Method):
    """A prefix of trained keys and values."""

    length: int = 4
    """Number of prefix tokens."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_whole_number("length", self.length, least=1)

    @contextmanager
    def applied(self, bridge: TransformerBridge, objective: Objective, example: Example) -> Iterator[None]:
        require_causal(bridge, "prefix tuning")
        model = bridge.original_model
        if any(layer.is_sliding for layer in DynamicCache(config=model.config).layers):
            raise ValueError(
                "prefix tuning needs every layer to attend to the prefix, but this model has a sliding window"
            )
        with one_thread(bridge):
            prefix = self._start(bridge)
            model.add_module(_NAME, prefix)
            before = model.register_forward_pre_hook(in_this_thread(_prepend), with_kwargs=True)
            after = model.register_forward_hook(_forget, with_kwargs=True)
            try:
                yield
            finally:
                before.remove()
                after.remove()
                delattr(model, _NAME)

    @torch.no_grad()
    def _start(self, bridge: TransformerBridge) -> nn.ParameterList:
        """Returns keys and values `[1, kv_head, length, d_head]` of random tokens, layer by layer."""
        cache = DynamicCache()
        bridge(torch.randint(bridge.cfg.d_vocab, (1, self.length)).to(bridge.cfg.device), **with_cache(bridge, cache))
        # From a run of the base, so that they have its rotary positions and its shape of heads.
        return nn.ParameterList(held.clone() for layer in cache.layers for held in (layer.keys, layer.values))


def _prepend(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Puts the prefix into the cache before each forward pass, except in later steps of decoding."""
    prefix = list(model.get_submodule(_NAME).parameters())
    tokens: Tensor = args[0] if args else kwargs["input_ids"]
    batch, pos = tokens.shape
    mask, places = kwargs.get("attention_mask"), kwargs.get("position_ids")
    cache = DynamicCache() if cache_in(kwargs) is None else cache_in(kwargs)
    if cache.get_seq_length() == 0:
        for layer, (keys, values) in enumerate(zip(prefix[::2], prefix[1::2], strict=True)):
            cache.update(keys.expand(batch, -1, -1, -1), values.expand(batch, -1, -1, -1), layer)
    length = prefix[0].shape[2]
    # The cache counts the prefix; a caller's mask and position ids do not.
    mask = tokens.new_ones(batch, cache.get_seq_length() - length + pos) if mask is None else mask
    # Padding on the left would get position -1.
    places = (mask.long().cumsum(dim=1) - 1).clamp(min=0)[:, -pos:] if places is None else places
    seen = torch.cat([mask.new_ones(batch, length), mask], dim=1)
    return args, {**kwargs, cache_name(type(model)): cache, "attention_mask": seen, "position_ids": places}


def _forget(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    """Drops a cache that only holds the prefix after the forward pass, or decoding without a cache would use it."""
    if kwargs.get("use_cache") is False and isinstance(output, ModelOutput):
        output[cache_name(type(model))] = None
