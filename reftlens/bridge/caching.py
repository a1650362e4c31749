"""Passes the key-value cache under the name that each library expects.

transformers 5.24 renamed the argument `past_key_values` to `cache`. The attention of
TransformerLens 4.3 reads the old name. With a newer transformers it silently drops the cache, and
cached decoding ignores the prompt. `mend_attention` passes the cache under the name that
TransformerLens reads. `load_bridge` calls it, and so does every function that runs with a cache.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any
from weakref import WeakSet

from torch import nn
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.generalized_components.attention import AttentionBridge
from transformers import Cache

_OLD, _NEW = "past_key_values", "cache"
_MENDED: WeakSet[nn.Module] = WeakSet()
"""Bridges, and their attention modules, that already get the cache under the old name."""


def with_cache(bridge: TransformerBridge, cache: Cache) -> dict[str, Any]:
    """Returns the arguments of a forward pass that reads and extends this cache, under the name the model's class uses.

    Args:
        bridge: the model.
        cache: keys and values of earlier positions.
    """
    mend_attention(bridge)
    return {cache_name(type(bridge.original_model)): cache, "use_cache": True}


def cache_in(arguments: Mapping[str, Any]) -> Any:
    """The cache among a forward pass's keyword arguments; None if there is none."""
    found = arguments.get(_NEW)
    return arguments.get(_OLD) if found is None else found


def cache_name(kind: type[nn.Module]) -> str:
    """Returns the name of the cache argument in this model class's forward pass.

    Args:
        kind: a Hugging Face model class.
    """
    return _NEW if _NEW in inspect.signature(kind.forward).parameters else _OLD


def mend_attention(bridge: TransformerBridge) -> None:
    """Lets TransformerLens's own attention read the cache that a newer transformers passes.

    Attention that delegates to the Hugging Face module does not need it. Calling it twice has no
    further effect.
    """
    # Called in every pass, and walking all modules would cost more than a small model's block.
    if bridge in _MENDED:
        return
    _MENDED.add(bridge)
    for module in bridge.modules():
        if not isinstance(module, AttentionBridge) or module in _MENDED:
            continue
        _MENDED.add(module)
        # AttentionBridge.forward itself delegates; only its subclasses compute attention.
        if type(module).forward is not AttentionBridge.forward:
            module.register_forward_pre_hook(_under_the_old_name, with_kwargs=True)


def _under_the_old_name(
    _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    if kwargs.get(_NEW) is None or kwargs.get(_OLD) is not None:
        return None
    return args, {**{name: value for name, value in kwargs.items() if name != _NEW}, _OLD: kwargs[_NEW]}
