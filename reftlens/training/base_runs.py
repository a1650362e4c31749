"""The base runs of a training set: made once, kept up to a budget, put together into batches.

Training runs each batch's light cone alone. What the cone needs of the base (`cone.Held`) is the same in every epoch,
so it is held for each example by itself, and `join` lines examples up at their cones' first column. One example at a time also in making them: then a run does
not depend on its neighbours, and training is the same to the bit whatever was kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import final

import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from reftlens.bridge import require_padding
from reftlens.cone.hold import hold
from reftlens.cone.light_cone import Held, join
from reftlens.cone.store import InMemory, OnDisk, Run
from reftlens.data import Batch
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
        widths = [held.batch.tokens.shape[1] - held.start for held in helds]
        require_padding(self.bridge, "right", widths)
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
