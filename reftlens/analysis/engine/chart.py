"""Coordinates of the ways in which one site's edit may change, and what each costs the outputs (see `identify`).

Two changes of the matrices that change nothing (the gauge) are not in these coordinates: a write
direction moves only outside the space that is written, and inside it only the reading changes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from reftlens.analysis.engine.output_metric import Pulls
from reftlens.results import Operator

_UNSEEN = 1e-6
"""Part of an average direction's energy below which outputs do not see a direction: rounding error."""
_MET = 1e-10
"""Part of the largest variance below which activations do not vary: the rounding error of float32, squared, is 1e-14."""
MOST = 16
"""Write directions of a site that are looked at, the strongest ones."""

Own = Float[Tensor, "own dimension"]
Other = Float[Tensor, "other dimension"]


def strongest(operator: Operator) -> Operator:
    """Returns the operator with its `MOST` strongest directions, because an edit of every coordinate (RED) has d_model.

    Args:
        operator: from `decompose`.
    """
    names = ("write", "read", "constant", "spectrum", "constant_share", "pattern")
    return replace(operator, **{name: getattr(operator, name)[:MOST] for name in names})


def held_out_curvature(own: Own, other: Other) -> tuple[Float[Tensor, " dimension"], Float[Tensor, "axis dimension"]]:
    """Computes the curvature of each dimension, with axes from some rows and values from others.

    Values on the rows that chose the axes would be too extreme at both ends. Axes that the first
    rows do not reach share the mean of what the others have there.

    Args:
        own: rows that choose the axes.
        other: rows that give the values.

    Returns:
        The values, stiffest axis first, and the axes that the rows reach.
    """
    axes = torch.linalg.svd(own, full_matrices=False).Vh
    values = (other @ axes.T).square().sum(0)
    unreached = own.shape[1] - len(axes)
    if unreached:
        # What is left of the trace, since curvatures of a whole basis sum to it.
        rest = (other.square().sum() - values.sum()).clamp(min=0) / unreached
        values = torch.cat([values, rest.expand(unreached)])
    return values, axes


@final
@dataclass(frozen=True, eq=False)
class Chart:
    """One site: its directions, and the derivatives of the outputs on two halves of the prompts."""

    operator: Operator
    own: Pulls
    """Of the half that axes come from."""
    other: Pulls
    """Of the half that values come from."""

    @property
    def rank(self) -> int:
        return len(self.operator.write)

    @cached_property
    def write(self) -> Float[Tensor, "direction d_model"]:
        return self.operator.write.double()

    @cached_property
    def reading(self) -> Float[Tensor, "direction d_model"]:
        return self.operator.read.double()

    @cached_property
    def mean_unseen(self) -> bool:
        """Whether outputs do not change when all coordinates move together: LayerNorm subtracts their mean."""
        push = self.own.push
        # push . (1, ..., 1) is the derivative along that direction.
        return bool(push.sum(1).square().sum() < _UNSEEN * push.square().sum())

    @cached_property
    def outside(self) -> Float[Tensor, "d_model dimension"]:
        """An orthonormal basis of the directions that a write direction may turn to: neither written already, nor unseen."""
        known = self.write.T
        if self.mean_unseen:
            known = torch.cat([known, torch.ones(len(known), 1, dtype=known.dtype)], dim=1)
        # Left vectors past the numerical rank span the complement.
        vectors, sizes, _ = torch.linalg.svd(known, full_matrices=True)
        return vectors[:, int((sizes > 1e-6 * sizes[0]).sum()) :]

    def write_rows(self, k: int) -> tuple[Own, Other]:
        """Returns derivatives by the tangent of the angle of a write direction, on both halves; in all coordinates."""
        return self.own.write[:, k], self.other.write[:, k]

    def centre(self, k: int) -> Float[Tensor, " d_model"]:
        """Returns the activation around which a reading may turn without a change of the mean output: E[f h] / E[f].

        For it, the best constant is refitted: it is a mean of the activations, weighted by what
        their change does.
        """
        felt = self.own.constant[:, k]
        # Over probes, felt^2 averages to f = u^T M u, and felt * read to f h.
        return felt @ self.own.read[:, k] / felt.square().sum().clamp(min=1e-30)

    def beside_reading(self, k: int) -> Float[Tensor, "d_model dimension"]:
        """An orthonormal basis of the directions that a reading may turn to; of all directions, if it reads nothing."""
        row = self.reading[k]
        # The first left vector is the reading itself.
        return torch.linalg.svd(row[:, None], full_matrices=True).U[:, int(row.norm() > 0) :]

    def read_rows(self, k: int) -> tuple[Own, Other]:
        """Returns derivatives by the tangent of the angle of a reading, the constant refitted, on both halves."""
        centre, size = self.centre(k), self.reading[k].norm()
        own, other = (size * (half.read[:, k] - half.constant[:, k, None] * centre) for half in (self.own, self.other))
        return own, other

    @cached_property
    def inputs(self) -> Float[Tensor, "token d_model"]:
        return torch.cat([self.own.inputs, self.other.inputs])

    @cached_property
    def n_met(self) -> int:
        """Number of dimensions in which the inputs vary."""
        variance = _squared_singular_values(self.inputs - self.inputs.mean(0))
        return int((variance > _MET * variance[0]).sum()) if float(variance[0]) > 0 else 0

    @cached_property
    def whitening(self) -> Float[Tensor, "d_model_and_one feature"]:
        """Maps (h, 1) to features that are uncorrelated on the inputs, with a mean square of one."""
        return _whitening(torch.cat([self.inputs, torch.ones(len(self.inputs), 1, dtype=torch.float64)], dim=1))

    @cached_property
    def function_rows(self) -> tuple[Own, Other]:
        """Returns derivatives by the function A h + c, on both halves.

        A unit of a coordinate changes the output along one direction, or the direction itself, by
        as much as the edit moves along it (root mean square). Changes of the matrices that leave
        the function as it is on these inputs have no coordinate.
        """
        moved = (self.inputs @ self.reading.T + self.operator.constant.double()).square().mean(0).sqrt()
        own, other = (
            torch.cat(
                [
                    (half.write @ self.outside).flatten(1),
                    (
                        torch.cat([half.read, half.constant[..., None]], dim=-1) @ self.whitening * moved[:, None]
                    ).flatten(1),
                ],
                dim=1,
            )
            for half in (self.own, self.other)
        )
        return own, other


def _squared_singular_values(rows: Float[Tensor, "n d"]) -> Float[Tensor, " k"]:
    return torch.linalg.svdvals(_short(rows)).square()


def _whitening(rows: Float[Tensor, "n d"]) -> Float[Tensor, "d feature"]:
    _, sizes, axes = torch.linalg.svd(_short(rows), full_matrices=False)
    kept = sizes.square() > _MET * sizes[0].square()
    return axes[kept].T / sizes[kept] * len(rows) ** 0.5


def _short(rows: Float[Tensor, "n d"]) -> Float[Tensor, "k d"]:
    """Returns at most d rows with the same second moments."""
    return torch.linalg.qr(rows, mode="r").R if len(rows) > rows.shape[1] else rows
