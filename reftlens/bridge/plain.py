"""Runs blocks as transformers computes them, where nothing looks inside.

TransformerLens puts its points into the modules of a model. On a narrow model they take longer than
the computation, also if no hook is attached to any of them. `plain_blocks` runs blocks on a twin
without these points: the same classes on the same parameters. A block keeps its points if a hook is
attached inside it, or a part of it is replaced. So do the blocks of a model whose attention works
on copies of its weights (the split q, k and v of GPT-2 and NeoX): a later change of one of the two
would not reach the other. `plain_blocks_hold` compares both on each kind of model first.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.nn.modules import module as torch_module
from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent
from transformers import DynamicCache

from reftlens.bridge.attached import is_foreign
from reftlens.bridge.caching import with_cache
from reftlens.bridge.forwards import blocks_replaced, is_causal
from reftlens.bridge.proving import TOLERANCE, difference, made_up, proved

_HOLDS: WeakKeyDictionary[TransformerBridge, tuple[bool, bool]] = WeakKeyDictionary()
"""Whether a bridge is in compatibility mode, and whether its plain blocks have then been proved."""
_TWINS: WeakKeyDictionary[nn.Module, tuple[tuple[int, ...], nn.Module | None]] = WeakKeyDictionary()
"""Block -> its modules when the twin was made, and the twin; None if there is none."""


@contextmanager
def plain_blocks(bridge: TransformerBridge) -> Iterator[None]:
    """Runs the blocks that no hook looks into without the points of TransformerLens. Enter it after attaching hooks.

    It has no effect before `plain_blocks_hold` has been asked.

    Args:
        bridge: the model.
    """
    everywhere = torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks
    if everywhere or _HOLDS.get(bridge) != (bool(bridge.compatibility_mode), True):
        yield
        return
    found = {layer: _plain_forward(block) for layer, block in enumerate(bridge.blocks)}
    with blocks_replaced(bridge, {layer: forward for layer, forward in found.items() if forward is not None}):
        yield


def plain_blocks_hold(bridge: TransformerBridge) -> bool:
    """Returns whether plain blocks give the model's logits. Verified once for all models like it.

    Args:
        bridge: the model, whose blocks are not replaced at the moment.
    """
    mode = bool(bridge.compatibility_mode)
    if bridge not in _HOLDS or _HOLDS[bridge][0] != mode:
        _HOLDS[bridge] = mode, proved(bridge, "plain blocks", lambda: _prove(bridge))
    return _HOLDS[bridge][1]


def _prove(bridge: TransformerBridge) -> bool:
    """Compares a run, and where the model goes from left to right, its second half on cached keys and values."""
    tokens = made_up(bridge, 2, min(bridge.cfg.n_ctx, 12))
    half = tokens.shape[1] // 2
    try:
        forwards = {layer: _plain_forward(block) for layer, block in enumerate(bridge.blocks)}
        plain = {layer: forward for layer, forward in forwards.items() if forward is not None}
        expected = bridge(tokens, use_cache=False)
        with blocks_replaced(bridge, plain):
            found = [bridge(tokens, use_cache=False)]
        wanted = [expected]
        if is_causal(bridge) and half:
            cache = DynamicCache()
            bridge(tokens[:, :half], **with_cache(bridge, cache))
            ones, places = torch.ones_like(tokens), torch.arange(tokens.shape[1], device=tokens.device)[None]
            late = {"attention_mask": ones, "position_ids": places[:, half:].expand(len(tokens), -1)}
            with blocks_replaced(bridge, plain):
                found.append(bridge(tokens[:, half:], **late, **with_cache(bridge, cache)))
            wanted.append(expected[:, half:])
    except Exception:  # whatever an architecture raises whose blocks are more than their modules
        return False
    tolerance = TOLERANCE[bridge.original_model.dtype]
    return all(difference(ours, theirs) <= tolerance for ours, theirs in zip(found, wanted, strict=True))


def _plain_forward(block: Any) -> Callable[..., Any] | None:
    """Returns the forward of a block's twin; None if something looks inside the block, or it has no twin."""
    ends = (getattr(block, "hook_in", None), getattr(block, "hook_out", None))
    modules = [module for module in block.modules() if module not in ends]
    if any(_watched(module) for module in modules if module is not block):
        return None
    key = tuple(map(id, modules))
    if block not in _TWINS or _TWINS[block][0] != key:
        _TWINS[block] = key, _twin(block)
    twin = _TWINS[block][1]
    return None if twin is None else twin.forward


def _watched(module: nn.Module) -> bool:
    """Returns whether other code changes or reads what a module computes."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    if "forward" in vars(module) or "parametrizations" in module._modules:
        return True
    if isinstance(module, HookPoint):
        return any(hooks)
    return any(is_foreign(hook) for attached in hooks if attached for hook in attached.values())


def _twin(block: Any) -> nn.Module | None:
    """Copies the modules of a block without the components of TransformerLens around them; parameters are shared."""
    twin = _without_points(block.original_component)
    if twin is None or {id(p) for p in block.parameters()} - {id(p) for p in twin.parameters()}:
        return None
    return twin


def _without_points(module: nn.Module | None) -> nn.Module | None:
    while isinstance(module, GeneralizedComponent):
        module = module.original_component
    if module is None:
        return None
    twin = copy.copy(module)
    vars(twin)["_modules"] = {name: _without_points(part) for name, part in module._modules.items()}
    return twin
