"""Verifies which parts of a run a cone may skip on a model, by comparing cones of a random batch with whole runs.

Two prompts of different lengths are run whole and separately, with random pushes after a block.
Then their cones are cut, joined into one padded batch, and run under the same pushes, as in
training. The logits must agree.

Keys and values do not hold the state of recurrent layers, so such a model has no cone in positions.
A model that passes more than the residual stream between blocks has no cone in layers. A cone never
skips a part that fails the comparison, and the log reports the difference.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from reftlens.bridge import (
    TOLERANCE,
    attention_window,
    difference,
    hooked,
    is_causal,
    made_up,
    plain_blocks_hold,
    proved,
)
from reftlens.cone.light_cone import Held, cut, join, run_cone
from reftlens.data import IGNORE, Batch

logger = logging.getLogger(__name__)


@final
@dataclass(frozen=True)
class Parts:
    """The parts of a run that a cone may skip."""

    columns: bool
    """Whether cached keys and values can replace the tokens before the cone."""
    layers: bool
    """Whether the residual stream can replace the blocks before the cone."""


ALL = Parts(columns=True, layers=True)
"""The parts of a standard causal transformer."""


def parts_of(bridge: TransformerBridge, batch: Batch) -> Parts:
    """Returns what cones of a batch may skip, verified once for all models like this one.

    Args:
        bridge: the model.
        batch: the random batch exceeds the model's attention window if this batch does.
    """
    window, n_ctx = attention_window(bridge) or 0, bridge.cfg.n_ctx
    beyond = 0 < window < batch.tokens.shape[1]
    # Beyond a window, early keys must be masked, which a shorter prompt would not test.
    length = min(n_ctx, window + 8 if beyond else 12)
    if length < 2:
        return Parts(columns=False, layers=False)
    # Before any block of this bridge is replaced.
    plain_blocks_hold(bridge)
    return proved(bridge, "cone", lambda: _prove(bridge, length), beyond)


def _prove(bridge: TransformerBridge, length: int) -> Parts:
    trial = _Trial(bridge, length)
    layer = trial.layer
    name = type(bridge.original_model).__name__
    columns = is_causal(bridge)
    if columns:
        wrong = trial.fails(boundary=-1, from_start=False)
        columns = not wrong
        if wrong:
            logger.warning(
                "%s: cached keys and values cannot replace the tokens before a cone (%s), as in a recurrent model. Every run "
                "computes all tokens, which is exact but slower",
                name,
                wrong,
            )
    wrong = trial.fails(boundary=layer, from_start=not columns)
    if wrong:
        logger.warning(
            "%s: the residual stream cannot replace the blocks before a cone (%s). Every run computes all blocks, which is "
            "exact but slower",
            name,
            wrong,
        )
    return Parts(columns=columns, layers=not wrong)


@final
class _Trial:
    """Two prompts, a push for each token of their cones, and the logits of whole runs under these."""

    def __init__(self, bridge: TransformerBridge, length: int) -> None:
        self.bridge = bridge
        tokens = made_up(bridge, 2, length)
        lengths = (length, max(1, length - 4))
        self.rows = [as_batch(tokens[row : row + 1, :n]) for row, n in enumerate(lengths)]
        # Different starts and lengths, so that joining pads on both sides.
        self.starts = [n // 2 for n in lengths]
        self.layer = max(0, bridge.cfg.n_layers // 2 - 1)
        generator = torch.Generator().manual_seed(1)
        self.pushes = torch.randn(2, length, bridge.cfg.d_model, generator=generator).to(tokens.device)
        self.expected = [self._whole(row) for row in range(2)]

    def fails(self, *, boundary: int, from_start: bool) -> str:
        """Describes how a cone with this boundary differs from the whole runs; empty if it does not differ."""
        starts = [0, 0] if from_start else self.starts
        try:
            helds = [
                cut(self.bridge, row, boundary=boundary, start=start)
                for row, start in zip(self.rows, starts, strict=True)
            ]
            held = join(helds)
            first = [0, 0] if not from_start else self.starts
            with hooked(self.bridge, [self._pushing(held, first)]):
                logits = run_cone(self.bridge, held, [])
        except Exception as error:  # whatever an architecture raises where a part of its input is missing
            return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
        found = [logits[row, at : at + len(self.expected[row])] for row, at in enumerate(first)]
        change = difference(torch.cat(found), torch.cat(self.expected))
        # `not (... <= ...)`, so that NaN fails.
        return (
            ""
            if change <= TOLERANCE[self.bridge.original_model.dtype]
            else f"logits move by {change:.2g} of their spread"
        )

    def _whole(self, row: int) -> Float[Tensor, "pos d_vocab"]:
        batch, start = self.rows[row], self.starts[row]

        def push(resid: Tensor, hook: Any) -> Tensor:
            return _pushed(resid, self.pushes[row : row + 1], [start])

        with hooked(self.bridge, [(self._point, push)]):
            logits: Tensor = self.bridge(batch.tokens, attention_mask=batch.attention_mask, use_cache=False)
        return logits[0, start:]

    @property
    def _point(self) -> str:
        return f"blocks.{self.layer}.hook_out"

    def _pushing(self, held: Held, first: Sequence[int]) -> tuple[str, Callable[..., Tensor]]:
        def push(resid: Tensor, hook: Any) -> Tensor:
            return _pushed(resid, self.pushes, first)

        return self._point, push


def _pushed(resid: Tensor, pushes: Tensor, first: Sequence[int]) -> Tensor:
    """Pushes each row from its own column on, by half of each token's norm."""
    added = torch.zeros_like(resid)
    for row, start in enumerate(first):
        added[row, start:] = pushes[row, : resid.shape[1] - start].to(resid)
    # A normal vector is about sqrt(d) long.
    return resid + 0.5 * resid.norm(dim=-1, keepdim=True) * added / resid.shape[-1] ** 0.5


def as_batch(tokens: Int[Tensor, "batch pos"]) -> Batch:
    """Makes a batch of prompts from tokens without padding."""
    ones = torch.ones_like(tokens)
    return Batch(tokens, ones, ones.bool(), torch.full_like(tokens, IGNORE))
