"""Distributed interchange: replaces the part of an activation inside a subspace by that of another run of the model.

The other interventions derive from it (Geiger et al. 2023, arXiv:2303.02536): LoReFT is interchange with a learned
source, Rs = Wh + b, and DAS learns R on pairs of inputs. Success alone is not evidence: R can be fitted to arbitrary
labels, and on random models. `transformer_lens.tools.analysis.interchange` has those controls, and `fit_das`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from reftlens.interventions.base import Affine, Intervention, NotAffineError, promote
from reftlens.interventions.orthonormal import Orthonormal

Source = Tensor | Callable[[Tensor], Tensor]
"""Source activations `[d_model]` (one for all) or `[n, d_model]` (one per edited token), or a function that returns them."""


@final
class Interchange(Intervention):
    """Interchange: h + R^T(Rs - Rh), where R has orthonormal rows and s is the activation of the source run.

    (Geiger et al. 2023, arXiv:2303.02536; eq. 1 of Wu et al. 2024, arXiv:2404.03592.) Computed by
    `transformer_lens.tools.analysis.interchange.SubspaceInterchange`. The source belongs to a batch, not to the edit:
    set it with `edit.take(...)` before a run. It is not saved.
    """

    kind = "interchange"

    def __init__(self, d_model: int, rank: int) -> None:
        super().__init__(d_model, rank)
        self.rotation = Orthonormal(rank, d_model)
        # A tuple keeps a source that is itself a module out of the edit's parameters.
        self._source: tuple[Source, ...] = ()

    @classmethod
    def along(cls, basis: Float[Tensor, "rank d_model"]) -> Interchange:
        """Creates an interchange in a given subspace, such as the transpose of `fit_das(...).basis`.

        Args:
            basis: orthonormal rows.

        Raises:
            ValueError: If the rows are not orthonormal.
        """
        rank, d_model = basis.shape
        edit = cls(d_model, rank).to(basis.device)
        gram = basis.detach().double() @ basis.detach().double().T
        off = float((gram - torch.eye(rank, dtype=torch.float64, device=basis.device)).abs().max())
        if not off < 1e-4:
            raise ValueError(
                f"the rows of basis must be orthonormal, but R R^T is off by {off:.1e}: use torch.linalg.qr"
            )
        with torch.no_grad():
            edit.rotation.weight.copy_(basis)
        return edit

    @property
    def R(self) -> Float[Tensor, "rank d_model"]:
        """The subspace, with orthonormal rows."""
        return self.rotation()

    @property
    def source(self) -> Source | None:
        """The source of s; None until `take` sets it."""
        return self._source[0] if self._source else None

    def take(self, source: Source | None) -> None:
        """Sets the source of s for the following runs. None removes it.

        Args:
            source: a tensor `[d_model]`; a tensor `[n, d_model]`, one row per edited token, in the order of batch rows and
                positions (`cache[hook_name][mask]`); or a function from the edited tokens to such a tensor.
        """
        self._source = () if source is None else (source,)

    def delta(self, resid: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        # Lazily: tools.analysis changes between minor releases of TransformerLens.
        from transformer_lens.tools.analysis.interchange import SubspaceInterchange

        h = promote(resid, self.rotation.weight)
        move = self._values(resid).to(h) - h
        # The map is linear: moving 0 towards s - h gives the change without the rounding of h + change - h.
        swapped: Tensor = SubspaceInterchange(self.R.T)(torch.zeros_like(h), move)
        return swapped.to(resid.dtype)

    def affine(self) -> Affine:
        source = self.source
        if isinstance(source, Tensor) and source.ndim == 1:
            R = self.R
            return Affine(write=R, read=-R, constant=R.T @ (R @ source.to(R)), erase=R)
        raise NotAffineError(
            "this Interchange is not of the form A h + c, because its source differs between tokens. Set one source "
            "activation [d_model] for all tokens, or use basis() and the changes themselves"
        )

    def basis(self) -> Float[Tensor, "k d_model"]:
        return self.R.detach().double()

    def _values(self, resid: Tensor) -> Tensor:
        source = self.source
        if source is None:
            raise ValueError("this Interchange has no source activations: call edit.take(source) before the run")
        values = source if isinstance(source, Tensor) else source(resid)
        if values.shape not in (resid.shape, resid.shape[-1:]):
            raise ValueError(
                f"the source of an Interchange must be [{self.d_model}] or {list(resid.shape)}, one activation for each "
                f"edited token, got {list(values.shape)}"
            )
        return values
