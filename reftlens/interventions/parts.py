"""LoReFT with its rank divided among named parts, which are trained separately and used together or alone.

The composition of Wu et al. 2024 (arXiv:2404.03592): rank 8, four dimensions for one task and four
for another. Since all rows are jointly orthonormal, other parts do not change what a part writes:
R_p h' = W_p h + b_p for any active parts.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from reftlens.interventions.base import Affine, Intervention, promote
from reftlens.interventions.orthonormal import Orthonormal


@final
class SplitLoReFT(Intervention):
    """LoReFT in parts: h + sum over active parts p of R_p^T(W_p h + b_p - R_p h), all rows jointly orthonormal.

    All parts are active unless `with edit.only("german"):` selects some. Each part has its own
    parameters. Training inside that block changes the named parts and leaves the others
    bit-identical, even with weight decay: trained rows are kept orthogonal to the untrained ones.
    So a part trained first is confined to the complement of the others' random rows; alternating
    between parts removes this limit. (The reference trains slices of one R, and every step moves
    all.)
    """

    kind = "split-loreft"
    arguments = ("d_model", "parts")

    def __init__(self, d_model: int, parts: dict[str, int]) -> None:
        """Args: d_model: width of the activation. parts: rank of each part, by name.

        Raises:
            ValueError: If there are no parts, a rank is below 1, the total rank exceeds the width,
                or a name has a dot.
        """
        for name, rank in parts.items():
            if rank < 1:
                raise ValueError(f"the rank of each part must be at least 1, got {rank} for {name!r}")
            if not name.isidentifier():
                raise ValueError(f"the name of a part must be a Python identifier, such as 'german', got {name!r}")
        if not parts:
            raise ValueError("SplitLoReFT needs at least one part, such as {'german': 4, 'french': 4}, got none")
        super().__init__(d_model, sum(parts.values()))
        self.parts = dict(parts)
        # The prefix prevents clashes of names such as "keys" with attributes of ModuleDict.
        self.rotations = nn.ModuleDict({f"part_{name}": Orthonormal(rank, d_model) for name, rank in parts.items()})
        self.sources = nn.ModuleDict({f"part_{name}": nn.Linear(d_model, rank) for name, rank in parts.items()})
        self._active = tuple(parts)
        # Each part was drawn by itself; from here on their rows are also orthogonal to one another.
        _settle(self)
        self.register_state_dict_pre_hook(_settle)

    @property
    def active(self) -> tuple[str, ...]:
        """The active parts."""
        return self._active

    @contextmanager
    def only(self, *names: str) -> Iterator[SplitLoReFT]:
        """Context in which only these parts are active and trained. Step the optimiser inside it as well.

        Args:
            names: names of the parts.

        Raises:
            ValueError: If there are no names, or a part does not exist.
        """
        unknown = [name for name in names if name not in self.parts]
        if unknown or not names:
            got = f"Unknown part {', '.join(map(repr, unknown))}" if unknown else "only() needs at least one part"
            raise ValueError(f"{got}. Choose from: {', '.join(self.parts)}")
        before = self._active
        self._active = tuple(name for name in self.parts if name in names)
        try:
            yield self
            # Retract before the others can change: the trained rows become orthogonal to them, not
            # the reverse.
            self._factors()
        finally:
            self._active = before

    def delta(self, resid: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        R, W, b = self._factors()
        h = promote(resid, W)
        R, W, b = (t.to(h.dtype) for t in (R, W, b))
        return ((h @ W.T + b - h @ R.T) @ R).to(resid.dtype)

    def affine(self) -> Affine:
        R, W, b = self._factors()
        return Affine(write=R, read=W - R, constant=b @ R, erase=R)

    def _factors(self) -> tuple[Tensor, Tensor, Tensor]:
        """Returns R `[active rank, d_model]`, W and b of the active parts, in order."""
        idle = [name for name in self.parts if name not in self._active]
        rows: list[Tensor] = []
        # Idle parts first: a later part is kept orthogonal to the earlier ones, and only it moves.
        for name in (*idle, *self._active):
            fixed = torch.cat(rows) if rows else None
            rows.append(self.rotations[f"part_{name}"](fixed))
        weight, bias = (
            torch.cat([self.get_parameter(f"sources.part_{name}.{tensor}") for name in self._active])
            for tensor in ("weight", "bias")
        )
        return torch.cat(rows[len(idle) :]), weight, bias


def _settle(module: nn.Module, *_: object) -> None:
    """Makes the rows jointly orthonormal before saving, not only within each part."""
    if isinstance(module, SplitLoReFT) and not next(module.parameters()).is_meta:
        module._factors()
