"""Do two edits, or an edit and any other subspace, share directions? Principal angles, each with its null.

score = |U^T V|_F^2 / min(rank) = mean cos^2 of the principal angles (`projection_kernel` of TransformerLens). The
first subspace is redrawn many times under a null, the second stays:

- `covariance_matched`, the null of given activations unless others are named: spanned by S^(1/2) g, random but as long in
  each direction as the activations are. Activations are far from round, so two subspaces that both follow their large
  directions beat a Haar null without having anything else in common.
- `haar`: a random subspace, every direction alike. Right for what was never trained, such as R as it is drawn. Trained
  edits that share nothing beat it most of the time: it says nothing about them.
- `random_readings`: spanned by S g, what random linear readings of the activations answer to (`Operator.pattern`).

Only subspaces of one activation space can be compared: the same hook of the same model. Training at one site of one model
makes edits alike in more than their activations explain, so of two trained edits no null here is quite right:
`agreement` compares what they do, with edits trained on shuffled answers as its null.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from reftlens.results import Operator, Overlap

Null = Callable[[int, torch.Generator], Tensor]
"""(rank, generator) -> a random subspace `[rank, d_model]`, rows of any length, in float64 on the CPU."""


def directions(operator: Operator, rank: int, *, side: Literal["write", "read"] = "write") -> Float[Tensor, "rank d"]:
    """Orthonormal rows that span an edit's strongest directions, as the data weigh them.

    Args:
        operator: from `decompose`.
        rank: how many.
        side: "write", or "read" for what the readings of these directions answer to.

    Raises:
        ValueError: if the edit does not use that many, or reads nothing in one of them.
    """
    rows = operator.write if side == "write" else operator.pattern
    moving = rows[:rank].double().norm(dim=-1) > 0
    if not 1 <= rank <= len(rows) or not bool(moving.all()):
        raise ValueError(
            f"the edit at {operator.hook_name} has {len(rows)} directions, and wanted are {rank} that {side} something: "
            f"lower the rank"
        )
    return torch.linalg.qr(rows[:rank].double().T).Q.T


def haar(d_model: int) -> Null:
    """Random subspaces without any preferred direction.

    Args:
        d_model: width of the activations.
    """
    return lambda rank, generator: torch.randn(rank, d_model, generator=generator, dtype=torch.float64)


def covariance_matched(activations: Float[Tensor, "n d_model"]) -> Null:
    """Random subspaces with the covariance of these activations, without forming it: random sums of centred rows.

    Args:
        activations: natural ones, of the site that is asked about.
    """
    centred = _centred(activations)
    return lambda rank, generator: torch.randn(rank, len(centred), generator=generator, dtype=torch.float64) @ centred


def random_readings(activations: Float[Tensor, "n d_model"]) -> Null:
    """What random linear readings of these activations answer to.

    Args:
        activations: natural ones, of the site that is asked about.
    """
    centred = _centred(activations)
    return lambda rank, generator: (haar(centred.shape[1])(rank, generator) @ centred.T) @ centred


def overlap(
    first: Float[Tensor, "k d_first"],
    second: Float[Tensor, "m d_second"],
    activations: Float[Tensor, "n d_model"] | None = None,
    *,
    nulls: Mapping[str, Null] | None = None,
    n_null: int = 999,
    names: tuple[str, str] = ("first", "second"),
    seed: int = 0,
) -> Overlap:
    """Principal angles between the spans of two sets of rows.

    Args:
        first: rows, of any length; its span is what the nulls redraw.
        second: rows of the other.
        activations: natural ones, of the site that is asked about; for the covariance-matched null.
        nulls: name -> null, in place of the covariance-matched one. Without these and without activations, angles and score
            come without a null, which is no evidence of anything shared.
        n_null: draws from each.
        names: of the two, for a reader.
        seed: draws the nulls.

    Raises:
        ValueError: for rows of different widths, or a subspace whose rows are not independent, or activations as well as
            nulls.
    """
    from transformer_lens.tools.analysis.projection_kernel import orthonormal_subspace, projection_kernel

    if first.shape[1] != second.shape[1]:
        raise ValueError(
            f"wanted two subspaces of one space, rows [k, d_model], got {list(first.shape)} and {list(second.shape)}"
        )
    if activations is not None and nulls is not None:
        raise ValueError("wanted activations or nulls, got both: put covariance_matched(activations) into nulls")
    # An explicit rank makes it refuse rows that are not independent.
    bases = [orthonormal_subspace(r.detach().cpu().double().T, rank=len(r), rtol=1e-9) for r in (first, second)]
    cosines = projection_kernel(*bases).cosines
    chosen = nulls or {}
    if activations is not None:
        chosen = {"covariance-matched": covariance_matched(activations)}
    scores, angles = {}, {}
    for name, null in chosen.items():
        generator = torch.Generator().manual_seed(seed)
        draws = _cosines(torch.stack([null(len(first), generator) for _ in range(n_null)]), bases[1].basis)
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
    """As `projection_kernel`, for many subspaces at once."""
    return torch.linalg.svdvals(torch.linalg.qr(rows.mT).Q.mT @ basis).clamp(max=1)


def _centred(activations: Tensor) -> Float[Tensor, "n d_model"]:
    rows = activations.detach().cpu().double()
    return rows - rows.mean(dim=0)
