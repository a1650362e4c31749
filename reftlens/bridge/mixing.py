"""Whether the heads alone carry changes from one token to another, measured on the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from reftlens.bridge.proving import TOLERANCE, difference, made_up, proved
from reftlens.bridge.threads import hooked


def require_heads_alone_mix(bridge: TransformerBridge, points: Sequence[str]) -> None:
    """Raises if anything but the heads carries changes from one token to another, such as the recurrent part of a hybrid model.

    Args:
        bridge: the base.
        points: the outputs of all heads and MLPs.

    Raises:
        ValueError: If with these outputs held, a change of the first token reaches a later one.
    """
    end = f"blocks.{bridge.cfg.n_layers - 1}.hook_out"

    def prove() -> bool:
        tokens = made_up(bridge, 1, min(bridge.cfg.n_ctx, 6))
        seen: dict[str, Tensor] = {}

        def keep(name: str) -> Any:
            return lambda activation, hook: seen.update({name: activation.clone()})

        def push(resid: Tensor, hook: Any) -> Tensor:
            # Turned round, because a longer vector may be divided by its length again.
            return torch.cat([-resid[:, :1], resid[:, 1:]], dim=1)

        with hooked(bridge, [(name, keep(name)) for name in (*points, end)]):
            bridge(tokens, use_cache=False)
        before, held = seen[end], [(name, lambda _, hook, name=name: seen[name]) for name in points]
        with hooked(bridge, [("blocks.0.hook_in", push), *held, (end, keep(end))]):
            bridge(tokens, use_cache=False)
        later, first = (difference(seen[end][:, part], before[:, part]) for part in (slice(1, None), slice(1)))
        return later <= TOLERANCE[bridge.original_model.dtype] < first

    if not proved(bridge, "heads alone mix tokens", prove):
        raise ValueError(
            f"{type(bridge.original_model).__name__} carries changes between tokens by other parts than its heads, such as a "
            "recurrent one, which paths through heads and MLPs would lack"
        )
