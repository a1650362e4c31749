"""Which tokens does a read direction answer to? The places of a dataset where an edit moves furthest along it.

Reading i is read_i . h + constant_i, the change along write direction i (see `operator`), at every edited token, in
standard deviations from its mean. Beside it stands the largest z of random linear readings of the same activations:
every direction has some token that it answers to most, and in a small dataset the same odd tokens win often. Of
tokens with the same text before them, whose activations are equal in a causal model, one is listed.

Top contexts show the extreme of a reading and not the bulk of it; they suggest a meaning, and prove none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from reftlens.analysis.engine.activations import edited_activations
from reftlens.data import Batch, str_tokens
from reftlens.edit.reft import Reft
from reftlens.positions import Positions
from reftlens.results import Context, Operator, ReadContexts


@torch.no_grad()
def top_contexts(
    bridge: TransformerBridge,
    reft: Reft,
    operators: Sequence[Operator],
    batches: Sequence[Batch],
    *,
    at: Positions | None = None,
    directions: int = 2,
    top: int = 5,
    n_null: int = 200,
    seed: int = 0,
) -> list[ReadContexts]:
    """The tokens at which the strongest directions of each site are read most.

    Args:
        bridge: the base.
        reft: the edit.
        operators: from `decompose`, one for each site.
        batches: the dataset; activations are not kept.
        at: look at these of the edited tokens alone.
        directions: how many of each site.
        top: contexts listed for each.
        n_null: random readings for the null.
        seed: draws them.

    Raises:
        ValueError: unless there is one operator for each site.
    """
    if [operator.hook_name for operator in operators] != [site.hook_name for site in reft.sites]:
        raise ValueError("wanted one operator for each site of the edit, in its order: pass what decompose returned")
    generator = torch.Generator().manual_seed(seed)
    readings = []
    for operator in operators:
        random = torch.randn(n_null, operator.read.shape[1], generator=generator)
        readings.append(_Readings(torch.cat([operator.read[:directions], random]).double(), top, n_null))
    for index, batch in enumerate(batches):
        wanted = batch.prompt_mask if at is None else at.mask(batch.prompts)
        for reading, (edit, h) in zip(readings, edited_activations(bridge, reft, batch), strict=True):
            places = torch.nn.functional.pad((edit.mask & wanted).nonzero().cpu(), (1, 0), value=index)
            reading.add(h[wanted[edit.mask]], places, batch)
    return [
        found
        for reading, operator in zip(readings, operators, strict=True)
        for found in reading.results(bridge, operator, batches)
    ]


@final
@dataclass
class _Readings:
    """Running moments and largest values of some linear readings."""

    rows: Float[Tensor, "reading d_model"]
    top: int
    n_null: int
    n: int = 0
    total: Tensor | float = 0.0
    square: Tensor | float = 0.0
    seen: set[tuple[int, ...]] = field(default_factory=set)
    """Texts up to a token that were listed: the same text again has the same activation."""
    best: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    """Values `[reading, top]` and places `[reading, top, 3]` (batch, row, position) of each batch."""

    def add(self, h: Float[Tensor, "tokens d_model"], places: Int[Tensor, "tokens 3"], batch: Batch) -> None:
        values = self.rows @ h.double().cpu().T
        self.n += values.shape[1]
        self.total = self.total + values.sum(dim=1)
        self.square = self.square + values.square().sum(dim=1)
        fresh = torch.tensor([self._is_new(batch, row, pos) for _, row, pos in places.tolist()], dtype=torch.bool)
        values, places = values[:, fresh], places[fresh]
        found = values.topk(min(self.top, values.shape[1]), dim=1)
        self.best.append((found.values, places[found.indices]))

    def _is_new(self, batch: Batch, row: int, pos: int) -> bool:
        text = tuple(batch.tokens[row, : pos + 1][batch.attention_mask[row, : pos + 1].bool()].tolist())
        new = text not in self.seen
        self.seen.add(text)
        return new

    def results(self, bridge: TransformerBridge, operator: Operator, batches: Sequence[Batch]) -> list[ReadContexts]:
        mean = torch.as_tensor(self.total) / self.n
        spread = (torch.as_tensor(self.square) / self.n - mean.square()).clamp(min=0).sqrt()
        values, places = (torch.cat(column, dim=1) for column in zip(*self.best, strict=True))
        order = values.argsort(dim=1, descending=True)[:, : self.top]
        z = (values.gather(1, order) - mean[:, None]) / spread[:, None]
        shown = len(self.rows) - self.n_null
        null_high = float(z[shown:, 0].quantile(0.95)) if self.n_null else float("nan")
        results = []
        for index in range(shown):
            reads = float(operator.constant_share[index]) < 1 - 1e-6
            contexts = [
                _context(bridge, batches, places[index, place].tolist(), float(z[index, rank]))
                for rank, place in enumerate(order[index].tolist())
            ]
            results.append(
                ReadContexts(
                    operator.hook_name, index, tuple(contexts) if reads else (), null_high, self.n, self.n_null
                )
            )
        return results


def _context(bridge: TransformerBridge, batches: Sequence[Batch], place: Sequence[int], z: float) -> Context:
    """The text of one row, padding left out."""
    batch, row, pos = batches[place[0]], place[1], place[2]
    real = batch.attention_mask[row].bool().cpu()
    tokens = str_tokens(bridge, batch.tokens[row].cpu()[real])
    return Context(tokens, int(real[:pos].sum()), z)
