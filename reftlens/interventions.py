"""The family of edits. Each class opens with its equation; all share one contract.

An intervention maps activations `resid [..., d_model]` to `resid + delta(resid)`. A member of the family
implements `delta` and `affine`, names its settings, and nothing else: norms, ledgers and dissections all read
`delta` and `affine`, so they work on a new member unchanged.

Every member is affine, delta(h) = A h + c, with A = write^T read of rank at most r, kept as two factors and never
as a d x d matrix. Parameters are float32; an edit inside a bfloat16 model is computed in float32 and cast.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple, final

import torch
from jaxtyping import Float
from torch import Tensor, nn


class Affine(NamedTuple):
    """delta(h) = write^T (read h) + constant, in factors."""

    write: Float[Tensor, "rank d_model"]
    read: Float[Tensor, "rank d_model"]
    constant: Float[Tensor, " d_model"]


class Intervention(nn.Module, ABC):
    """An edit of one activation: `forward(resid) = resid + delta(resid)`, never overridden."""

    kind: ClassVar[str]
    """Name in checkpoints."""

    def __init__(self, d_model: int, rank: int) -> None:
        super().__init__()
        for name, value in (("d_model", d_model), ("rank", rank)):
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(f"{name} must be an integer, got {value!r}")
        if d_model < 1:
            raise ValueError(f"d_model must be at least 1, got {d_model}")
        if not 1 <= rank <= d_model:
            raise ValueError(f"rank must be in [1, {d_model}] (the width of the activation), got {rank}")
        self.d_model = d_model
        self.rank = rank

    @abstractmethod
    def delta(self, resid: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        """The change that the edit makes, in the dtype of `resid`."""

    @abstractmethod
    def affine(self) -> Affine:
        """The same change as factors of A and the constant c."""

    def forward(self, resid: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        return resid + self.delta(resid)

    def settings(self) -> dict[str, object]:
        """The constructor's arguments, as plain JSON values."""
        return {"d_model": self.d_model, "rank": self.rank}

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self.settings().items())


class Orthonormal(nn.Module):
    """A matrix R `[rank, d_model]` with orthonormal rows, under any optimiser.

    The parameter is R itself. Its gradient is projected to the tangent of the manifold, G - sym(G R^T) R. Each use
    checks R R^T, an r x r matrix, and where an optimiser has moved R off the manifold retracts it by QR: once per
    step, however many hooks read it. (A version counter would be cheaper, and wrong: the fused AdamW that
    `transformers.Trainer` uses does not advance it.) Weight decay only shortens R, and QR restores it: no rank is
    lost, where the Householder parametrisation of the reference code becomes exactly zero. No d x d buffer is kept,
    and what is saved is R.
    """

    def __init__(self, rank: int, d_model: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(nn.init.orthogonal_(torch.empty(rank, d_model)))

    def forward(self) -> Float[Tensor, "rank d_model"]:
        self._retract()
        return _TangentGradient.apply(self.weight)

    @torch.no_grad()
    def _retract(self) -> None:
        """Puts the rows back on the manifold; leaves them to the bit where they already lie on it."""
        weight = self.weight.to(torch.promote_types(self.weight.dtype, torch.float32))
        off = (weight @ weight.T - torch.eye(len(weight), dtype=weight.dtype, device=weight.device)).abs().max()
        if float(off) <= (1e-12 if weight.dtype == torch.float64 else 1e-6):
            return
        if not bool(torch.isfinite(off)):
            raise ValueError("R holds NaN or infinite values; training has diverged: lower the learning rate")
        Q, upper = torch.linalg.qr(weight.T)
        # The sign that continues R, so that a small step of the optimiser stays a small step.
        Q = torch.where(upper.diagonal() < 0, -Q, Q)
        self.weight.copy_(Q.T)


class _TangentGradient(torch.autograd.Function):
    """Identity forward; backward removes the part of the gradient that leaves the manifold."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, R: Tensor) -> Tensor:
        ctx.save_for_backward(R)
        return R.view_as(R)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> Tensor:
        (R,) = ctx.saved_tensors  # type: ignore[attr-defined]
        gram = grads[0] @ R.T
        return grads[0] - 0.5 * (gram + gram.T) @ R


def _promote(resid: Tensor, parameter: Tensor) -> Tensor:
    """The activation in the dtype in which the edit is computed."""
    return resid.to(torch.promote_types(resid.dtype, parameter.dtype))


@final
class LoReFT(Intervention):
    """LoReFT: h + R^T(Wh + b - Rh), R with orthonormal rows (Wu et al. 2024, arXiv:2404.03592, eq. 2).

    As in the paper, W and b start as `nn.Linear` does, so an untrained edit is not the identity: it already
    replaces Rh by Wh + b.
    """

    kind = "loreft"

    def __init__(self, d_model: int, rank: int) -> None:
        super().__init__(d_model, rank)
        self.rotation = Orthonormal(rank, d_model)
        self.source = nn.Linear(d_model, rank)

    @property
    def R(self) -> Float[Tensor, "rank d_model"]:
        """The subspace, rows orthonormal. Known only up to a rotation of its rows: not an answer by itself."""
        return self.rotation()

    def delta(self, resid: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        h = _promote(resid, self.source.weight)
        R, W, b = (t.to(h.dtype) for t in (self.R, self.source.weight, self.source.bias))
        return ((h @ W.T + b - h @ R.T) @ R).to(resid.dtype)

    def affine(self) -> Affine:
        R = self.R
        return Affine(write=R, read=self.source.weight - R, constant=self.source.bias @ R)


@final
class DiReFT(Intervention):
    """DiReFT: h + W2^T(W1 h + b), no constraint on W1 and W2 (Wu et al. 2024, arXiv:2404.03592, eq. 3).

    (pyreft's class of the name `DireftIntervention` is another edit; its `NodireftIntervention` is this one.)
    """

    kind = "direft"

    def __init__(self, d_model: int, rank: int) -> None:
        super().__init__(d_model, rank)
        self.read = nn.Linear(d_model, rank)
        self.write = nn.Parameter(nn.Linear(d_model, rank, bias=False).weight.detach().clone())

    def delta(self, resid: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        h = _promote(resid, self.write)
        W1, b, W2 = (t.to(h.dtype) for t in (self.read.weight, self.read.bias, self.write))
        return ((h @ W1.T + b) @ W2).to(resid.dtype)

    def affine(self) -> Affine:
        return Affine(write=self.write, read=self.read.weight, constant=self.read.bias @ self.write)


FAMILY: tuple[type[Intervention], ...] = (LoReFT, DiReFT)
"""Every member that a checkpoint may name. A new intervention is one class above and one word here."""
