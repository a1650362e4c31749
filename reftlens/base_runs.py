"""The base runs of a training set: made once, kept up to a memory budget, put together into batches.

Training runs each batch's light cone alone. What the cone needs of the base (`cone.Held`) is the same in every epoch,
so it is held for each example by itself, and `join` lines examples up at their cones' first column: shorter
prompts are padded on the left, shorter cones on the right.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformer_lens.model_bridge import TransformerBridge

from reftlens.cone import Held, hold
from reftlens.data import IGNORE, Batch, encode
from reftlens.reft import Reft


@final
class BaseRuns:
    """Base runs of (prompt, completion) examples under one edit's layout."""

    def __init__(
        self, bridge: TransformerBridge, reft: Reft, examples: Sequence[tuple[str, str]], *, max_bytes: int
    ) -> None:
        """Runs nothing yet.

        Args:
            bridge: the base.
            reft: the edit; its sites decide what is held, its weights do not matter.
            examples: (prompt, completion) pairs.
            max_bytes: memory for held runs. What does not fit is run again each time, without gradient.
        """
        self.bridge, self.reft, self.examples, self.max_bytes = bridge, reft, examples, max_bytes
        self.n_bytes = 0
        self._kept: dict[int, Held] = {}

    def batch(self, rows: Sequence[int]) -> Held:
        """The held runs of some examples as one batch."""
        return join([self._one(row) for row in rows])

    def _one(self, row: int) -> Held:
        if row in self._kept:
            return self._kept[row]
        prompt, completion = self.examples[row]
        batch = encode(self.bridge, [prompt], [completion])
        # The first completion token is predicted one column before it.
        wanted = (batch.labels != IGNORE).roll(-1, dims=1)
        held = hold(self.bridge, batch, self.reft.edits(batch), wanted=wanted)
        if self.n_bytes + held.n_bytes() <= self.max_bytes:
            self.n_bytes += held.n_bytes()
            self._kept[row] = held
        return held


def join(helds: Sequence[Held]) -> Held:
    """Several held batches of one model and layout as one.

    Raises:
        ValueError: if they were held at different blocks.
    """
    boundaries = {held.boundary for held in helds}
    if len(boundaries) != 1:
        raise ValueError(f"only cones that begin after the same block can be joined, got blocks {sorted(boundaries)}")
    start = max(held.start for held in helds)
    width = max(held.batch.tokens.shape[1] - held.start for held in helds)

    def columns(held: Held, tensor: Tensor, value: int = 0) -> Tensor:
        """Pads the columns of a tensor `[batch, pos, ...]` to those of the joined batch."""
        left, right = start - held.start, width - (held.batch.tokens.shape[1] - held.start)
        return pad(tensor, (*(0, 0) * (tensor.ndim - 2), left, right), value=value)

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
        rows = [held.resid for held in helds if held.resid is not None]
        resid = torch.cat([pad(row, (0, 0, 0, width - row.shape[1])) for row in rows])
    return Held(batch, start, helds[0].boundary, resid, _join_past(helds, start), helds[0].as_tuple)


def _join_past(helds: Sequence[Held], start: int) -> tuple[tuple[Tensor, Tensor], ...]:
    """Keys and values, padded on the left; an example whose cone begins at its first column has none."""
    if start == 0:
        return ()
    example: tuple[tuple[Tensor, Tensor], ...] = next((held.past for held in helds if held.past), ())
    pasts = []
    for layer, (keys, values) in enumerate(example):
        pair = []
        for which, like in enumerate((keys, values)):
            rows = [
                pad(held.past[layer][which], (0, 0, start - held.start, 0))
                if held.past
                else like.new_zeros(len(held.batch), like.shape[1], start, like.shape[3])
                for held in helds
            ]
            pair.append(torch.cat(rows))
        pasts.append((pair[0], pair[1]))
    return tuple(pasts)
