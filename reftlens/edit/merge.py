"""Merging an edit into the weights: h + c at every token is a bias, and nothing else of the family is.

An edit that reads the activation, delta(h) = A h + c, would have to become (I + A) times whatever wrote h; a residual stream is
written by everything before it, so there is no such weight. An edit at some tokens is no weight either: weights see no positions.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from reftlens.bridge import output_bias
from reftlens.edit.reft import Reft
from reftlens.edit.site import Site
from reftlens.interventions import Intervention, NotAffineError, SteeringVector, require_agreement
from reftlens.positions import All, Generated, union_parts

_EVERYWHERE = All() | Generated()


def merge(bridge: TransformerBridge, reft: Reft) -> dict[str, Tensor]:
    """The biases of the base model that do what a constant edit does; the bridge itself is left as it is.

    Load them by `hf_model.load_state_dict(merge(bridge, reft), strict=False)` into a fresh Hugging Face model. That a push of
    the bias is the same as the edit is seen on the model, by one short batch run with each.

    Args:
        bridge: the base.
        reft: edits such as `SteeringVector` or `LobiReFT` at `All() | Generated()`, after a block or at what its attention or
            MLP adds.

    Returns:
        New biases by their Hugging Face names, in their own dtype.

    Raises:
        ValueError: if it cannot be merged; it says which edit is why.
    """
    merged: dict[str, Tensor] = {}
    for (site, intervention), name in zip(reft, reft.names, strict=True):
        push = reft.scales.get(name, 1.0) * _constant(site, intervention)
        point, parameter, bias = output_bias(bridge, site.hook_name)
        _require_same(bridge, site, Site(point, _EVERYWHERE), push)
        before = merged.get(parameter, bias.detach())
        merged[parameter] = before + push.to(before)
    return merged


@torch.no_grad()
def _constant(site: Site, intervention: Intervention) -> Tensor:
    """The push of an edit that is nothing but a push, at every token."""
    parts = union_parts(site.positions)
    if All() not in parts or Generated() not in parts:
        raise ValueError(
            f"the edit at {site!r} cannot be merged: a bias is added at every token, generated ones included, so its positions must "
            "be All() | Generated()"
        )
    try:
        affine = intervention.affine()
    except NotAffineError as error:
        raise ValueError(f"the edit at {site!r} cannot be merged: {error}") from error
    probes = torch.randn(4, intervention.d_model, generator=torch.Generator().manual_seed(0))
    require_agreement(intervention, probes.to(affine.constant))
    if len(affine.write) or (affine.diagonal is not None and bool(affine.diagonal.any())):
        raise ValueError(
            f"the edit at {site!r} cannot be merged: the change of {type(intervention).__name__} depends on the activation, and a bias "
            "does not"
        )
    return affine.constant.detach().clone()


@torch.no_grad()
def _require_same(bridge: TransformerBridge, site: Site, behind: Site, push: Tensor) -> None:
    """Refuses a site where a push is not the same as one right behind the linear map."""
    length = min(8, bridge.cfg.n_ctx)
    tokens = torch.arange(2 * length, device=bridge.cfg.device).reshape(2, length) % bridge.cfg.d_vocab
    mask = torch.ones_like(tokens)
    base = bridge(tokens, attention_mask=mask, use_cache=False).float()
    changes = []
    for where in (site, behind):
        with Reft([(where, SteeringVector.of(push))]).hooks(bridge, mask.bool()):
            changes.append(bridge(tokens, attention_mask=mask, use_cache=False).float() - base)
    # Both changes are rounded as the logits are.
    rounding = 100 * torch.finfo(bridge.cfg.dtype).eps * float(base.abs().max() + changes[0].abs().max())
    if float((changes[0] - changes[1]).abs().max()) > rounding:
        raise ValueError(
            f"the edit at {site!r} cannot be merged: on this model something comes between {behind.hook_name} and that point, such as "
            "a norm"
        )
