"""Merges an edit into the weights. Only h + c at every token can be merged, as a bias.

An edit that reads the activation, delta(h) = A h + c, would have to multiply whatever wrote h by (I
+ A). All earlier components write the residual stream, so no single weight can do this. An edit at
some tokens cannot be merged either, because weights do not depend on positions.
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
    """Computes biases of the base model that have the same effect as a constant edit. The bridge is not changed.

    Load them with `hf_model.load_state_dict(merge(bridge, reft), strict=False)` into a fresh
    Hugging Face model. One short batch is run with the edit and with the changed bias to check that
    both give the same result.

    Args:
        bridge: the base.
        reft: edits such as `SteeringVector` or `LobiReFT` at `All() | Generated()`, at a block's
            output or at the output of its attention or MLP.

    Returns:
        Hugging Face name -> new bias, in the bias's dtype.

    Raises:
        ValueError: If the edit cannot be merged. The message names the edit that prevents it.
    """
    merged: dict[str, Tensor] = {}
    for (site, intervention), name in zip(reft, reft.names, strict=True):
        push = reft.scales.get(name, 1.0) * _constant(site, intervention)
        point, parameter, bias = output_bias(bridge, site.hook_name)
        _require_same(bridge, site, Site(point, _EVERYWHERE), push)
        # Two sites may share a bias, so the second adds to what the first made.
        before = merged.get(parameter, bias.detach())
        merged[parameter] = before + push.to(before)
    return merged


@torch.no_grad()
def _constant(site: Site, intervention: Intervention) -> Tensor:
    """Returns the vector of an edit that adds a constant vector at every token."""
    parts = union_parts(site.positions)
    if All() not in parts or Generated() not in parts:
        raise ValueError(
            f"the edit at {site!r} cannot be merged: a bias is added at every token, including generated ones, so the positions "
            "must be All() | Generated()"
        )
    try:
        affine = intervention.affine()
    except NotAffineError as error:
        raise ValueError(f"the edit at {site!r} cannot be merged: {error}") from error
    probes = torch.randn(4, intervention.d_model, generator=torch.Generator().manual_seed(0))
    require_agreement(intervention, probes.to(affine.constant))
    if len(affine.write) or (affine.diagonal is not None and bool(affine.diagonal.any())):
        raise ValueError(
            f"the edit at {site!r} cannot be merged: the change of {type(intervention).__name__} depends on the activation, but a "
            "bias is constant"
        )
    return affine.constant.detach().clone()


@torch.no_grad()
def _require_same(bridge: TransformerBridge, site: Site, behind: Site, push: Tensor) -> None:
    """Raises if adding a vector at the site differs from adding it to the output of the linear map."""
    length = min(8, bridge.cfg.n_ctx)
    tokens = torch.arange(2 * length, device=bridge.cfg.device).reshape(2, length) % bridge.cfg.d_vocab
    mask = torch.ones_like(tokens)
    base = bridge(tokens, attention_mask=mask, use_cache=False).float()
    changes = []
    for where in (site, behind):
        with Reft([(where, SteeringVector.of(push))]).hooks(bridge, mask.bool()):
            changes.append(bridge(tokens, attention_mask=mask, use_cache=False).float() - base)
    # Both changes carry the rounding error of the logits.
    rounding = 100 * torch.finfo(bridge.cfg.dtype).eps * float(base.abs().max() + changes[0].abs().max())
    if float((changes[0] - changes[1]).abs().max()) > rounding:
        raise ValueError(
            f"the edit at {site!r} cannot be merged: on this model another operation, such as a norm, lies between "
            f"{behind.hook_name} and that point"
        )
