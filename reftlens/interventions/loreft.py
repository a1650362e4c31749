"""Interventions that write inside a learned subspace: R has orthonormal rows, and the change is R^T times r numbers.

LoReFT is interchange with a learned source, Rs = Wh + b. The others are its ablations (Wu et al.
2024, arXiv:2404.03592, section 3 and appendix), with a constant target or without erasure.
"""

from __future__ import annotations

from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from reftlens.interventions.base import Affine, Intervention, promote
from reftlens.interventions.orthonormal import Orthonormal


@final
class LoReFT(Intervention):
    """LoReFT: h + R^T(Wh + b - Rh), R with orthonormal rows (Wu et al. 2024, arXiv:2404.03592, eq. 2).

    As in the paper, W and b are initialised as in `nn.Linear`, so an untrained edit is not the
    identity: it already replaces Rh by Wh + b.
    """

    kind = "loreft"

    def __init__(self, d_model: int, rank: int) -> None:
        super().__init__(d_model, rank)
        self.rotation = Orthonormal(rank, d_model)
        self.source = nn.Linear(d_model, rank)

    @classmethod
    def along(cls, basis: Float[Tensor, "rank d_model"]) -> LoReFT:
        """Creates a LoReFT that starts in a given subspace, such as one that DAS found, and does not change anything yet.

        With W = R and b = 0 the source is the activation itself. Training may turn R away from the
        given rows.

        Args:
            basis: orthonormal rows.

        Raises:
            ValueError: If the rows are not orthonormal.
        """
        edit = cls(basis.shape[1], basis.shape[0]).to(basis.device)
        edit.rotation.start_at(basis)
        with torch.no_grad():
            edit.source.weight.copy_(basis)
            edit.source.bias.zero_()
        return edit

    @property
    def R(self) -> Float[Tensor, "rank d_model"]:
        """The subspace, with orthonormal rows. Training identifies it only up to a rotation of the rows."""
        return self.rotation()

    def delta(self, resid: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        h = promote(resid, self.source.weight)
        R, W, b = (t.to(h.dtype) for t in (self.R, self.source.weight, self.source.bias))
        # Summed in the r coordinates first, so that R writes once.
        return ((h @ W.T + b - h @ R.T) @ R).to(resid.dtype)

    def affine(self) -> Affine:
        R = self.R
        return Affine(write=R, read=self.source.weight - R, constant=self.source.bias @ R, erase=R)


@final
class AdditiveLoReFT(Intervention):
    """LoReFT without erasure: h + R^T(Wh + b), R with orthonormal rows (an ablation in Wu et al. 2024).

    The names differ from pyreft's: pyreft calls this class `DireftIntervention`. The paper's DiReFT
    has no constraint on its matrices. It is `NodireftIntervention` in pyreft and `DiReFT` here.
    """

    kind = "additive-loreft"

    def __init__(self, d_model: int, rank: int) -> None:
        super().__init__(d_model, rank)
        self.rotation = Orthonormal(rank, d_model)
        self.source = nn.Linear(d_model, rank)

    @property
    def R(self) -> Float[Tensor, "rank d_model"]:
        """The subspace, with orthonormal rows."""
        return self.rotation()

    def delta(self, resid: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        h = promote(resid, self.source.weight)
        R, W, b = (t.to(h.dtype) for t in (self.R, self.source.weight, self.source.bias))
        return ((h @ W.T + b) @ R).to(resid.dtype)

    def affine(self) -> Affine:
        R = self.R
        return Affine(write=R, read=self.source.weight, constant=self.source.bias @ R)


@final
class ConsReFT(Intervention):
    """ConsReFT: h + R^T(b - Rh), R with orthonormal rows: a constant target inside the subspace.

    An ablation in Wu et al. 2024 (arXiv:2404.03592). As in the reference code, b is initialised
    uniformly in [0, 1).
    """

    kind = "consreft"

    def __init__(self, d_model: int, rank: int) -> None:
        super().__init__(d_model, rank)
        self.rotation = Orthonormal(rank, d_model)
        self.target = nn.Parameter(torch.rand(rank))

    @property
    def R(self) -> Float[Tensor, "rank d_model"]:
        """The subspace, with orthonormal rows."""
        return self.rotation()

    def delta(self, resid: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        h = promote(resid, self.target)
        R, b = (t.to(h.dtype) for t in (self.R, self.target))
        return ((b - h @ R.T) @ R).to(resid.dtype)

    def affine(self) -> Affine:
        R = self.R
        return Affine(write=R, read=-R, constant=self.target @ R, erase=R)


@final
class LobiReFT(Intervention):
    """LobiReFT: h + R^T b, R with orthonormal rows: the same push for every activation.

    An ablation in Wu et al. 2024 (arXiv:2404.03592): a steering vector with more parameters than it
    needs, since R^T b is a single vector. As in the reference code, b is initialised uniformly in
    [0, 1).
    """

    kind = "lobireft"

    def __init__(self, d_model: int, rank: int) -> None:
        super().__init__(d_model, rank)
        self.rotation = Orthonormal(rank, d_model)
        self.target = nn.Parameter(torch.rand(rank))

    @property
    def R(self) -> Float[Tensor, "rank d_model"]:
        """The orthonormal rows that b weights."""
        return self.rotation()

    def delta(self, resid: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        return (self.target @ self.R).to(resid.dtype).expand_as(resid)

    def affine(self) -> Affine:
        R = self.R
        # There is no low-rank part: only the vector R^T b is ever written.
        return Affine(write=R[:0], read=R[:0], constant=self.target @ R)
