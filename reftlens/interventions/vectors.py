"""Interventions with only vectors as parameters: a factor per coordinate, a constant push, or both (RED)."""

from __future__ import annotations

from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from reftlens.interventions.base import Affine, Intervention, promote
from reftlens.numbers import require_number


def _no_rows(like: Float[Tensor, " d_model"]) -> Float[Tensor, "0 d_model"]:
    """Returns the empty factors of an edit without a low-rank part."""
    # Zero rows, so that formulas with write and read need no special case.
    return like.detach()[None][:0]


@final
class RED(Intervention):
    """RED: s * h + b, coordinate by coordinate (Wu, M. et al. 2024, arXiv:2402.15179).

    s is initialised to 1 and b to 0, so an untrained edit is the identity. There is no rank: the
    change (s - 1) * h + b can point anywhere, and `basis()` is the whole space, `[d_model,
    d_model]`. Unlike a low-rank edit it depends on the choice of coordinates: in another basis it
    would be a different edit. (The paper edits the MLP output; here the caller chooses the site.)
    """

    kind = "red"
    arguments = ("d_model",)

    def __init__(self, d_model: int) -> None:
        """Args: d_model: width of the activation."""
        super().__init__(d_model, rank=d_model)
        self.factor = nn.Parameter(torch.ones(d_model))
        self.push = nn.Parameter(torch.zeros(d_model))

    def delta(self, resid: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        h = promote(resid, self.factor)
        return ((self.factor - 1).to(h.dtype) * h + self.push.to(h.dtype)).to(resid.dtype)

    def affine(self) -> Affine:
        none = _no_rows(self.push)
        return Affine(write=none, read=none, constant=self.push, diagonal=self.factor - 1)


@final
class Rescale(Intervention):
    """A factor per coordinate: h + a * h, the first step of LoFiT (Yin et al. 2024, arXiv:2406.01563).

    a is initialised to zero, which makes the edit the identity (the reference draws it from N(0,
    0.001)). The norm of the learned a at a head measures that head's importance; see `lofit`. Like
    RED it depends on the choice of coordinates.
    """

    kind = "rescale"
    arguments = ("d_model",)

    def __init__(self, d_model: int) -> None:
        """Args: d_model: width of the activation."""
        super().__init__(d_model, rank=d_model)
        self.excess = nn.Parameter(torch.zeros(d_model))

    def delta(self, resid: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        h = promote(resid, self.excess)
        return (self.excess.to(h.dtype) * h).to(resid.dtype)

    def l1(
        self, tokens: Float[Tensor, "n d_model"], example: Int[Tensor, " n"], n_examples: int
    ) -> Float[Tensor, " n_examples"]:
        """Returns the sum of |a|, the same for every example."""
        return self.excess.abs().sum().expand(n_examples)

    def affine(self) -> Affine:
        none = _no_rows(self.excess)
        return Affine(write=none, read=none, constant=torch.zeros_like(self.excess), diagonal=self.excess)


@final
class SteeringVector(Intervention):
    """A steering vector: h + scale * v, the same push for every activation.

    v is given or initialised to zero, which makes the edit the identity. It can be trained or left
    unchanged. The form is that of activation addition (Turner et al. 2023, arXiv:2308.10248).
    """

    kind = "steering-vector"
    arguments = ("d_model", "scale")

    def __init__(self, d_model: int, scale: float = 1.0) -> None:
        """Creates a zero vector for training. `SteeringVector.of(vector)` starts from a given one.

        Args:
            d_model: width of the activation.
            scale: fixed factor of the push.

        Raises:
            ValueError: If scale is zero or not finite.
        """
        super().__init__(d_model, rank=1)
        require_number("scale", scale)
        if scale == 0:
            raise ValueError("scale must not be 0, because the vector would then have no effect")
        self.scale = float(scale)
        self.vector = nn.Parameter(torch.zeros(d_model))

    @classmethod
    def of(cls, vector: Float[Tensor, " d_model"], scale: float = 1.0) -> SteeringVector:
        """Creates the edit that adds a given vector, which is copied.

        Args:
            vector: the vector that is added, before scaling.
            scale: fixed factor of the push.

        Raises:
            ValueError: If the vector holds NaN or infinite values, or scale is zero or not finite.
        """
        if not bool(torch.isfinite(vector).all()):
            raise ValueError("the steering vector must be finite, got NaN or infinite values")
        edit = cls(len(vector), scale).to(vector.device)
        with torch.no_grad():
            edit.vector.copy_(vector)
        return edit

    def delta(self, resid: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        return (self.scale * self.vector).to(resid.dtype).expand_as(resid)

    def affine(self) -> Affine:
        none = _no_rows(self.vector)
        return Affine(write=none, read=none, constant=self.scale * self.vector)
