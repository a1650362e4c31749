"""Which tokens activate a read direction most? Lists the tokens of a dataset where an edit moves furthest along it.

Reading i is read_i . h + constant_i, the change along write direction i (see `decompose`), at every
edited token, in standard deviations from its mean. The control is the largest z of random linear
readings of the same activations. Each coordinate is divided by its standard deviation, because a
much larger coordinate would make all readings the same. The control is needed because every
direction has some token of largest reading, and in a small dataset the same unusual tokens often
have it. Tokens with the same text before them have equal activations in a causal model, so only one
is listed.

Top contexts show the extremes of a reading, not its typical values. They suggest a meaning but do
not prove it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import final

import torch
from einops import einsum
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from reftlens.analysis.engine.activations import edited_in
from reftlens.bridge import side_for_ends
from reftlens.cone.shared import sharing
from reftlens.data import Batch, Given, as_batches, str_tokens
from reftlens.edit.reft import Reft
from reftlens.positions import Positions
from reftlens.results import Context, Operator, ReadContexts


@sharing
@torch.no_grad()
def top_contexts(
    bridge: TransformerBridge,
    reft: Reft,
    operators: Sequence[Operator],
    prompts: Given,
    *,
    at: Positions | None = None,
    directions: int = 2,
    top: int = 5,
    n_null: int = 200,
    seed: int = 0,
) -> list[ReadContexts]:
    """Finds the tokens with the largest readings along the strongest directions of each site.

    Args:
        bridge: the base.
        reft: the edit.
        operators: from `decompose`, one per site.
        prompts: the dataset: texts, conversations, pairs or batches. Activations are not kept.
        at: use only these edited tokens.
        directions: number of directions per site.
        top: contexts listed per direction.
        n_null: random readings for the null.
        seed: seed of the random readings.

    Raises:
        ValueError: If the number of operators differs from the number of sites.
    """
    # An operator saved by an earlier version has no site name.
    hooks = [site.hook_name for site in reft.sites]
    if [operator.where for operator in operators] not in (list(reft.site_names), hooks):
        raise ValueError(
            "operators must have one entry for each site of the edit, in the same order: pass the result of decompose"
        )
    batches = as_batches(bridge, prompts, padding_side=side_for_ends(bridge))
    generator = torch.Generator().manual_seed(seed)
    seen = partial(seen_by, bridge, reft, batches, at=at)
    moments = [Moments() for _ in operators]
    for sites in seen():
        for moment, (h, _) in zip(moments, sites, strict=True):
            moment.add(h)
    readings = []
    for operator, moment in zip(operators, moments, strict=True):
        random = torch.randn(n_null, operator.read.shape[1], generator=generator).double() * moment.weight()
        readings.append(Readings(torch.cat([operator.read[:directions].double(), random]), top, n_null))
    # A second pass, because random readings need the deviations and activations are not kept.
    for index, (batch, sites) in enumerate(zip(batches, seen(), strict=True)):
        for reading, (h, places) in zip(readings, sites, strict=True):
            # [row, pos] -> [batch, row, pos].
            reading.add(h, torch.nn.functional.pad(places, (1, 0), value=index), batch)
    return [
        found
        for reading, operator in zip(readings, operators, strict=True)
        for found in reading.results(bridge, operator, batches)
    ]


def seen_by(
    bridge: TransformerBridge, reft: Reft, batches: Sequence[Batch], *, at: Positions | None
) -> Iterator[list[tuple[Float[Tensor, "_tokens d_model"], Int[Tensor, "_tokens 2"]]]]:
    """Goes through batches.

    Args:
        bridge: the base.
        reft: the edit.
        batches: the inputs.
        at: only these tokens.

    Yields:
        The input activations of each site of a batch, with their rows and positions.
    """
    for batch, sites in zip(batches, edited_in(bridge, reft, batches), strict=True):
        wanted = batch.prompt_mask if at is None else at.mask(batch.prompts)
        yield [(h[wanted[edit.mask]], (edit.mask & wanted).nonzero().cpu()) for edit, h in sites]


@final
class Moments:
    """Running moments of each coordinate, in float64."""

    def __init__(self) -> None:
        self.n, self.total, self.square = 0, torch.zeros(()), torch.zeros(())

    def add(self, h: Float[Tensor, "tokens d_model"]) -> None:
        h = h.double().cpu()
        self.n += len(h)
        self.total = self.total + h.sum(0)
        self.square = self.square + h.square().sum(0)

    def weight(self) -> Float[Tensor, " d_model"]:
        """Returns 1 / standard deviation of each coordinate; 0 for a coordinate that does not vary."""
        mean, square = self.total / self.n, self.square / self.n
        variance = square - mean.square()
        return torch.where(variance > 1e-12 * square, variance.clamp(min=0).rsqrt(), 0.0)


@final
@dataclass
class Readings:
    """Running moments and largest values of linear readings."""

    rows: Float[Tensor, "reading d_model"]
    top: int
    n_null: int
    n: int = 0
    total: Tensor | float = 0.0
    square: Tensor | float = 0.0
    seen: set[tuple[int, ...]] = field(default_factory=set)
    """Texts up to a listed token. The same text again has the same activation."""
    best: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    """Values `[reading, top]` and places `[reading, top, 3]` (batch, row, position) of each batch."""

    def add(self, h: Float[Tensor, "tokens d_model"], places: Int[Tensor, "tokens 3"], batch: Batch) -> None:
        values = einsum(self.rows, h.double().cpu(), "reading d_model, token d_model -> reading token")
        self.n += values.shape[1]
        self.total = self.total + values.sum(dim=1)
        self.square = self.square + values.square().sum(dim=1)
        fresh = torch.tensor([self._is_new(batch, row, pos) for _, row, pos in places.tolist()], dtype=torch.bool)
        values, places = values[:, fresh], places[fresh]
        # Only the largest of each batch can be among the largest of all.
        found = values.topk(min(self.top, values.shape[1]), dim=1)
        self.best.append((found.values, places[found.indices]))

    def _is_new(self, batch: Batch, row: int, pos: int) -> bool:
        text = tuple(batch.tokens[row, : pos + 1][batch.attention_mask[row, : pos + 1].bool()].tolist())
        new = text not in self.seen
        self.seen.add(text)
        return new

    def largest(self) -> tuple[Float[Tensor, "reading top"], Int[Tensor, "reading top 3"]]:
        """Returns the largest readings, in standard deviations from the mean, and where they are."""
        mean = torch.as_tensor(self.total) / self.n
        spread = (torch.as_tensor(self.square) / self.n - mean.square()).clamp(min=0).sqrt()
        values, places = (torch.cat(column, dim=1) for column in zip(*self.best, strict=True))
        order = values.argsort(dim=1, descending=True)[:, : self.top]
        z = (values.gather(1, order) - mean[:, None]) / spread[:, None]
        return z, torch.stack([row[chosen] for row, chosen in zip(places, order, strict=True)])

    def results(self, bridge: TransformerBridge, operator: Operator, batches: Sequence[Batch]) -> list[ReadContexts]:
        z, places = self.largest()
        shown = len(self.rows) - self.n_null
        null_high = float(z[shown:, 0].quantile(0.95)) if self.n_null else float("nan")
        results = []
        for index in range(shown):
            # Where a direction is written the same everywhere, the order of tokens is rounding.
            reads = float(operator.constant_share[index]) < 1 - 1e-6
            contexts = [
                named_context(bridge, batches, place, float(z[index, rank]))
                for rank, place in enumerate(places[index].tolist())
            ]
            results.append(
                ReadContexts(
                    operator.hook_name,
                    index,
                    tuple(contexts) if reads else (),
                    null_high,
                    self.n,
                    self.n_null,
                    operator.site,
                )
            )
        return results


def named_context(bridge: TransformerBridge, batches: Sequence[Batch], place: Sequence[int], z: float) -> Context:
    """Returns the text of one row, without padding."""
    batch, row, pos = batches[place[0]], place[1], place[2]
    real = batch.attention_mask[row].bool().cpu()
    tokens = str_tokens(bridge, batch.tokens[row].cpu()[real])
    return Context(tokens, int(real[:pos].sum()), z)
