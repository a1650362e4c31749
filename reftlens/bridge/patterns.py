"""Points of attention patterns, on models where a pattern that a hook returns is the one that the head uses.

Most models compute z = pattern @ v from what a hook returns at `attn.hook_pattern`. Some fire the
point only afterwards, so that a write is lost, and some mix in what is not in the pattern. Writing
a pattern and computing z from it shows which.
"""

from __future__ import annotations

from typing import Any

import torch
from einops import einsum
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from reftlens.bridge.proving import TOLERANCE, made_up, proved
from reftlens.bridge.threads import hooked


def pattern_hooks(bridge: TransformerBridge) -> list[str]:
    """Returns the point of each block's attention patterns `[batch, head, query, key]`.

    Args:
        bridge: the model; causal.

    Raises:
        ValueError: If a pattern that is written there would not be the one that the heads use.
    """
    names = [f"blocks.{layer}.attn.hook_pattern" for layer in range(bridge.cfg.n_layers)]
    if not proved(bridge, "held patterns", lambda: _prove(bridge, names)):
        raise ValueError(
            f"attention patterns of {type(bridge.original_model).__name__} cannot be held: its heads do not compute "
            "pattern @ value from what is written at attn.hook_pattern. mediate and paths do not need patterns"
        )
    return names


def _prove(bridge: TransformerBridge, names: list[str]) -> bool:
    tokens = made_up(bridge, 2, min(bridge.cfg.n_ctx, 8))
    n_pos, n_heads = tokens.shape[1], bridge.cfg.n_heads
    # Random rows that sum to 1, different for each prompt and head, and nothing that the model
    # would compute itself.
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(len(tokens), n_heads, n_pos, n_pos, generator=generator).tril()
    written = (scores / scores.sum(-1, keepdim=True)).to(tokens.device)
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook_fn(activation: Tensor, hook: Any) -> Tensor:
            # Values are made up too, because a proof is for all weights, and values of some are
            # zero.
            new = torch.randn(activation.shape, generator=generator).to(activation)
            seen[name] = new if name.endswith("hook_v") else activation.clone()
            return seen[name]

        return hook_fn

    around = [name.replace("hook_pattern", part) for name in names for part in ("hook_v", "hook_z")]
    hooks = [(name, lambda pattern, hook: written.to(pattern)) for name in names]
    try:
        with hooked(bridge, [*hooks, *((name, keep(name)) for name in around)]):
            bridge(tokens, use_cache=False)
        gaps = [_gap(written, seen[v], seen[z]) for v, z in zip(around[::2], around[1::2], strict=True)]
    except Exception:  # whatever an architecture raises that has no such points, or patterns of another shape
        return False
    return max(gaps) <= TOLERANCE[bridge.original_model.dtype]


def _gap(pattern: Tensor, v: Tensor, z: Tensor) -> float:
    """Computes how far z is from pattern @ v, relative to it. With grouped queries, several heads share their values."""
    n_heads = pattern.shape[1]
    z = z.reshape(*z.shape[:2], n_heads, -1).double()
    v = v.reshape(*v.shape[:2], -1, z.shape[-1]).double()
    v = v.repeat_interleave(n_heads // v.shape[2], dim=2)
    made = einsum(pattern.double(), v, "batch head query key, batch key head width -> batch query head width")
    return float((z - made).norm() / made.norm())
