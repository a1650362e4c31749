"""Base class of all interventions: h + delta(h), and the factors of delta if it is affine.

An intervention maps activations `resid [..., d_model]` to `resid + delta(resid)`. A subclass
implements only `delta` and `affine`, and `family.py` lists it. Norms, ledgers and dissections read
those two (and `basis`, which follows from `affine`), so they work on a new subclass unchanged. If a
subclass is not affine, its `affine` raises `NotAffineError`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


class NotAffineError(ValueError):
    """A and c were requested from an edit whose change is not A h + c."""


class Affine(NamedTuple):
    """delta(h) = write^T (read h) + diagonal * h + constant: A in factors, never as a d x d matrix."""

    write: Float[Tensor, "rank d_model"]
    """Has no rows if the edit has no low-rank part."""
    read: Float[Tensor, "rank d_model"]
    constant: Float[Tensor, " d_model"]
    diagonal: Float[Tensor, " d_model"] | None = None
    """A factor per coordinate, as in RED; None if there is none."""
    erase: Float[Tensor, "k d_model"] | None = None
    """E, if the change (and write and read) includes -E^T E h, which removes the old value; None if
    the edit only adds. The ledger reads it.
    """

    def delta(self, resid: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        """Computes the change of each activation, in the dtype of the factors.

        Args:
            resid: activations before the edit.
        """
        h = resid.to(self.constant)
        change = h @ self.read.T @ self.write + self.constant
        return change if self.diagonal is None else change + self.diagonal * h

    def along(self, basis: Float[Tensor, "k d_model"]) -> tuple[Float[Tensor, "k d_model"], Float[Tensor, " k"]]:
        """Returns the change in the coordinates of a basis: `basis @ delta(h) = gain @ h + push`.

        Args:
            basis: orthonormal rows; the result has their dtype and device.

        Returns:
            gain and push.
        """
        # From the left: [k, rank], then [k, d_model], so A itself is never formed.
        gain = basis @ self.write.to(basis).T @ self.read.to(basis)
        if self.diagonal is not None:
            gain = gain + basis * self.diagonal.to(basis)
        return gain, basis @ self.constant.to(basis)

    @torch.no_grad()
    def basis(self) -> Float[Tensor, "k d_model"]:
        """Returns orthonormal rows that span every change, in float64; no rows if the edit changes nothing.

        A diagonal reaches every coordinate, so its span is the whole space: `[d_model, d_model]`.
        """
        if self.diagonal is not None and bool(self.diagonal.any()):
            return torch.eye(len(self.constant), dtype=torch.float64, device=self.constant.device)
        # c need not lie in the span of the written rows, and their scale says nothing about it: 10
        # W^T (R / 10) is W^T R.
        parts = (self.write.double(), self.constant[None].double())
        rows = torch.cat([part / part.norm().clamp(min=torch.finfo(part.dtype).tiny) for part in parts])
        _, spectrum, vectors = torch.linalg.svd(rows, full_matrices=False)
        # Below 1e-6, float32 factors are rounding. ">" keeps no row where all values are 0.
        return vectors[spectrum > 1e-6 * spectrum[0]]


class Intervention(nn.Module, ABC):
    """An edit of one activation: `forward(resid) = resid + delta(resid)`. Subclasses do not override `forward`.

    Parameters stay in float32: `.to(torch.bfloat16)` and `.half()` do not round them. Rounding
    would make R no longer orthonormal, and an edit is too small for its memory to matter. Inside a
    bfloat16 model the change is computed in float32 and cast.
    """

    kind: ClassVar[str]
    """Name in checkpoints."""
    arguments: ClassVar[tuple[str, ...]] = ("d_model", "rank")
    """Names of the constructor's arguments. Each is stored as an attribute and is a plain JSON value."""

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
        """Computes the change that the edit makes, in the dtype of `resid`.

        If the change of a token depends on other tokens (ReFT-r1), the second-last axis holds the
        tokens of one example.

        Args:
            resid: activations.
        """

    @abstractmethod
    def affine(self) -> Affine:
        """Returns the same change as factors of A and the constant c.

        Raises:
            NotAffineError: If the change is not of that form. The message gives the reason.
        """

    @property
    def across_tokens(self) -> bool:
        """Whether the change of a token depends on the other edited tokens of its example (`delta_of` is overridden).

        If so, all edited tokens of an example are read, even if only some of them are changed.
        """
        return type(self).delta_of is not Intervention.delta_of

    def delta_of(self, tokens: Float[Tensor, "n d_model"], example: Int[Tensor, " n"]) -> Float[Tensor, "n d_model"]:
        """Computes the change of the edited tokens of a batch. Edits that act token by token do not override this.

        Args:
            tokens: the activations of the edited tokens, example after example, in the order of
                their positions.
            example: batch row of each token.
        """
        return self.delta(tokens)

    def l1(
        self, tokens: Float[Tensor, "n d_model"], example: Int[Tensor, " n"], n_examples: int
    ) -> Float[Tensor, " n_examples"]:
        """Computes the L1 term that training may add to the loss (`TrainConfig.l1`), for each row of the batch.

        Args:
            tokens: the activations of the edited tokens, before the edit.
            example: batch row of each token.
            n_examples: number of rows in the batch.

        Raises:
            ValueError: If this kind has no L1 term.
        """
        raise ValueError(f"{type(self).__name__} has no L1 term: leave l1 at 0, or train a class that has one")

    def untrained(self) -> Intervention:
        """Returns a newly initialised edit with the same settings, and with what was given to it rather than trained."""
        return type(self)(**self.settings())  # type: ignore[arg-type]

    def anneal(self, progress: float) -> None:
        """Called before each training step. An edit with a temperature lowers it here; others do nothing.

        Args:
            progress: finished share of the training steps; 1 after the last one.
        """

    def basis(self) -> Float[Tensor, "k d_model"]:
        """Returns orthonormal rows that span everything the edit can write, in float64."""
        return self.affine().basis()

    def forward(self, resid: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        """Returns the edited activation, in the dtype of `resid`.

        Args:
            resid: activations.
        """
        return resid + self.delta(resid)

    def n_parameters(self) -> int:
        """Number of trained parameters."""
        return sum(parameter.numel() for parameter in self.parameters())

    def settings(self) -> dict[str, object]:
        """Returns the constructor's arguments as plain JSON values."""
        return {name: getattr(self, name) for name in self.arguments}

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self.settings().items())

    # nn.Module's .to, .half, .cuda and .float all pass through here.
    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        return super()._apply(keep_float32(fn), recurse)


def keep_float32(fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Wraps a conversion of parameters (`nn.Module._apply`) so that it never reduces them below float32."""

    def moved(tensor: Tensor) -> Tensor:
        out = fn(tensor)
        rounded = out.is_floating_point() and torch.finfo(out.dtype).bits < 32
        # .to("cuda", torch.bfloat16) still moves the tensor.
        return tensor.to(out.device) if rounded else out

    return moved


def promote(resid: Tensor, parameter: Tensor) -> Tensor:
    """Casts the activation to the dtype in which the edit is computed."""
    return resid.to(torch.promote_types(resid.dtype, parameter.dtype))
