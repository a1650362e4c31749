"""Runs the base once and keeps the activations that a light cone starts from: `hold` for edits, `hold_from` for any writes.

Inside `shared.shared`, both take them from the base runs that are kept there.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from weakref import WeakSet

import torch
from jaxtyping import Bool
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from reftlens.bridge import is_causal
from reftlens.cone.light_cone import Held, boundary_of, cut, run_cone, whole
from reftlens.cone.proof import parts_of
from reftlens.cone.shared import shared_runs
from reftlens.data import Batch
from reftlens.edit.hooks import Edit

__all__ = ["Held", "boundary_of", "hold", "hold_from", "run_cone"]

logger = logging.getLogger(__name__)
_TOLD: WeakSet[TransformerBridge] = WeakSet()
"""Bidirectional models that have already been logged."""


@torch.no_grad()
def hold(
    bridge: TransformerBridge,
    batch: Batch,
    edits: Sequence[Edit],
    *,
    wanted: Bool[Tensor, "batch pos"] | None = None,
) -> Held:
    """Runs the base once and keeps the activations that the light cone of these edits needs from outside.

    Args:
        bridge: the base, without edits attached. If some of its parameters require gradients, the
            cone is the whole run.
        batch: the inputs.
        edits: from `reft.edits(batch)`. May be empty if `wanted` is given, for training only a head
            on the model.
        wanted: True at tokens whose logits are needed, even before the first edited token. The cone
            begins no later.

    Raises:
        ValueError: If the edits change no token, or there are neither edits nor wanted logits.
    """
    if _trained(bridge):
        return whole(batch)
    if (edits or wanted is None) and not any(bool(edit.changed.any()) for edit in edits):
        raise ValueError("these edits do not change any token, so they have no light cone")
    masks = [edit.read for edit in edits] + ([wanted] if wanted is not None else [])
    return _hold(bridge, batch, [edit.hook_name for edit in edits], torch.stack(masks).any(dim=0))


@torch.no_grad()
def hold_from(
    bridge: TransformerBridge, batch: Batch, hook_names: Sequence[str], mask: Bool[Tensor, "batch pos"]
) -> Held:
    """Does the same as `hold` for arbitrary writes at these hooks and tokens.

    Args:
        bridge: the base.
        batch: the inputs.
        hook_names: hooks that will be written to. The cone begins after the last block that none of
            them changes.
        mask: tokens that are written to, and tokens whose logits are needed. The cone begins at the
            first of them.
    """
    return whole(batch) if _trained(bridge) else _hold(bridge, batch, hook_names, mask)


def hold_for_one_run(
    bridge: TransformerBridge, batch: Batch, hook_names: Sequence[str], mask: Bool[Tensor, "batch pos"]
) -> Held:
    """Does the same as `hold_from` where base runs are shared. Elsewhere it holds nothing, because a single run needs no cone.

    Args:
        bridge: the base.
        batch: the inputs.
        hook_names: as for `hold_from`.
        mask: as for `hold_from`.
    """
    return whole(batch) if shared_runs(bridge) is None else hold_from(bridge, batch, hook_names, mask)


def _trained(bridge: TransformerBridge) -> bool:
    return any(parameter.requires_grad for parameter in bridge.parameters())


def _hold(bridge: TransformerBridge, batch: Batch, hook_names: Sequence[str], mask: Bool[Tensor, "batch pos"]) -> Held:
    columns = mask.any(dim=0).cpu()
    if not is_causal(bridge) and bridge not in _TOLD:
        _TOLD.add(bridge)
        logger.info(
            "%s is bidirectional: its cone skips early layers, but no tokens", type(bridge.original_model).__name__
        )
    parts = parts_of(bridge, batch)
    boundary = boundary_of(bridge, hook_names) if parts.layers else -1
    start = int(columns.int().argmax()) if parts.columns else 0
    runs = shared_runs(bridge)
    kept = None
    # A cone that is the whole run needs nothing from outside.
    if runs is not None and (start or boundary >= 0):
        kept = runs.held(batch, boundary, start, columns=parts.columns)
    return cut(bridge, batch, boundary=boundary, start=start) if kept is None else kept
