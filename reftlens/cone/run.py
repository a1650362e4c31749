"""The light cone of an edit: the part of a run that it can change, run alone and exactly.

The base is frozen and causal, so an edit at layer l and position p changes only activations at layers >= l and
positions >= p. Everything outside that cone is the same in every step: the residual stream that enters it, and the
keys and values of earlier positions that its attention reads. `hold` computes these once, without gradient;
`run_cone` runs the rest, in the same kernels as a whole run. It is not an approximation.

    edits = reft.edits(batch)
    held = hold(bridge, batch, edits)
    logits = run_cone(bridge, held, edits)      # the whole run's logits from column held.start on
    logits = run_cone(bridge, held, edits, logits_at=mask)      # [n, d_vocab]: at these tokens alone

A bidirectional model has no cone in positions: only its layers are saved, and the log says so.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, final
from weakref import WeakSet

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformers import DynamicCache

from reftlens.bridge import blocks_replaced, canonical_hooks, hooked, is_causal, layer_of, unembedded_alone, with_cache
from reftlens.data import Batch
from reftlens.edit.hooks import Edit, attach

logger = logging.getLogger(__name__)
_TOLD: WeakSet[TransformerBridge] = WeakSet()
"""Bidirectional models that the log has named."""


@final
@dataclass(frozen=True, eq=False)
class Held:
    """What the edits of a batch cannot change, from one run of the base."""

    batch: Batch
    start: int
    """First column inside the cone."""
    boundary: int
    """Last block that is not run; -1 if all of them are."""
    resid: Float[Tensor, "batch cone d_model"] | None
    """What that block puts out, inside the cone's columns; None if all blocks are run."""
    past: tuple[tuple[Tensor, Tensor], ...]
    """Keys and values `[batch, kv_head, start, d_head]` of the columns before the cone, for each block that is run."""
    as_tuple: bool
    """Whether this architecture's blocks put out a tuple."""

    def n_bytes(self) -> int:
        """Memory of the held tensors."""
        tensors = [t for pair in self.past for t in pair] + ([self.resid] if self.resid is not None else [])
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def boundary_of(bridge: TransformerBridge, hook_names: Sequence[str]) -> int:
    """The last block that edits at these hooks leave as it is; -1 if one of them can change the first block."""
    boundaries = (_boundary(bridge, name) for name in canonical_hooks(bridge, hook_names))
    return min(boundaries, default=bridge.cfg.n_layers - 1)


def _boundary(bridge: TransformerBridge, name: str) -> int:
    layer = layer_of(name)
    if layer is None:
        return bridge.cfg.n_layers - 1 if name.startswith(("ln_final", "unembed")) else -1
    # An edit of a block's output needs that output held, and nothing inside the block.
    return layer if name == f"blocks.{layer}.hook_out" else layer - 1


@torch.no_grad()
def hold(
    bridge: TransformerBridge,
    batch: Batch,
    edits: Sequence[Edit],
    *,
    wanted: Bool[Tensor, "batch pos"] | None = None,
) -> Held:
    """Runs the base once and keeps what lies outside the light cone of these edits.

    Args:
        bridge: the base, without edits attached. Where some of its own parameters are trained, the cone is the whole run.
        batch: the inputs.
        edits: from `reft.edits(batch)`; none with `wanted` alone, for what is trained behind the model (a head).
        wanted: True where logits are wanted even before the first edited token; the cone begins no later.

    Raises:
        ValueError: if the edits touch no token, or there are neither edits nor wanted logits.
    """
    if any(parameter.requires_grad for parameter in bridge.parameters()):
        return Held(batch, 0, -1, None, (), as_tuple=False)
    if (edits or wanted is None) and not any(bool(edit.changed.any()) for edit in edits):
        raise ValueError("these edits touch no token, so they have no light cone")
    masks = [edit.read for edit in edits] + ([wanted] if wanted is not None else [])
    columns = torch.stack([mask.any(dim=0).cpu() for mask in masks]).any(dim=0)
    boundary = boundary_of(bridge, [edit.hook_name for edit in edits])
    start = int(columns.int().argmax())
    if not is_causal(bridge):
        start = 0
        if bridge not in _TOLD:
            _TOLD.add(bridge)
            logger.info("%s is bidirectional: its cone saves layers alone", type(bridge.original_model).__name__)
    if start == 0 and boundary < 0:
        return Held(batch, start, boundary, None, (), as_tuple=False)
    seen: dict[str, Any] = {"tuple": False}
    handle = bridge.blocks[0].register_forward_hook(lambda _m, _a, output: seen.update(tuple=isinstance(output, tuple)))
    cache = DynamicCache() if start else None
    names = [f"blocks.{boundary}.hook_out"] if boundary >= 0 else []
    # Later blocks are run for their keys and values alone.
    no_logits = torch.zeros_like(batch.attention_mask, dtype=torch.bool)
    until = {"use_cache": False, "stop_at_layer": boundary + 1} if cache is None else with_cache(bridge, cache)

    def keep(resid: Tensor, hook: Any) -> None:
        seen["resid"] = resid[:, start:].clone()

    try:
        with hooked(bridge, [(name, keep) for name in names]), unembedded_alone(bridge, no_logits):
            bridge(batch.tokens, attention_mask=batch.attention_mask, **until)
    finally:
        handle.remove()
    layers = [] if cache is None else cache.layers[boundary + 1 :]
    past = tuple((layer.keys[..., :start, :].clone(), layer.values[..., :start, :].clone()) for layer in layers)
    return Held(batch, start, boundary, seen.get("resid"), past, seen["tuple"])


def run_cone(
    bridge: TransformerBridge,
    held: Held,
    edits: Sequence[Edit],
    *,
    logits_at: Bool[Tensor, "batch pos"] | None = None,
) -> Float[Tensor, "batch cone d_vocab"] | Float[Tensor, "n d_vocab"]:
    """Runs the cone under edits that lie inside it; gradients flow to them.

    Args:
        bridge: the base, without edits attached.
        held: from `hold`, with these edits or with others that reach at least as far back.
        edits: from `reft.edits(held.batch)`.
        logits_at: tokens whose logits are wanted, none before column `held.start`. The unembedding, a third of the
            work in a model as small as GPT-2, is computed for these alone.

    Returns:
        The logits from column `held.start` on, equal to those of a whole run; with `logits_at` those tokens' alone,
        `[n, d_vocab]`, example after example.

    Raises:
        ValueError: if an edit acts at an earlier layer or position than what is held, which would be lost, or logits
            are wanted from before the cone.
    """
    batch, start = held.batch, held.start
    if logits_at is not None and bool(logits_at[:, :start].any()):
        raise ValueError(f"logits are wanted before column {start}, where the held cone begins: pass wanted= to hold")
    early = any(bool(edit.read[:, :start].any()) for edit in edits)
    if early or (edits and boundary_of(bridge, [edit.hook_name for edit in edits]) < held.boundary):
        names = ", ".join(dict.fromkeys(edit.hook_name for edit in edits))
        raise ValueError(
            f"an edit at {names} reaches outside the held cone, which begins after block {held.boundary} at column "
            f"{start}: call hold with these edits"
        )
    # From the first column on, the bridge finds the places of tokens itself, as in a whole run.
    late: dict[str, Any] = {"use_cache": False}
    if start:
        late = {"position_ids": _position_ids(batch)[:, start:], **with_cache(bridge, _fresh_cache(held))}
    wanted = None if logits_at is None else logits_at[:, start:]
    # An edit of the unembedding itself wants all tokens there.
    picked = None if any(edit.hook_name.startswith("unembed") for edit in edits) else wanted
    with _blocks_skipped(bridge, held), attach(bridge, edits), unembedded_alone(bridge, picked):
        logits = bridge(batch.tokens[:, start:], attention_mask=batch.attention_mask, **late)
    if wanted is None:
        return logits
    return logits[0] if picked is not None else logits[wanted]


def _position_ids(batch: Batch) -> Int[Tensor, "batch pos"]:
    """Each token's place among the real tokens of its row, as the bridge itself derives it."""
    return (batch.attention_mask.long().cumsum(dim=1) - 1).clamp(min=0)


def _fresh_cache(held: Held) -> DynamicCache:
    """A cache over the held keys and values; it grows when used, so each run gets its own.

    Blocks that are not run get a placeholder: the first layer of a cache tells its length.
    """
    keys, values = (
        held.past[0] if held.past else (held.batch.tokens.new_zeros(1, 1, held.start, 1, dtype=torch.float),) * 2
    )
    # Made without a config, so that layers with a sliding window keep every position; the mask does the sliding.
    cache = DynamicCache()
    skipped = [(keys[:, :1, :, :1], values[:, :1, :, :1])] * (held.boundary + 1)
    for layer, (keys, values) in enumerate((*skipped, *held.past)):
        # An update would copy them; what grows the cache later copies them anyway, and writes into neither.
        cache.update(keys[..., :0, :], values[..., :0, :], layer)
        cache.layers[layer].keys, cache.layers[layer].values = keys, values
    return cache


def _blocks_skipped(bridge: TransformerBridge, held: Held) -> AbstractContextManager[None]:
    """Blocks up to the boundary pass their input through; the boundary itself puts out the held residual."""

    def passing(hidden_states: Tensor, *_args: Any, **_kwargs: Any) -> Any:
        return (hidden_states,) if held.as_tuple else hidden_states

    def entering(*_args: Any, **_kwargs: Any) -> Any:
        return (held.resid,) if held.as_tuple else held.resid

    layers = range(held.boundary + 1)
    return blocks_replaced(bridge, {layer: entering if layer == held.boundary else passing for layer in layers})
