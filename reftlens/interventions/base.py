"""What every edit is: h + delta(h), and, where delta is affine, its factors.

An intervention maps activations `resid [..., d_model]` to `resid + delta(resid)`. A member of the family implements
`delta` and `affine`, and nothing else: norms, ledgers and dissections read those two (and `basis`, which follows
from `affine`), so they work on a new member unchanged. A member that is not affine says so by `NotAffineError`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


class NotAffineError(ValueError):
    """An edit whose change is not A h + c was asked for A and c."""


class Affine(NamedTuple):
    """delta(h) = write^T (read h) + diagonal * h + constant: A in factors, never as a d x d matrix."""

    write: Float[Tensor, "rank d_model"]
    """No rows for an edit without a low-rank part."""
    read: Float[Tensor, "rank d_model"]
    constant: Float[Tensor, " d_model"]
    diagonal: Float[Tensor, " d_model"] | None = None
    """A factor for each coordinate by itself, as in RED; None where there is none."""
    erase: Float[Tensor, "k d_model"] | None = None
    """E, where -E^T E h is part of the change (and of write and read) and takes out what stood there; None for an
    edit that only adds. The ledger reads it."""

    def delta(self, resid: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        """The change of each activation, in the dtype of the factors."""
        h = resid.to(self.constant)
        change = h @ self.read.T @ self.write + self.constant
        return change if self.diagonal is None else change + self.diagonal * h

    def along(self, basis: Float[Tensor, "k d_model"]) -> tuple[Float[Tensor, "k d_model"], Float[Tensor, " k"]]:
        """The change in the coordinates of a basis: `basis @ delta(h) = gain @ h + push`.

        Args:
            basis: orthonormal rows; the result has their dtype and device.

        Returns:
            gain and push.
        """
        gain = basis @ self.write.to(basis).T @ self.read.to(basis)
        if self.diagonal is not None:
            gain = gain + basis * self.diagonal.to(basis)
        return gain, basis @ self.constant.to(basis)

    @torch.no_grad()
    def basis(self) -> Float[Tensor, "k d_model"]:
        """Orthonormal rows that span every change, in float64; none for an edit that changes nothing.

        A diagonal reaches every coordinate, so its span is the whole space: `[d_model, d_model]`.
        """
        if self.diagonal is not None and bool(self.diagonal.any()):
            return torch.eye(len(self.constant), dtype=torch.float64, device=self.constant.device)
        rows = torch.cat([self.write, self.constant[None]]).double()
        _, spectrum, vectors = torch.linalg.svd(rows, full_matrices=False)
        return vectors[spectrum > 1e-6 * spectrum[0]]


class Intervention(nn.Module, ABC):
    """An edit of one activation: `forward(resid) = resid + delta(resid)`, never overridden.

    Parameters are float32, and stay so: `.to(torch.bfloat16)` and `.half()` move an edit but do not round it (an
    orthonormal R would no longer be one, and an edit is too small for the memory to matter). Inside a bfloat16
    model the change is computed in float32 and cast.
    """

    kind: ClassVar[str]
    """Name in checkpoints."""
    arguments: ClassVar[tuple[str, ...]] = ("d_model", "rank")
    """Names of the constructor's arguments, each kept as an attribute, each a plain JSON value."""

    def __init__(self, d_model: int, rank: int) -> None:
        """Args: d_model: width of the activation. rank: dimensions that the change can span."""
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
        """The change that the edit makes, in the dtype of `resid`.

        Where the change of one token depends on others (ReFT-r1), the second-last axis is the tokens of one example.

        Args:
            resid: activations.
        """

    @abstractmethod
    def affine(self) -> Affine:
        """The same change as factors of A and the constant c.

        Raises:
            NotAffineError: if the change is not of that form; it says why.
        """

    @property
    def across_tokens(self) -> bool:
        """Whether the change of one token depends on the other edited tokens of its example: where `delta_of` is overridden.

        All edited tokens of an example are then read, also where the change lands on some of them only.
        """
        return type(self).delta_of is not Intervention.delta_of

    def delta_of(self, tokens: Float[Tensor, "n d_model"], example: Int[Tensor, " n"]) -> Float[Tensor, "n d_model"]:
        """The change of the edited tokens of a batch. An edit that acts token by token leaves this as it is.

        Args:
            tokens: the activations of the edited tokens, example after example, in the order of their positions.
            example: row of the batch that each belongs to.
        """
        return self.delta(tokens)

    def l1(
        self, tokens: Float[Tensor, "n d_model"], example: Int[Tensor, " n"], n_examples: int
    ) -> Float[Tensor, " n_examples"]:
        """What training may hold small besides the loss (`TrainConfig.l1`), for each row of the batch.

        Args:
            tokens: the activations of the edited tokens, before the edit.
            example: row of the batch that each belongs to.
            n_examples: rows of the batch.

        Raises:
            ValueError: if this kind has no L1 term.
        """
        raise ValueError(f"{type(self).__name__} has no L1 term: leave l1 at 0, or train a kind that has one")

    def basis(self) -> Float[Tensor, "k d_model"]:
        """Orthonormal rows that span everything the edit can write, in float64."""
        return self.affine().basis()

    def forward(self, resid: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        """The edited activation, in the dtype of `resid`.

        Args:
            resid: activations.
        """
        return resid + self.delta(resid)

    def n_parameters(self) -> int:
        """Trained numbers."""
        return sum(parameter.numel() for parameter in self.parameters())

    def settings(self) -> dict[str, object]:
        """The constructor's arguments, as plain JSON values."""
        return {name: getattr(self, name) for name in self.arguments}

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self.settings().items())

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        return super()._apply(keep_float32(fn), recurse)


def keep_float32(fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A conversion of parameters (`nn.Module._apply`) without the part that would round them below float32."""

    def moved(tensor: Tensor) -> Tensor:
        out = fn(tensor)
        rounded = out.is_floating_point() and torch.finfo(out.dtype).bits < 32
        return tensor.to(out.device) if rounded else out

    return moved


def promote(resid: Tensor, parameter: Tensor) -> Tensor:
    """The activation in the dtype in which the edit is computed."""
    return resid.to(torch.promote_types(resid.dtype, parameter.dtype))
