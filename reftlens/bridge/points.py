"""Resolves names of activation points, and rejects points where an edit would be lost or have another meaning.

A name may be an alias (`blocks.0.hook_resid_post`) of a canonical name (`blocks.0.hook_out`). The
table below rejects names that mean something else on some architecture, and points where a write
would reach only one of several readers. Other properties are measured: whether a point fires,
carries a vector per token, and is read by later components.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping, Sequence

from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge import TransformerBridge

from reftlens.bridge.probe import Point, measure
from reftlens.bridge.resid_mid import is_resid_mid

_BERT = r"Bert"
_REFUSED: tuple[tuple[str, str, str], ...] = (
    (
        r"",
        r"\.attn\.qkv\.hook_(in|out)$",
        "it never fires, because the fused qkv projection is split; use attn.hook_q / k / v",
    ),
    (r"", r"^embed\.hook_in$", "it carries token ids; use hook_embed"),
    (
        r"",
        r"\.hook_(pattern|attn_scores)$",
        "its last axis is a position, not a direction; use attn.hook_z or hook_attn_out",
    ),
    (
        r"",
        r"\.hook_(scale|normalized)$",
        "an edit there makes TransformerLens compute the norm in a different way at all tokens; use hook_in or hook_out "
        "of the norm",
    ),
    (
        _BERT,
        r"\.hook_attn_out$",
        "on this architecture it is the residual after LayerNorm, not the attention output; use attn.o.hook_out for "
        "the output or ln1.hook_out for that residual",
    ),
    (
        _BERT,
        r"\.hook_resid_mid$",
        "on this architecture it is the sum before the second LayerNorm; use ln1.hook_out for the residual between "
        "attention and MLP",
    ),
)
"""(model class, name as given or canonical, reason): what cannot be measured, or has a better answer than that."""

_NEVER_FIRES = {
    "hook_rot_q": "use attn.hook_q",
    "hook_rot_k": "use attn.hook_k",
    "hook_pos_embed": "positions are rotary here; use attn.hook_q / k",
    "hook_hidden_states": "use attn.hook_in",
}
"""Ending of a point's name -> the point to use instead, for points that an architecture has but does not run."""

_PARALLEL = (
    "attention and MLP of this architecture read the same residual, side by side: there is none between them; use "
    "hook_resid_pre, hook_attn_out, hook_mlp_out or hook_resid_post"
)


def canonical_hook(bridge: TransformerBridge, hook_name: str) -> str:
    """Returns the bridge's own name of an activation point: `blocks.0.hook_resid_post` -> `blocks.0.hook_out`.

    `hook_resid_mid` keeps its name, because a write to the point it is an alias of is incomplete.
    The first query of a point measures it by running one small batch.

    Raises:
        ValueError: If there is no such point (the message gives the nearest names), or an edit
            there would be lost.
    """
    return canonical_hooks(bridge, [hook_name])[0]


def canonical_hooks(bridge: TransformerBridge, hook_names: Sequence[str]) -> list[str]:
    """Does the same for several names at once, because the bridge builds its table of points at every query."""
    points = bridge.hook_dict
    canonical = []
    for hook_name in hook_names:
        name = _resolve(bridge, points, hook_name)
        reason = _refusal(bridge, hook_name, name)
        if reason is not None:
            raise ValueError(f"cannot edit {hook_name!r}: {reason}")
        canonical.append(hook_name if is_resid_mid(hook_name) else name)
    return canonical


def activation_shape(bridge: TransformerBridge, hook_name: str) -> tuple[int, ...]:
    """Returns the axes of an activation after batch and position: `(d_model,)`, or `(n_heads, d_head)`.

    Raises:
        ValueError: If the point does not exist or cannot be edited.
    """
    canonical_hook(bridge, hook_name)
    return measure(bridge, _resolve(bridge, bridge.hook_dict, hook_name)).shape


def width_of(bridge: TransformerBridge, hook_name: str, head: int | None = None) -> int:
    """Returns the width of an edit of an activation: one head's `d_head`, or the product of a token's axes.

    Raises:
        ValueError: If the point does not exist, cannot be edited, or does not have the head.
    """
    shape = activation_shape(bridge, hook_name)
    if head is None:
        return math.prod(shape)
    if len(shape) != 2:
        raise ValueError(
            f"{hook_name} has no heads; its activations are [batch, pos, {shape[-1]}]: leave out head={head}"
        )
    if not 0 <= head < shape[0]:
        raise ValueError(f"head {head} does not exist: {hook_name} has heads 0 to {shape[0] - 1}")
    return shape[1]


def layer_of(hook_name: str) -> int | None:
    """Returns the block of a hook name; None for a hook outside the blocks."""
    match = re.match(r"blocks\.(\d+)\.", hook_name)
    return int(match[1]) if match else None


def removed_hooks(bridge: TransformerBridge, hooks: Sequence[tuple[str, object]]) -> list[str]:
    """Returns the points whose hook function has been removed (`reset_hooks` removes all hooks)."""
    points = bridge.hook_dict
    return [name for name, hook in hooks if not any(handle.user_hook is hook for handle in points[name].fwd_hooks)]


def _resolve(bridge: TransformerBridge, points: Mapping[str, HookPoint], hook_name: str) -> str:
    if hook_name in points:
        return points[hook_name].name or hook_name
    layer = layer_of(hook_name)
    # The block exists and has no middle, so its attention and MLP are parallel.
    if is_resid_mid(hook_name) and layer is not None and layer < bridge.cfg.n_layers:
        raise ValueError(f"cannot edit {hook_name!r}: {_PARALLEL}")
    near = difflib.get_close_matches(hook_name, points, n=3, cutoff=0.5)
    hint = f"; the nearest are {', '.join(near)}" if near else ""
    raise ValueError(
        f"this model has no hook {hook_name!r}{hint} (it has {bridge.cfg.n_layers} layers, blocks.0 to "
        f"blocks.{bridge.cfg.n_layers - 1})"
    )


def _refusal(bridge: TransformerBridge, hook_name: str, name: str) -> str | None:
    """Explains why an edit at a point would be lost or have another meaning; None if it can be edited."""
    model = type(bridge.original_model).__name__
    for of_model, pattern, why in _REFUSED:
        # Both names: an alias may be safe where its canonical point is not, and the reverse.
        if re.search(of_model, model, re.IGNORECASE) and any(re.search(pattern, n) for n in (hook_name, name)):
            return why
    # Before measuring: attaching a hook to a point that is switched off raises.
    switch = bridge._gated_hook_reason(name)
    if switch is not None:
        return f"it is switched off; call bridge.set_{switch}(True) first"
    return _measured_refusal(hook_name, name, measure(bridge, name))


def _measured_refusal(hook_name: str, name: str, point: Point) -> str | None:
    if point.fired == 0:
        ends = [end for end in _NEVER_FIRES if hook_name.endswith(end) or name.endswith(end)]
        return "it never fires on this architecture" + "".join(f"; {_NEVER_FIRES[end]}" for end in ends[:1])
    if point.fired > 1:
        return f"it fires {point.fired} times in one forward pass, so the edit would apply {point.fired} times"
    if "float" not in point.carries:
        return f"it carries {point.carries}, not an activation"
    if not point.per_token:
        return "its first two axes are not batch and position; use attn.hook_q / k / v for queries, keys and values"
    if not point.read:
        return "the model discards what a hook returns there; use attn.hook_z or hook_resid_pre"
    return None
