"""One LoReFT whose rank is shared out to named parts, trained apart and used together or alone.

The composition of Wu et al. 2024 (arXiv:2404.03592): rank 8, four dimensions for one task and four for another. Since
all rows are orthonormal together, a part fixes what it wrote: R_p h' = W_p h + b_p whichever other parts act.
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
    """LoReFT in parts: h + sum over active parts p of R_p^T(W_p h + b_p - R_p h), all rows orthonormal together.

    All parts act unless a `with edit.only("german"):` says which. Each part has its own parameters, so training inside
    that block moves the named ones and leaves the others to the bit, weight decay included: rows that are trained
    yield to those that are not. A part trained first therefore keeps clear of the still random rows of the others;
    taking turns gives them back. (The reference trains slices of one R, where every step moves all of them.)
    """

    kind = "split-loreft"
    arguments = ("d_model", "parts")

    def __init__(self, d_model: int, parts: dict[str, int]) -> None:
        """Args: d_model: width of the activation. parts: rank of each part, by name.

        Raises:
            ValueError: for no parts, a rank below 1, more ranks together than the width, or a name with a dot.
        """
        for name, rank in parts.items():
            if rank < 1:
                raise ValueError(f"each part needs a rank of at least 1, got {rank} for {name!r}")
            if not name.isidentifier():
                raise ValueError(f"a part is named like a Python name, such as 'german', got {name!r}")
        if not parts:
            raise ValueError("SplitLoReFT wants at least one part, such as {'german': 4, 'french': 4}, got none")
        super().__init__(d_model, sum(parts.values()))
        self.parts = dict(parts)
        # The prefix keeps names such as "keys" from those of ModuleDict itself.
        self.rotations = nn.ModuleDict({f"part_{name}": Orthonormal(rank, d_model) for name, rank in parts.items()})
        self.sources = nn.ModuleDict({f"part_{name}": nn.Linear(d_model, rank) for name, rank in parts.items()})
        self._active = tuple(parts)
        _settle(self)
        self.register_state_dict_pre_hook(_settle)

    @property
    def active(self) -> tuple[str, ...]:
        """The parts that act now."""
        return self._active

    @contextmanager
    def only(self, *names: str) -> Iterator[SplitLoReFT]:
        """Inside, these parts alone act and are trained. Step the optimiser inside as well.

        Args:
            names: of the parts.

        Raises:
            ValueError: for no names, or one that is no part.
        """
        unknown = [name for name in names if name not in self.parts]
        if unknown or not names:
            got = f"has no part {', '.join(unknown)}" if unknown else "was given none to keep"
            raise ValueError(f"this edit {got}: its parts are {', '.join(self.parts)}")
        before = self._active
        self._active = tuple(name for name in self.parts if name in names)
        try:
            yield self
            # While the others still stand: what was trained yields to them, not they to it.
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
        """R `[active rank, d_model]`, W and b of the active parts, in order."""
        idle = [name for name in self.parts if name not in self._active]
        rows: list[Tensor] = []
        for name in (*idle, *self._active):
            fixed = torch.cat(rows) if rows else None
            rows.append(self.rotations[f"part_{name}"](fixed))
        weight, bias = (
            torch.cat([self.get_parameter(f"sources.part_{name}.{tensor}") for name in self._active])
            for tensor in ("weight", "bias")
        )
        return torch.cat(rows[len(idle) :]), weight, bias


def _settle(module: nn.Module, *_: object) -> None:
    """What is saved is orthonormal together, not only part by part."""
    if isinstance(module, SplitLoReFT) and not next(module.parameters()).is_meta:
        module._factors()
