"""Interventions without a constraint: W1 and W2 are free r x d matrices, identified only up to a change of the r coordinates.

(Wu et al. 2024, arXiv:2404.03592: DiReFT drops LoReFT's orthonormal R and its erasure; NoReFT drops
the constraint and keeps the erasure.)
"""

from __future__ import annotations

from typing import final

from jaxtyping import Float
from torch import Tensor, nn

from reftlens.interventions.base import Affine, Intervention, promote


def _linear_start(d_model: int, rank: int) -> nn.Parameter:
    """Initialises W2 as `nn.Linear` initialises its weight."""
    return nn.Parameter(nn.Linear(d_model, rank, bias=False).weight.detach().clone())


@final
class DiReFT(Intervention):
    """DiReFT: h + W2^T(W1 h + b), no constraint on W1 and W2 (Wu et al. 2024, arXiv:2404.03592, eq. 3).

    (pyreft's `DireftIntervention` is a different edit, called `AdditiveLoReFT` here. Its
    `NodireftIntervention` is this one.)
    """

    kind = "direft"

    def __init__(self, d_model: int, rank: int) -> None:
        super().__init__(d_model, rank)
        self.read = nn.Linear(d_model, rank)
        self.write = _linear_start(d_model, rank)

    def delta(self, resid: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        h = promote(resid, self.write)
        W1, b, W2 = (t.to(h.dtype) for t in (self.read.weight, self.read.bias, self.write))
        return ((h @ W1.T + b) @ W2).to(resid.dtype)

    def affine(self) -> Affine:
        return Affine(write=self.write, read=self.read.weight, constant=self.read.bias @ self.write)


@final
class NoReFT(Intervention):
    """NoReFT: h + W2^T(W1 h + b - W2 h), no constraint on W1 and W2.

    An ablation in Wu et al. 2024 (arXiv:2404.03592): LoReFT with a free matrix instead of R. W2^T
    W2 is then not a projection: the erased part is scaled by the squared length of W2's rows.
    """

    kind = "noreft"

    def __init__(self, d_model: int, rank: int) -> None:
        super().__init__(d_model, rank)
        self.read = nn.Linear(d_model, rank)
        self.write = _linear_start(d_model, rank)

    def delta(self, resid: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        h = promote(resid, self.write)
        W1, b, W2 = (t.to(h.dtype) for t in (self.read.weight, self.read.bias, self.write))
        return ((h @ W1.T + b - h @ W2.T) @ W2).to(resid.dtype)

    def affine(self) -> Affine:
        W2 = self.write
        return Affine(write=W2, read=self.read.weight - W2, constant=self.read.bias @ W2, erase=W2)
