"""Do two edits, or an edit and another subspace, share directions? Computes principal angles with null distributions.

score = |U^T V|_F^2 / min(rank) = mean cos^2 of the principal angles (`projection_kernel` of
TransformerLens). Under a null, the first subspace is redrawn many times, and the second is fixed:

- `covariance_matched`, the default null if activations are given: spanned by S^(1/2) g, random
  vectors with the covariance of the activations. Activations are far from isotropic. Two subspaces
  that both follow the large directions exceed a Haar null without having anything else in common.
- `haar`: a uniformly random subspace. It is the right null for untrained subspaces, such as R at
  initialisation. Unrelated trained edits exceed it most of the time, so it says nothing about them.
- Given subspaces of the same dimension, such as those of edits trained on shuffled answers
  (`null_edits`) or of alignments trained on arbitrary labels (`null_alignments`): they share
  everything with the first but what it was trained for.
- `random_readings`: spanned by S g, the patterns of random linear readings of the activations
  (`Operator.pattern`).

Only subspaces of one activation space can be compared: the same hook of the same model. Edits
trained at one site of one model are more similar than their activations explain, so no null here is
quite right for two trained edits. `agreement` compares their effects, with edits trained on
shuffled answers as its null.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from reftlens.results import Operator, Overlap

Null = Callable[[int, torch.Generator], Tensor]
"""(rank, generator) -> a random subspace `[rank, d_model]`, rows of any length, in float64 on the CPU."""


def directions(operator: Operator, rank: int, *, side: Literal["write", "read"] = "write") -> Float[Tensor, "rank d"]:
    """Returns orthonormal rows that span an edit's strongest directions, weighted by the data.

    Args:
        operator: from `decompose`.
        rank: number of directions.
        side: "write", or "read" for the patterns of activations that these directions read.

    Raises:
        ValueError: If the edit uses fewer directions, or one of them does not read anything.
    """
    rows = operator.write if side == "write" else operator.pattern
    moving = rows[:rank].double().norm(dim=-1) > 0
    if not 1 <= rank <= len(rows) or not bool(moving.all()):
        raise ValueError(
            f"rank must be at least 1 and at most the number of nonzero {side} directions of the edit at "
            f"{operator.hook_name}, got {rank}"
        )
    return torch.linalg.qr(rows[:rank].double().T).Q.T


def haar(d_model: int) -> Null:
    """Makes a null of uniformly random subspaces.

    Args:
        d_model: width of the activations.
    """
    return lambda rank, generator: torch.randn(rank, d_model, generator=generator, dtype=torch.float64)


def covariance_matched(activations: Float[Tensor, "n d_model"]) -> Null:
    """Makes a null of random subspaces with the covariance of these activations, as random sums of centred rows.

    Args:
        activations: unedited activations of the site.
    """
    centred = _centred(activations)
    return lambda rank, generator: torch.randn(rank, len(centred), generator=generator, dtype=torch.float64) @ centred


def random_readings(activations: Float[Tensor, "n d_model"]) -> Null:
    """Makes a null of the patterns that random linear readings of these activations respond to.

    Args:
        activations: unedited activations of the site.
    """
    centred = _centred(activations)
    # S r for a random reading r, times n, which leaves the span as it is.
    return lambda rank, generator: (haar(centred.shape[1])(rank, generator) @ centred.T) @ centred


def overlap(
    first: Float[Tensor, "k d_first"],
    second: Float[Tensor, "m d_second"],
    activations: Float[Tensor, "n d_model"] | None = None,
    *,
    nulls: Mapping[str, Null | Sequence[Tensor]] | None = None,
    n_null: int = 999,
    names: tuple[str, str] = ("first", "second"),
    seed: int = 0,
) -> Overlap:
    """Computes principal angles between the spans of two sets of rows.

    Args:
        first: rows, of any norm. The nulls redraw their span.
        second: rows of the other subspace.
        activations: unedited activations of the site, for the covariance-matched null.
        nulls: name -> null, or a list of subspaces that are all of its draws; in place of the
            covariance-matched one. Without nulls and activations, the result has no null, and is
            not evidence of shared directions.
        n_null: draws from each null, except those that are given.
        names: names of the two subspaces, for display.
        seed: seed of the nulls.

    Raises:
        ValueError: If the rows have different widths, the rows of a subspace are linearly
            dependent, or both activations and nulls are given.
    """
    from transformer_lens.tools.analysis.projection_kernel import orthonormal_subspace, projection_kernel

    if first.shape[1] != second.shape[1]:
        raise ValueError(
            f"both subspaces must have rows of the same width, [k, d_model], got {list(first.shape)} and "
            f"{list(second.shape)}"
        )
    if activations is not None and nulls is not None:
        raise ValueError("pass activations or nulls, not both: add covariance_matched(activations) to nulls")
    # With an explicit rank, the function raises for linearly dependent rows.
    bases = [orthonormal_subspace(r.detach().cpu().double().T, rank=len(r), rtol=1e-9) for r in (first, second)]
    cosines = projection_kernel(*bases).cosines
    chosen: Mapping[str, Null | Sequence[Tensor]] = nulls or {}
    if activations is not None:
        chosen = {"covariance-matched": covariance_matched(activations)}
    scores, angles = {}, {}
    for name, null in chosen.items():
        # Anew for each null, so that adding one does not change the draws of the others.
        generator = torch.Generator().manual_seed(seed)
        drawn = [null(len(first), generator) for _ in range(n_null)] if callable(null) else list(null)
        draws = _cosines(torch.stack([rows.detach().cpu().double() for rows in drawn]), bases[1].basis)
        scores[name] = draws.square().mean(dim=1).float()
        angles[name] = torch.rad2deg(torch.acos(draws)).mean(dim=0).float()
    return Overlap(
        first=names[0],
        second=names[1],
        angles=torch.rad2deg(torch.acos(cosines)).float(),
        score=float(cosines.square().mean()),
        null_scores=scores,
        null_angles=angles,
    )


def _cosines(rows: Float[Tensor, "n k d_model"], basis: Float[Tensor, "d_model m"]) -> Float[Tensor, "n angle"]:
    """Does the same as `projection_kernel`, for many subspaces at once."""
    # Rounding may give a cosine above 1, whose acos is NaN.
    return torch.linalg.svdvals(torch.linalg.qr(rows.mT).Q.mT @ basis).clamp(max=1)


def _centred(activations: Tensor) -> Float[Tensor, "n d_model"]:
    rows = activations.detach().cpu().double()
    return rows - rows.mean(dim=0)
