"""The base runs of a training set: made once, kept up to a budget, put together into batches.

Training runs each batch's light cone alone. What the cone needs of the base (`cone.Held`) is the same in every epoch,
so it is held for each example by itself, and `join` lines examples up at their cones' first column: shorter
prompts are padded on the left, shorter cones on the right. One example at a time also in making them: then a run does
not depend on its neighbours, and training is the same to the bit whatever was kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import final

import torch
from torch import Tensor
from torch.nn.functional import pad
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from reftlens.cone.run import Held, hold
from reftlens.cone.store import InMemory, OnDisk, Run
from reftlens.data import IGNORE, Batch
from reftlens.edit.hooks import Edit
from reftlens.edit.reft import Reft
from reftlens.training.objectives import Objective
from reftlens.training.objectives.base import Example

_ENCODED = 4096
"""Examples whose tokens are remembered. Of more, tokenizing again is little beside running a model that large."""


@final
class BaseRuns:
    """Base runs of examples under one edit's layout."""

    def __init__(
        self,
        bridge: TransformerBridge,
        reft: Reft | None,
        objective: Objective,
        examples: Sequence[Example],
        *,
        store: InMemory | OnDisk,
    ) -> None:
        """Runs nothing yet.

        Args:
            bridge: the base.
            reft: the edit; its sites decide what is held, its weights do not matter. None where nothing is edited.
            objective: says how an example becomes tokens, and what it is compared with.
            examples: from `objective.read`.
            store: keeps runs. What does not fit is run again each time, without gradient.
        """
        self.bridge, self.reft, self.objective, self.examples = bridge, reft, objective, examples
        self.store = store
        self._encode = lru_cache(maxsize=_ENCODED)(self._encode_one)

    def build(self, rows: Sequence[int], *, progress: bool = False) -> int:
        """Makes and keeps the runs of these examples, until no more fit.

        Returns:
            How many are kept.
        """
        if self.store.max_bytes == 0:
            return 0
        for done, row in enumerate(tqdm(rows, desc="base runs", unit="example", disable=not progress)):
            if self.store.get(row) is None and not self.store.put(row, self._make(row)):
                return done
        return len(rows)

    def batch(self, rows: Sequence[int]) -> tuple[Held, Tensor | None]:
        """Some examples as one batch, and what they are compared with."""
        runs = []
        for row in rows:
            run = self.store.get(row)
            if run is None:
                run = self._make(row)
                self.store.put(row, run)
            runs.append(run)
        helds = [_unpack(run, self._encode(row)) for row, run in zip(rows, runs, strict=True)]
        references = [run.tensors["reference"] for run in runs if "reference" in run.tensors]
        return join(helds), torch.cat(references) if references else None

    def edits(self, batch: Batch) -> list[Edit]:
        """The edit on one batch; no edits where there is none."""
        return [] if self.reft is None else self.reft.edits(batch)

    def _encode_one(self, row: int) -> Batch:
        return self.objective.encode(self.bridge, self.examples[row])

    @torch.no_grad()
    def _make(self, row: int) -> Run:
        batch = self._encode(row)
        held = hold(self.bridge, batch, self.edits(batch), wanted=self.objective.read_at(batch))
        return _pack(held, self.objective.reference(self.bridge, held, self.examples[row]))


def _pack(held: Held, reference: Tensor | None) -> Run:
    tensors = {} if held.resid is None else {"resid": held.resid}
    for layer, (keys, values) in enumerate(held.past):
        tensors |= {f"keys.{layer}": keys, f"values.{layer}": values}
    if reference is not None:
        tensors["reference"] = reference
    numbers = {"start": held.start, "boundary": held.boundary, "tuple": int(held.as_tuple), "past": len(held.past)}
    return Run(tensors, numbers)


def _unpack(run: Run, batch: Batch) -> Held:
    tensors, numbers = run.tensors, run.numbers
    past = tuple((tensors[f"keys.{layer}"], tensors[f"values.{layer}"]) for layer in range(numbers["past"]))
    return Held(batch, numbers["start"], numbers["boundary"], tensors.get("resid"), past, bool(numbers["tuple"]))


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
        rows = [held.resid for held in helds if held.resid is not None]
        resid = torch.cat([_padded(row, (0, 0, 0, width - row.shape[1])) for row in rows])
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
                _padded(held.past[layer][which], (0, 0, start - held.start, 0))
                if held.past
                else like.new_zeros(len(held.batch), like.shape[1], start, like.shape[3])
                for held in helds
            ]
            pair.append(torch.cat(rows))
        pasts.append((pair[0], pair[1]))
    return tuple(pasts)


def _padded(tensor: Tensor, widths: Sequence[int], value: int = 0) -> Tensor:
    """`torch.nn.functional.pad`, which copies also where there is nothing to pad: keys and values are large."""
    return pad(tensor, tuple(widths), value=value) if any(widths) else tensor
