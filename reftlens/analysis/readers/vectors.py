"""The vectors of an edit that methods read, each with the random vectors that take its place in the null.

A write direction of rms size s stands beside random directions of length s. A read direction stands
beside random linear readings, with each coordinate divided by its standard deviation. The change of
real tokens, a matrix of rank r, stands beside the same matrix with its r directions turned to
random ones: lengths and angles between tokens are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, final

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from reftlens.analysis.engine.activations import edited_activations, final_residuals
from reftlens.analysis.top_contexts import Moments, seen_by
from reftlens.data import Batch, first_rows
from reftlens.edit.reft import Reft
from reftlens.positions import Positions
from reftlens.results import Operator

READ_AT = 8
"""Prompts whose final residuals write directions are added to, and whose changes are read."""

Kind = Literal["write", "read", "change"]


@final
@dataclass(frozen=True, eq=False)
class Case:
    """One edit to be read, with what its methods share."""

    bridge: TransformerBridge
    reft: Reft
    batches: Sequence[Batch]
    operators: Sequence[Operator]
    at: Positions | None
    directions: int
    top: int
    n_null: int
    seed: int
    options: dict[str, Any] = field(default_factory=dict)
    """What only one method uses, by the name of the argument."""

    @cached_property
    def few(self) -> Batch:
        """The first prompts."""
        return first_rows(self.batches[0], READ_AT)

    @cached_property
    def final(self) -> Float[Tensor, "prompt d_model"]:
        """Their last residuals after the last block."""
        return final_residuals(self.bridge, self.few)


@final
@dataclass(frozen=True, eq=False)
class Look:
    """One vector of one site, or the changes of several tokens there, with random ones in its place."""

    place: int
    """Index of the site."""
    kind: Kind
    name: str
    vectors: Float[Tensor, "set token d_model"]
    """The edit's own first, then the random sets. A direction counts as one token."""
    states: Float[Tensor, "token d_model"] | None = None
    """The activations before the change."""


def looks_of(case: Case, kinds: Sequence[Kind]) -> list[Look]:
    """Returns the vectors of these kinds, site by site.

    Args:
        case: the edit.
        kinds: what the methods read.
    """
    generator = torch.Generator().manual_seed(case.seed)
    weights = _weights(case) if "read" in kinds else []
    inputs = edited_activations(case.bridge, case.reft, case.few) if "change" in kinds else []
    found = []
    for place, operator in enumerate(case.operators):
        shown = range(min(case.directions, len(operator.write)))
        if "write" in kinds:
            found += [_write(place, operator, index, case.n_null, generator) for index in shown]
        if "read" in kinds:
            # A constant direction reads nothing.
            reading = [index for index in shown if float(operator.constant_share[index]) < 1 - 1e-6]
            found += [_read(place, operator, index, weights[place], case.n_null, generator) for index in reading]
        if "change" in kinds:
            found.append(_change(case, place, *inputs[place], generator))
    return found


def _weights(case: Case) -> list[Float[Tensor, " d_model"]]:
    moments = [Moments() for _ in case.operators]
    for seen in seen_by(case.bridge, case.reft, case.batches, at=case.at):
        for moment, (h, _) in zip(moments, seen, strict=True):
            moment.add(h)
    return [moment.weight() for moment in moments]


def _write(place: int, operator: Operator, index: int, n_null: int, generator: torch.Generator) -> Look:
    random = torch.randn(n_null, operator.write.shape[1], generator=generator)
    # A normal vector has a uniform direction; all get the length s of the edit's own.
    units = torch.nn.functional.normalize(torch.cat([operator.write[index][None], random]), dim=-1)
    return Look(place, "write", f"write {index}", operator.spectrum[index] * units[:, None])


def _read(
    place: int,
    operator: Operator,
    index: int,
    weight: Float[Tensor, " d_model"],
    n_null: int,
    generator: torch.Generator,
) -> Look:
    # A reading's units are those of its coordinates, so the null is random in standard deviations.
    random = torch.randn(n_null, operator.read.shape[1], generator=generator).double() * weight
    rows = torch.cat([operator.read[index].double()[None], random])
    return Look(place, "read", f"read {index}", rows[:, None])


def _change(case: Case, place: int, edit: Any, h: Float[Tensor, "tokens d_model"], generator: torch.Generator) -> Look:
    """Takes the last edited token of each prompt."""
    wanted = case.few.prompt_mask if case.at is None else case.at.mask(case.few.prompts)
    row, column = (edit.mask & wanted).nonzero(as_tuple=True)
    last = torch.ones(len(row), dtype=torch.bool, device=row.device)
    # Rows come in order, so the last token of each is followed by another row's.
    last[:-1] = row[1:] != row[:-1]
    chosen = torch.zeros_like(edit.mask)
    chosen[row[last], column[last]] = True
    at = chosen[edit.mask]
    change, states = edit.change(h)[at].float().cpu(), h[at].float().cpu()
    return Look(place, "change", "change", turned_sets(change, case.n_null, generator), states)


def turned_sets(
    change: Float[Tensor, "token d_model"], n_null: int, generator: torch.Generator
) -> Float[Tensor, "set token d_model"]:
    """Returns the changes, then the same changes in random directions: change = C B becomes C B', with random rows B'.

    Args:
        change: one row per token.
        n_null: number of random sets.
        generator: of the directions.
    """
    left, size, right = torch.linalg.svd(change.double(), full_matrices=False)
    used = size > 1e-6 * size.max().clamp(min=1e-30)
    # C holds lengths and angles between tokens; only B, the directions, is drawn anew.
    inside = left[:, used] * size[used]
    random = torch.randn(n_null, right.shape[1], int(used.sum()), generator=generator, dtype=torch.float64)
    frames, triangle = torch.linalg.qr(random)
    # LAPACK chooses signs; with those of the diagonal, the frames are uniform (Mezzadri 2007).
    frames = frames * triangle.diagonal(dim1=-2, dim2=-1).sign()[:, None]
    turned = einsum(inside, frames, "token rank, draw d_model rank -> draw token d_model")
    return torch.cat([change[None], turned.float()])
