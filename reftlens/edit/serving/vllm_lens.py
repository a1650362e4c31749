"""Hooks for vllm-lens (github.com/UKGovernmentBEIS/vllm-lens, commit 7d252f7, July 2026), which runs Python inside vLLM.

A hook sees, layer by layer, the rows of one request that are in the current step: part of a prompt,
or one generated token. It counts them, so it knows the place of each. vLLM must therefore not skip
the beginning of a prompt: with `skip_reading_prefix_cache` in `extra_args`, it reads the whole
prompt.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from reftlens.data import Batch
from reftlens.edit.reft import Reft
from reftlens.edit.serving.places import block_of, factors_of


def vllm_lens_hooks(reft: Reft, batch: Batch, *, hook: Callable[..., Any] | None = None) -> list[Any]:
    """Makes the hooks of one request: `SamplingParams(extra_args={"apply_hooks": hooks, "skip_reading_prefix_cache": True})`.

    The functions hold plain tensors and need nothing of this package, so that a server without it
    can run them.

    Args:
        reft: edits of the residual stream after blocks.
        batch: the prompt of the request, from `encode(bridge, [prompt])`. Send its tokens:
            `{"prompt_token_ids": ...}`.
        hook: makes a hook of `fn` and `layer_indices`; `vllm_lens.Hook` by default.

    Returns:
        One hook per site, in the order of the edit.

    Raises:
        ValueError: If there are several prompts, the edit cannot be served, or vllm-lens is not
            installed.
    """
    if len(batch) != 1:
        raise ValueError(f"a request has one prompt, got a batch of {len(batch)}: make the hooks of each")
    make = _hook() if hook is None else hook
    real = batch.attention_mask[0].bool()
    hooks = []
    for (site, intervention), name, edit in zip(reft, reft.names, reft.edits(batch), strict=True):
        write, read, constant, diagonal, _ = factors_of(site, intervention)
        fn = _function(
            edit.mask[0][real].cpu(),
            generated=site.positions.generated,
            scale=float(reft.scales.get(name, 1.0)),
            factors=(write, read, constant, torch.zeros_like(constant) if diagonal is None else diagonal),
        )
        hooks.append(make(fn=fn, layer_indices=[block_of(site)]))
    return hooks


def _hook() -> Callable[..., Any]:
    try:
        from vllm_lens import Hook
    except ImportError as error:
        raise ValueError(f"vllm_lens_hooks needs vllm-lens ({error}): pip install vllm-lens") from error
    made: Callable[..., Any] = Hook
    return made


def _function(
    mask: Tensor, *, generated: bool, scale: float, factors: tuple[Tensor, Tensor, Tensor, Tensor]
) -> Callable[[Any, Tensor], Tensor]:
    """A function of its own values alone: it is sent to the server as it is."""

    def change(context: Any, hidden: Tensor) -> Tensor:
        start = int(context.saved.get("rows", 0))
        context.saved["rows"] = start + len(hidden)
        places = range(start, start + len(hidden))
        rows = [row for row, place in enumerate(places) if (bool(mask[place]) if place < len(mask) else generated)]
        if not rows:
            return hidden
        write, read, constant, diagonal = (factor.to(hidden.device) for factor in factors)
        # The server may run in half precision; the edit is computed in its own float32.
        h = hidden[rows].float()
        new = hidden.clone()
        new[rows] = (h + scale * (h @ read.T @ write + diagonal * h + constant)).to(hidden.dtype)
        return new

    return change
