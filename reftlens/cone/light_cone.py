"""Computes the parts of a base run that a cone needs, and runs the cone itself.

`cut` keeps the residual stream that enters a cone, and the keys and values before it. `run_cone`
computes the rest under edits, with the same kernels as a whole run. `join` aligns the cones of
several examples. These functions do not check whether a model's runs can be cut in this way;
`hold.hold` does, with `proof`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad
from transformer_lens.model_bridge import TransformerBridge
from transformers import DynamicCache

from reftlens.bridge import (
    blocks_replaced,
    canonical_hooks,
    hooked,
    layer_of,
    plain_blocks,
    unembedded_alone,
    with_cache,
)
from reftlens.data import IGNORE, Batch
from reftlens.edit.hooks import Edit, attach


@final
@dataclass(frozen=True, eq=False)
class Held:
    """Activations of one base run that the edits of a batch cannot change."""

    batch: Batch
    start: int
    """First column inside the cone."""
    boundary: int
    """Last block that is skipped; -1 if all blocks run."""
    resid: Float[Tensor, "batch cone d_model"] | None
    """Output of that block in the cone's columns; None if all blocks run."""
    past: tuple[tuple[Tensor, Tensor], ...]
    """Keys and values `[batch, kv_head, start, d_head]` of the columns before the cone, for each block that runs."""
    as_tuple: bool
    """Whether this architecture's blocks return a tuple."""

    def n_bytes(self) -> int:
        """Memory of the held tensors in bytes."""
        tensors = [t for pair in self.past for t in pair] + ([self.resid] if self.resid is not None else [])
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def boundary_of(bridge: TransformerBridge, hook_names: Sequence[str]) -> int:
    """Returns the last block that edits at these hooks cannot change; -1 if one of them can change the first block."""
    boundaries = (_boundary(bridge, name) for name in canonical_hooks(bridge, hook_names))
    return min(boundaries, default=bridge.cfg.n_layers - 1)


def last_block_of(hook_names: Sequence[str]) -> int | None:
    """Returns the last block that runs before the activations at all these hooks are known; None if one is after the blocks."""
    layers = [layer_of(name) for name in hook_names if not name.startswith(("hook_", "embed"))]
    known = [layer for layer in layers if layer is not None]
    return max(known, default=None) if len(known) == len(layers) else None


def _boundary(bridge: TransformerBridge, name: str) -> int:
    layer = layer_of(name)
    if layer is None:
        return bridge.cfg.n_layers - 1 if name.startswith(("ln_final", "unembed")) else -1
    # An edit of a block's output needs that output, and nothing inside the block.
    return layer if name == f"blocks.{layer}.hook_out" else layer - 1


@torch.no_grad()
def cut(bridge: TransformerBridge, batch: Batch, *, boundary: int, start: int) -> Held:
    """Runs the base once and keeps the activations that a cone needs.

    Args:
        bridge: the base, without edits attached.
        batch: the inputs.
        boundary: the last block that the cone skips; -1 if it runs all of them.
        start: the first column of the cone.
    """
    if start == 0 and boundary < 0:
        return whole(batch)
    seen: dict[str, Any] = {"tuple": False}
    # Only a pass shows whether this architecture's blocks return tuples; replaced blocks must too.
    handle = bridge.blocks[0].register_forward_hook(lambda _m, _a, output: seen.update(tuple=isinstance(output, tuple)))
    cache = DynamicCache() if start else None
    names = [f"blocks.{boundary}.hook_out"] if boundary >= 0 else []
    # Later blocks run only for their keys and values.
    no_logits = torch.zeros_like(batch.attention_mask, dtype=torch.bool)
    until = {"use_cache": False, "stop_at_layer": boundary + 1} if cache is None else with_cache(bridge, cache)

    def keep(resid: Tensor, hook: Any) -> None:
        # A slice would keep the whole activation in memory.
        seen["resid"] = resid[:, start:].clone()

    try:
        with (
            hooked(bridge, [(name, keep) for name in names]),
            plain_blocks(bridge),
            unembedded_alone(bridge, no_logits),
        ):
            bridge(batch.tokens, attention_mask=batch.attention_mask, **until)
    finally:
        handle.remove()
    layers = [] if cache is None else cache.layers[boundary + 1 :]
    past = tuple((layer.keys[..., :start, :].clone(), layer.values[..., :start, :].clone()) for layer in layers)
    return Held(batch, start, boundary, seen.get("resid"), past, seen["tuple"])


def whole(batch: Batch) -> Held:
    """Returns the cone that is the whole run, with no held activations."""
    return Held(batch, 0, -1, None, (), as_tuple=False)


def run_cone(
    bridge: TransformerBridge,
    held: Held,
    edits: Sequence[Edit],
    *,
    logits_at: Bool[Tensor, "batch pos"] | None = None,
) -> Float[Tensor, "batch cone d_vocab"] | Float[Tensor, "n d_vocab"]:
    """Runs the cone under edits that lie inside it. Gradients flow to the edits.

    Args:
        bridge: the base, without edits attached.
        held: from `hold`, with these edits or with others that begin no later.
        edits: from `reft.edits(held.batch)`.
        logits_at: tokens whose logits are returned, none before column `held.start`. The
            unembedding, a third of the work in a model as small as GPT-2, is computed only for
            these.

    Returns:
        The logits from column `held.start` on, equal to those of a whole run. With `logits_at`, the
        logits of those tokens, `[n, d_vocab]`, in row order.

    Raises:
        ValueError: If an edit acts before the cone, at an earlier layer or position, or `logits_at`
            selects a token before the cone.
    """
    batch, start = held.batch, held.start
    if logits_at is not None and bool(logits_at[:, :start].any()):
        raise ValueError(
            f"logits_at selects tokens before column {start}, where the held cone begins: pass wanted= to hold"
        )
    late = _late(bridge, held, edits)
    wanted = None if logits_at is None else logits_at[:, start:]
    # An edit at the unembedding needs all tokens there.
    picked = None if any(edit.hook_name.startswith("unembed") for edit in edits) else wanted
    with _blocks_skipped(bridge, held), attach(bridge, edits), plain_blocks(bridge), unembedded_alone(bridge, picked):
        # The embeddings are computed too, and replaced by what the boundary block returns.
        logits = bridge(batch.tokens[:, start:], attention_mask=batch.attention_mask, **late)
    if wanted is None:
        return logits
    return logits[0] if picked is not None else logits[wanted]


def run_blocks(bridge: TransformerBridge, held: Held, edits: Sequence[Edit], *, until: int) -> None:
    """Runs the cone up to a block, for what hooks and watched edits see there.

    Args:
        bridge: the base, without edits attached.
        held: as for `run_cone`.
        edits: as for `run_cone`.
        until: the last block that runs.

    Raises:
        ValueError: As `run_cone`.
    """
    late = _late(bridge, held, edits)
    no_logits = torch.zeros_like(held.batch.prompt_mask[:, held.start :])
    with (
        _blocks_skipped(bridge, held),
        attach(bridge, edits),
        plain_blocks(bridge),
        unembedded_alone(bridge, no_logits),
    ):
        bridge(
            held.batch.tokens[:, held.start :],
            attention_mask=held.batch.attention_mask,
            stop_at_layer=until + 1,
            **late,
        )


def _late(bridge: TransformerBridge, held: Held, edits: Sequence[Edit]) -> dict[str, Any]:
    """Returns the arguments of a forward pass that begins inside a sequence, after checking that the edits lie in the cone."""
    batch, start = held.batch, held.start
    early = any(bool(edit.read[:, :start].any()) for edit in edits)
    if early or (edits and boundary_of(bridge, [edit.hook_name for edit in edits]) < held.boundary):
        names = ", ".join(dict.fromkeys(edit.hook_name for edit in edits))
        raise ValueError(
            f"an edit at {names} reaches outside the held cone, which begins after block {held.boundary} at column "
            f"{start}: call hold with these edits"
        )
    # If the cone starts at the first column, the bridge derives position ids itself, as in a whole
    # run.
    late: dict[str, Any] = {"use_cache": False}
    if start:
        late = {"position_ids": _position_ids(batch)[:, start:], **with_cache(bridge, _fresh_cache(held))}
    return late


def _position_ids(batch: Batch) -> Int[Tensor, "batch pos"]:
    """Returns each token's index among the real tokens of its row, computed as the bridge does."""
    return (batch.attention_mask.long().cumsum(dim=1) - 1).clamp(min=0)


def _fresh_cache(held: Held) -> DynamicCache:
    """Makes a cache from the held keys and values. A run extends its cache, so each run gets its own.

    Skipped blocks get a placeholder, because the first layer of a cache determines its length.
    """
    keys, values = (
        held.past[0] if held.past else (held.batch.tokens.new_zeros(1, 1, held.start, 1, dtype=torch.float),) * 2
    )
    # Without a config, sliding-window layers keep every position. The attention mask applies the
    # window.
    cache = DynamicCache()
    skipped = [(keys[:, :1, :, :1], values[:, :1, :, :1])] * (held.boundary + 1)
    for layer, (keys, values) in enumerate((*skipped, *held.past)):
        # `update` would copy them. Extending the cache later copies them anyway, and never writes
        # into them.
        cache.update(keys[..., :0, :], values[..., :0, :], layer)
        cache.layers[layer].keys, cache.layers[layer].values = keys, values
    return cache


def _blocks_skipped(bridge: TransformerBridge, held: Held) -> AbstractContextManager[None]:
    """Makes blocks before the boundary return their input, and the boundary block return the held residual stream."""

    def passing(hidden_states: Tensor, *_args: Any, **_kwargs: Any) -> Any:
        return (hidden_states,) if held.as_tuple else hidden_states

    def entering(*_args: Any, **_kwargs: Any) -> Any:
        return (held.resid,) if held.as_tuple else held.resid

    layers = range(held.boundary + 1)
    return blocks_replaced(bridge, {layer: entering if layer == held.boundary else passing for layer in layers})


def join(helds: Sequence[Held]) -> Held:
    """Joins several held batches of one model and layout into one.

    Raises:
        ValueError: If they were held at different blocks.
    """
    boundaries = {held.boundary for held in helds}
    if len(boundaries) != 1:
        raise ValueError(
            f"cones can only be joined if they begin after the same block, got blocks {sorted(boundaries)}"
        )
    # Earlier beginnings are padded on the left; the mask hides padding among keys.
    start = max(held.start for held in helds)
    width = max(held.batch.tokens.shape[1] - held.start for held in helds)

    def columns(held: Held, tensor: Tensor, value: int = 0) -> Tensor:
        """Pads the columns of a tensor `[batch, pos, ...]` to those of the joined batch."""
        left, right = start - held.start, width - (held.batch.tokens.shape[1] - held.start)
        return _padded(tensor, (*(0, 0) * (tensor.ndim - 2), left, right), value)

    def joined(name: str, value: int = 0) -> Tensor:
        return torch.cat([columns(held, getattr(held.batch, name), value) for held in helds])

    texts = [held.batch.texts for held in helds]
    known = all(text is not None for text in texts)
    batch = Batch(
        tokens=joined("tokens"),
        attention_mask=joined("attention_mask"),
        prompt_mask=joined("prompt_mask"),
        labels=joined("labels", IGNORE),
        texts=tuple(text for row in texts if row is not None for text in row) if known else None,
        offsets=joined("offsets") if known else None,
    )
    resid = None
    if helds[0].resid is not None:
        # Cones are aligned at their first column, so only their ends are padded.
        rows = [held.resid for held in helds if held.resid is not None]
        resid = torch.cat([_padded(row, (0, 0, 0, width - row.shape[1])) for row in rows])
    return Held(batch, start, helds[0].boundary, resid, _join_past(helds, start), helds[0].as_tuple)


def _join_past(helds: Sequence[Held], start: int) -> tuple[tuple[Tensor, Tensor], ...]:
    """Joins keys and values, padded on the left. An example whose cone begins at its first column has none."""
    if start == 0:
        return ()
    example: tuple[tuple[Tensor, Tensor], ...] = next((held.past for held in helds if held.past), ())
    pasts = []
    for layer, (keys, values) in enumerate(example):
        pair = []
        for which, like in enumerate((keys, values)):
            rows = [
                _padded(held.past[layer][which], (0, 0, start - held.start, 0))
                if held.past
                else like.new_zeros(len(held.batch), like.shape[1], start, like.shape[3])
                for held in helds
            ]
            pair.append(torch.cat(rows))
        pasts.append((pair[0], pair[1]))
    return tuple(pasts)


def _padded(tensor: Tensor, widths: Sequence[int], value: int = 0) -> Tensor:
    """Pads a tensor, without the copy that `torch.nn.functional.pad` makes even if there is nothing to pad."""
    return pad(tensor, tuple(widths), value=value) if any(widths) else tensor
