"""A control for any edit: the same change at every token, written in random directions.

delta'(h) = delta(h) B^T B', where the rows of B are an orthonormal basis of the space the edit writes to and B' is a
random orthonormal frame of the same rank. Lengths, and angles between the changes of different tokens, are
kept exactly; only where they point is left to chance.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from reftlens.interventions import Affine, Intervention


class Turned(Intervention):
    """An edit whose changes are turned to random directions."""

    kind = "turned"

    def __init__(self, inner: Intervention, generator: torch.Generator) -> None:
        """Args: inner: the edit. generator: draws the directions (on the CPU)."""
        super().__init__(inner.d_model, inner.rank)
        self.inner = inner
        self.basis = written_basis(inner)
        random = torch.randn(inner.d_model, len(self.basis), generator=generator, dtype=torch.float64)
        self.frame = torch.linalg.qr(random).Q.T.to(self.basis)

    def delta(self, resid: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        return self._turn(self.inner.delta(resid).to(self.basis)).to(resid.dtype)

    def affine(self) -> Affine:
        write, read, constant = (t.to(self.basis) for t in self.inner.affine())
        return Affine(self._turn(write), read, self._turn(constant))

    def _turn(self, vectors: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        return vectors @ self.basis.T @ self.frame


@torch.no_grad()
def written_basis(intervention: Intervention) -> Float[Tensor, "k d_model"]:
    """Orthonormal rows that span every change the edit can make: its write directions and its constant."""
    write, _, constant = intervention.affine()
    rows = torch.cat([write, constant[None]]).double()
    _, spectrum, vectors = torch.linalg.svd(rows, full_matrices=False)
    return vectors[spectrum > 1e-6 * spectrum[0]]
