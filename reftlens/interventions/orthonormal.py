"""A parameter R that keeps orthonormal rows, R R^T = I, under any optimiser."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from reftlens.interventions.base import keep_float32


class Orthonormal(nn.Module):
    """A matrix R `[rank, d_model]` with orthonormal rows, under any optimiser.

    The parameter is R itself. Its gradient is projected to the tangent space of the manifold, G -
    sym(G R^T) R. Each use checks R R^T, an r x r matrix. If an optimiser has moved R off the
    manifold, QR retracts it, once per step for any number of hooks. (A version counter would be
    cheaper but wrong: the fused AdamW that `transformers.Trainer` uses does not advance it.) There
    is no d x d buffer, and R is what is saved. Like every edit it stays in float32 under
    `.to(torch.bfloat16)`.

    Comparison with the reference's form of R, torch's Householder parametrisation
    (`orthogonal_map="householder"`):

    - Weight decay only shortens R, and QR restores it, so no rank is lost. Householder's R is
      exactly zero after one step of AdamW with weight decay.
    - The manifold is the same but the path differs: Adam scales each entry of R here, and of the
      reflections there. On one planted problem (`tests/benchmarks/orthonormal.py`: d 64, rank 4,
      one start) the loss of both falls from 0.3 to below 1e-13, and Householder's falls sooner at
      small rates: at lr 9e-4 the loss after 300 steps is 0.019 here and 0.007 there, after 1000
      1.9e-5 and 2.5e-6. At lr 2e-2 they are alike up to 100 steps (5.0e-6 and 5.6e-6).
    - A step of a 12-layer model of width 768 on 1 x 32 tokens, with 12 edits of rank 4, takes 1.03
      times the bare model's on one CPU thread, and 1.22 times with Householder (the same script).
    """

    def __init__(self, rank: int, d_model: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(nn.init.orthogonal_(torch.empty(rank, d_model)))
        # A state dict saved right after an optimiser step must also hold an orthonormal R.
        self.register_state_dict_pre_hook(_on_manifold)

    def forward(self, fixed: Float[Tensor, "k d_model"] | None = None) -> Float[Tensor, "rank d_model"]:
        """Returns R, retracted if it has left the manifold.

        Args:
            fixed: orthonormal rows that R must stay orthogonal to. They are not changed.

        Raises:
            ValueError: If R holds NaN or infinite values.
        """
        fixed = self.weight.detach()[:0] if fixed is None else fixed.detach()
        self._retract(fixed)
        return _TangentGradient.apply(self.weight, fixed)

    @torch.no_grad()
    def start_at(self, rows: Float[Tensor, "rank d_model"]) -> None:
        """Sets R to given rows.

        Args:
            rows: orthonormal rows.

        Raises:
            ValueError: If they are not orthonormal.
        """
        require_orthonormal(rows)
        self.weight.copy_(rows)

    @torch.no_grad()
    def _retract(self, fixed: Tensor) -> None:
        """Moves the rows back onto the manifold. Rows that already lie on it stay bit-identical."""
        dtype = torch.promote_types(self.weight.dtype, torch.float32)
        # QR goes row by row: R is made orthogonal to the fixed rows, which stay.
        rows = torch.cat([fixed.to(dtype), self.weight.to(dtype)])
        off = (rows[len(fixed) :] @ rows.T - torch.eye(len(rows), dtype=dtype, device=rows.device)[len(fixed) :]).abs()
        worst = float(off.max())
        # Room for the rounding of R R^T; without it, R would drift by a QR at every use.
        if worst <= (1e-12 if dtype == torch.float64 else 1e-6):
            return
        if worst != worst or worst == float("inf"):
            raise ValueError("R holds NaN or infinite values, because training has diverged: lower the learning rate")
        Q, upper = torch.linalg.qr(rows.T)
        # QR leaves the signs free. Keep those of R, so that a small optimiser step stays a small
        # step.
        Q = torch.where(upper.diagonal() < 0, -Q, Q)
        # In place, because the optimiser and its state belong to this very parameter.
        self.weight.copy_(Q.T[len(fixed) :])

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        return super()._apply(keep_float32(fn), recurse)


def require_orthonormal(rows: Float[Tensor, "rank d_model"]) -> None:
    """Raises a ValueError if the rows of a basis are not orthonormal."""
    gram = rows.detach().double() @ rows.detach().double().T
    off = float((gram - torch.eye(len(rows), dtype=torch.float64, device=rows.device)).abs().max())
    if not off < 1e-4:
        raise ValueError(f"the rows of basis must be orthonormal, but R R^T is off by {off:.1e}: use torch.linalg.qr")


def _on_manifold(module: nn.Module, *_: object) -> None:
    # On the meta device there are no values yet; loading brings them.
    if isinstance(module, Orthonormal) and not module.weight.is_meta:
        module()


class _TangentGradient(torch.autograd.Function):
    """Identity in the forward pass; the backward pass removes the gradient component that leaves the manifold."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, R: Tensor, fixed: Tensor) -> Tensor:
        ctx.save_for_backward(R, fixed)
        return R.view_as(R)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> tuple[Tensor, None]:
        R, fixed = ctx.saved_tensors  # type: ignore[attr-defined]
        gram = grads[0] @ R.T
        tangent = grads[0] - 0.5 * (gram + gram.T) @ R
        # A step towards the fixed rows would be undone by the next retraction.
        return (tangent - grads[0] @ fixed.T @ fixed if len(fixed) else tangent), None
