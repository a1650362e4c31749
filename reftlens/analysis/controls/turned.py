"""Random-direction control for any edit: changes of the same norm at every token, in random directions.

delta'(h) = delta(h) B^T B', where the rows of B are an orthonormal basis of the space the edit
writes to, and B' is a random orthonormal frame of the same rank. Norms of changes, and angles
between the changes of different tokens, are kept exactly. Only the directions are random. (For RED,
which can write anywhere, B' is a rotation of the whole space, a d x d matrix.)
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from reftlens.edit.reft import Reft
from reftlens.interventions import Affine, Intervention, require_within
from reftlens.numbers import seeds_of_draws


class Turned(Intervention):
    """An intervention whose changes are rotated to random directions."""

    kind = "turned"

    def __init__(self, inner: Intervention, generator: torch.Generator) -> None:
        """Args: inner: the intervention. generator: random generator of the directions (on the CPU)."""
        super().__init__(inner.d_model, inner.rank)
        self.inner = inner
        self.written = inner.basis()
        # Drawn on the CPU, so that a seed gives the same directions on every device.
        random = torch.randn(inner.d_model, len(self.written), generator=generator, dtype=torch.float64)
        self.frame = torch.linalg.qr(random).Q.T.to(self.written)

    def delta(self, resid: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        return self._turn(self.inner.delta(resid), resid)

    @property
    def across_tokens(self) -> bool:
        return self.inner.across_tokens

    def delta_of(self, tokens: Float[Tensor, "n d_model"], example: Int[Tensor, " n"]) -> Float[Tensor, "n d_model"]:
        return self._turn(self.inner.delta_of(tokens, example), tokens)

    def affine(self) -> Affine:
        gain, push = self.inner.affine().along(self.written)
        return Affine(write=self.frame, read=gain, constant=push @ self.frame)

    def basis(self) -> Float[Tensor, "k d_model"]:
        return self.frame

    def _turn(
        self, change: Float[Tensor, "... d_model"], tokens: Float[Tensor, "... d_model"]
    ) -> Float[Tensor, "... d_model"]:
        # A change outside the basis would be lost, and the control would be smaller than the edit.
        require_within(change.detach(), self.written, tokens.detach(), type(self.inner).__name__)
        return (change.to(self.written) @ self.written.T @ self.frame).to(change.dtype)


def turned(reft: Reft, *, seed: int) -> Reft:
    """Makes the random-direction control of an edit: changes of the same norm. Sharing, names and scales are kept.

    Args:
        reft: the edit; not changed.
        seed: seed of the directions.
    """
    generator = torch.Generator().manual_seed(seed)
    placebos: dict[int, Turned] = {}
    for _, intervention in reft:
        if id(intervention) not in placebos:
            placebos[id(intervention)] = Turned(intervention, generator)
    pairs = [(site, placebos[id(intervention)]) for site, intervention in reft]
    return Reft(pairs, names=reft.names, scales=reft.scales)


def turned_draws(reft: Reft, n: int, *, seed: int) -> list[Reft]:
    """Makes several independent random-direction controls of an edit.

    Args:
        reft: the edit; not changed.
        n: number of draws.
        seed: seed of all of them. No two seeds have a draw in common.
    """
    return [turned(reft, seed=one) for one in seeds_of_draws(seed, n)]
