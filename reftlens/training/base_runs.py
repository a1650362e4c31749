"""Caches the base runs of a training set, up to a memory budget, and joins them into batches.

Training runs only the light cone of each batch. The part of the base run that the cone needs
(`cone.Held`) is the same in every epoch, so it is cached per example. `join` aligns the examples at
the first column of their cones. Base runs are also computed one example at a time. A cached run
then does not depend on the other examples of a batch, and training is bit-identical whatever is
cached.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import final

import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from reftlens.bridge import require_padding
from reftlens.cone.hold import hold
from reftlens.cone.light_cone import Held, join
from reftlens.cone.store import InMemory, OnDisk, Run
from reftlens.data import Batch
from reftlens.display import progress_bar
from reftlens.edit.hooks import Edit
from reftlens.edit.reft import Reft
from reftlens.training.objectives import Objective
from reftlens.training.objectives.base import Example

_ENCODED = 4096
"""Number of examples whose tokens are cached. Tokenizing again is cheap compared with a forward pass."""


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
        """Stores the settings; `build` and `batch` run the model.

        Args:
            bridge: the base.
            reft: the edit. Its sites decide what is cached; its weights do not matter. None if
                nothing is edited.
            objective: encodes examples and gives their reference values.
            examples: from `objective.read`.
            store: the cache. Runs that do not fit are computed again each time, without gradient.
        """
        self.bridge, self.reft, self.objective, self.examples = bridge, reft, objective, examples
        self.store = store
        # In the instance: a decorated method would keep every BaseRuns alive in one cache.
        self._encode = lru_cache(maxsize=_ENCODED)(self._encode_one)

    def build(self, rows: Sequence[int], *, progress: bool = False) -> int:
        """Computes and caches the runs of these examples until the cache is full.

        Returns:
            The number of cached runs.
        """
        if self.store.max_bytes == 0:
            return 0
        for done, row in enumerate(progress_bar(rows, desc="base runs", unit="example", shown=progress)):
            if self.store.get(row) is None and not self.store.put(row, self._make(row)):
                # The store is full: later runs are computed when a batch needs them.
                return done
        return len(rows)

    def batch(self, rows: Sequence[int]) -> tuple[Held, Tensor | None]:
        """Returns the held runs of these examples as one batch, and their reference values if there are any."""
        runs = []
        for row in rows:
            run = self.store.get(row)
            if run is None:
                run = self._make(row)
                self.store.put(row, run)
            runs.append(run)
        helds = [_unpack(run, self._encode(row)) for row, run in zip(rows, runs, strict=True)]
        # join aligns the beginnings of the cones, so the padding is on the right.
        widths = [held.batch.tokens.shape[1] - held.start for held in helds]
        require_padding(self.bridge, "right", widths)
        references = [run.tensors["reference"] for run in runs if "reference" in run.tensors]
        return join(helds), torch.cat(references) if references else None

    def edits(self, batch: Batch) -> list[Edit]:
        """Returns the edits on one batch; an empty list if nothing is edited."""
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
    # Only tensors and integers, which a store on disk can write without pickling.
    numbers = {"start": held.start, "boundary": held.boundary, "tuple": int(held.as_tuple), "past": len(held.past)}
    return Run(tensors, numbers)


def _unpack(run: Run, batch: Batch) -> Held:
    tensors, numbers = run.tensors, run.numbers
    past = tuple((tensors[f"keys.{layer}"], tensors[f"values.{layer}"]) for layer in range(numbers["past"]))
    return Held(batch, numbers["start"], numbers["boundary"], tensors.get("resid"), past, bool(numbers["tuple"]))
