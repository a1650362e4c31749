"""Measures the effect of a write at an activation point, by one small forward and backward pass of the model.

At every requested point, a hook returns h + e with e = 0. If the hook runs, the point fires. The
shape of h gives the width of an edit. If the graph of the logits contains e, the model reads the
value that a hook returns there. (Some points only show an activation, and the model ignores the
values that their hooks return.)
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from reftlens.bridge.threads import hooked, one_thread

_BATCH = 2
_SWITCHES = ("use_attn_result", "use_split_qkv_input", "use_hook_mlp_in", "use_attn_in")
_KNOWN: WeakKeyDictionary[TransformerBridge, dict[tuple[object, ...], Point]] = WeakKeyDictionary()
"""Measured points of each bridge, by the settings that change them and the point's canonical name."""


@dataclass(frozen=True)
class Point:
    """Measured properties of an activation point of one model."""

    fired: int
    """Number of times a forward pass runs it."""
    carries: str
    """Its dtype, or its type if it is not a tensor."""
    per_token: bool
    """Whether its first two axes are batch and position."""
    shape: tuple[int, ...]
    """Its axes after these two."""
    read: bool
    """Whether the logits depend on the value that a hook returns there."""


def measure(bridge: TransformerBridge, name: str) -> Point:
    """Measures an activation point and those of the same name in other blocks. The results are cached.

    Args:
        bridge: the model. Its other hooks do not run; they are attached again afterwards.
        name: canonical name of a point that is not switched off.
    """
    known = _KNOWN.setdefault(bridge, {})
    settings = (bool(bridge.compatibility_mode), *(bool(getattr(bridge.cfg, switch, False)) for switch in _SWITCHES))
    if (*settings, name) not in known:
        kind = re.sub(r"^blocks\.\d+\.", "", name)
        # All blocks at once: one run costs the same for one point as for one in every block.
        alike = {p.name for p in bridge.hook_dict.values() if re.sub(r"^blocks\.\d+\.", "", p.name) == kind}
        for other, point in _run(bridge, sorted(alike)).items():
            known[(*settings, other)] = point
    return known[(*settings, name)]


def _run(bridge: TransformerBridge, names: Sequence[str]) -> dict[str, Point]:
    # A length that differs from every number of heads, to tell [batch, head, pos, ...] from [batch,
    # pos, head, ...].
    heads = {bridge.cfg.n_heads, getattr(bridge.cfg, "n_key_value_heads", None)}
    length = next(n for n in (5, 6, 7) if n not in heads)
    tokens = torch.arange(_BATCH * length, device=bridge.cfg.device).reshape(_BATCH, length) % bridge.cfg.d_vocab
    seen: dict[str, list[Any]] = {name: [] for name in names}
    zeros: dict[str, Tensor] = {}

    def hook_fn(activation: Any, hook: Any) -> Tensor | None:
        seen[hook.name].append(activation)
        if not isinstance(activation, Tensor) or not activation.is_floating_point():
            return None
        zeros[hook.name] = torch.zeros_like(activation, requires_grad=True)
        return activation + zeros[hook.name]

    # A caller may be in no_grad or inference mode, where no graph would show what is read.
    with one_thread(bridge), torch.inference_mode(False), torch.enable_grad(), alone(bridge):
        with hooked(bridge, [(name, hook_fn) for name in names]):
            logits = bridge(tokens, attention_mask=torch.ones_like(tokens), use_cache=False)
        gradients: Sequence[Tensor | None] = ()
        if zeros and logits.requires_grad:
            # allow_unused: None marks a zero that the logits do not depend on.
            gradients = torch.autograd.grad(logits.float().sum(), list(zeros.values()), allow_unused=True)
    read = {name for name, gradient in zip(zeros, gradients, strict=False) if gradient is not None}
    return {name: _describe(seen[name], (_BATCH, length), name in read) for name in names}


def _describe(activations: list[Any], batch_pos: tuple[int, int], read: bool) -> Point:
    last = activations[-1] if activations else None
    shape = tuple(last.shape) if isinstance(last, Tensor) else ()
    return Point(
        fired=len(activations),
        carries=str(last.dtype).removeprefix("torch.") if isinstance(last, Tensor) else type(last).__name__,
        per_token=shape[:2] == batch_pos and len(shape) > 2,
        shape=shape[2:],
        read=read,
    )


@contextmanager
def alone(bridge: TransformerBridge) -> Iterator[None]:
    """Removes the hooks from the model's points, and restores them afterwards.

    Permanent hooks stay: TransformerLens itself uses one to pass an activation from one point to
    another.
    """
    # hook_dict names a point once for each of its aliases.
    points = {id(point): point for point in bridge.hook_dict.values()}.values()
    kept = [(point, point._forward_hooks, point._backward_hooks) for point in points]
    for point in points:
        others = {handle.hook.id for handle in (*point.fwd_hooks, *point.bwd_hooks) if not handle.is_permanent}
        # New dicts instead of removed hooks: the old ones, with their order and handles, come back.
        point._forward_hooks = _without(point._forward_hooks, others)
        point._backward_hooks = _without(point._backward_hooks, others)
    try:
        yield
    finally:
        for point, forward, backward in kept:
            point._forward_hooks, point._backward_hooks = forward, backward


def _without(hooks: OrderedDict[int, Any], ids: set[int]) -> OrderedDict[int, Any]:
    return OrderedDict((key, hook) for key, hook in hooks.items() if key not in ids)
