"""Reads residuals through a model's final norm and unembedding."""

from __future__ import annotations

from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from reftlens.bridge.proving import TOLERANCE, difference, proved
from reftlens.bridge.threads import one_thread

_STEP = 0.01
"""Length of a short step, as a fraction of the residual's length."""
_ROWS = 64
"""Vectors that are read at a time, which limits the logits in memory."""


@torch.no_grad()
def mean_logit_changes(
    bridge: TransformerBridge,
    final: Float[Tensor, "prompt d_model"],
    pushes: Float[Tensor, "n d_model"] | Float[Tensor, "n prompt d_model"],
) -> Float[Tensor, "n d_vocab"]:
    """Computes the mean over prompts of logits(final + push) - logits(final), in float32 on the CPU.

    Where logits are linear in what the final norm returns, which is measured, the mean is taken
    before the unembedding.

    Args:
        bridge: the model.
        final: residuals after the last block.
        pushes: vectors that are added to each of them, or one vector for each of them.

    Raises:
        ValueError: If the model does not read the last residual by a final norm and an unembedding.
    """
    pushes = pushes.to(final)
    if pushes.ndim == 2:
        pushes = pushes[:, None].expand(-1, len(final), -1)
    if not unembeds_linearly(bridge):
        return _one_by_one(bridge, final, pushes)
    with one_thread(bridge):
        still = _normed(bridge, final)
        # [prompt, n, d_model]; the final norm is not linear, so every prompt needs its own.
        moved = torch.stack([_normed(bridge, h + push) for h, push in zip(final, pushes.unbind(1), strict=True)])
        gaps = (moved.float() - still[:, None].float()).mean(dim=0).to(moved)
        # The bias of the unembedding, which cancels in a difference of logits.
        nothing = bridge.unembed(torch.zeros_like(gaps[None, :1]))
        return torch.cat([(bridge.unembed(some[None]) - nothing)[0].float().cpu() for some in gaps.split(_ROWS)])


@torch.no_grad()
def mean_logit_slopes(
    bridge: TransformerBridge,
    final: Float[Tensor, "prompt d_model"],
    pushes: Float[Tensor, "n d_model"] | Float[Tensor, "n prompt d_model"],
) -> Float[Tensor, "n d_vocab"]:
    """Computes the mean over prompts of the change of logits(final + push) to first order in the push.

    A long push changes the length that the final norm divides by, so that its own part stops
    growing. The slope does not.

    Args:
        bridge: the model.
        final: as for `mean_logit_changes`.
        pushes: as for `mean_logit_changes`.

    Raises:
        ValueError: As `mean_logit_changes`.
    """
    pushes = pushes.to(final)
    if pushes.ndim == 2:
        pushes = pushes[:, None].expand(-1, len(final), -1)
    if not unembeds_linearly(bridge):
        # A soft cap has no tangent in TransformerLens' readout, so a short step takes its place.
        step = _STEP * final.norm(dim=-1).mean() / pushes.norm(dim=-1).mean(dim=1).clamp(min=1e-30)
        return _one_by_one(bridge, final, pushes * step[:, None, None]) / step[:, None].float().cpu()
    with one_thread(bridge):
        total = torch.zeros_like(pushes[:, 0])
        for h, push in zip(final, pushes.unbind(1), strict=True):
            there = h.expand(len(push), -1).contiguous()
            # By two backward passes: forward mode warns about parts of torch itself.
            total += torch.autograd.functional.jvp(partial(_normed, bridge), there, push.contiguous())[1]
        gaps = total / len(final)
        nothing = bridge.unembed(torch.zeros_like(gaps[None, :1]))
        return torch.cat([(bridge.unembed(some[None]) - nothing)[0].float().cpu() for some in gaps.split(_ROWS)])


@torch.no_grad()
def mean_logits(bridge: TransformerBridge, final: Float[Tensor, "prompt d_model"]) -> Float[Tensor, " d_vocab"]:
    """Computes the mean over prompts of the logits of last residuals, in float32 on the CPU.

    Args:
        bridge: the model.
        final: residuals after the last block, or others that are read as if they were.

    Raises:
        ValueError: If the model does not read the last residual by a final norm and an unembedding.
    """
    from transformer_lens.tools.analysis.logit_lens import logit_readout

    given = final.to(device=bridge.cfg.device, dtype=bridge.original_model.dtype)
    with one_thread(bridge):
        return logit_readout(bridge, given).values.float().cpu().mean(dim=0)


def unembeds_linearly(bridge: TransformerBridge) -> bool:
    """Returns whether logits are the unembedding of the final norm's output, and linear in it: no soft cap, no scale.

    Raises:
        ValueError: If the model does not read the last residual by a final norm and an unembedding.
    """
    # Lazily: tools.analysis changes between minor releases, and few functions need it.
    from transformer_lens.tools.analysis.logit_lens import logit_readout

    def prove() -> bool:
        tolerance = TOLERANCE[bridge.original_model.dtype]
        generator = torch.Generator().manual_seed(0)
        # Large vectors, on which a soft cap shows.
        vectors = 1e3 * torch.randn(4, bridge.cfg.d_model, generator=generator)
        given = vectors.to(device=bridge.cfg.device, dtype=bridge.original_model.dtype)
        own = bridge.unembed(given[None])[0]
        halves = (bridge.unembed(given[None, :2])[0] + bridge.unembed(given[None, 2:])[0]) / 2
        between = bridge.unembed((given[None, :2] + given[None, 2:]) / 2)[0]
        read = logit_readout(bridge, given, apply_ln=False).values
        return difference(own, read) <= tolerance and difference(between, halves) <= tolerance

    return proved(bridge, "a linear unembedding", prove)


def _normed(bridge: TransformerBridge, resid: Float[Tensor, "n d_model"]) -> Float[Tensor, "n d_model"]:
    if getattr(bridge.cfg, "normalization_type", None) is None:
        return resid
    normed: Tensor = bridge.ln_final(resid[None])
    return normed[0]


def _one_by_one(
    bridge: TransformerBridge, final: Float[Tensor, "prompt d_model"], pushes: Float[Tensor, "n prompt d_model"]
) -> Float[Tensor, "n d_vocab"]:
    from transformer_lens.tools.analysis.logit_lens import logit_readout

    total = torch.zeros(())
    for h, push in zip(final, pushes.unbind(1), strict=True):
        # Row 0 has no push; the others are compared with it.
        logits = logit_readout(bridge, torch.cat([h[None], h + push])).values.float().cpu()
        total = total + (logits[1:] - logits[:1])
    return total / len(final)
