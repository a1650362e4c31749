"""What a subspace carries, and what later layers read of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import final

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from reftlens.results.base import Result


@final
@dataclass(frozen=True, repr=False)
class Swap(Result):
    """One kind of interchange, over all pairs."""

    name: str
    flips: float
    """Part of the pairs whose most likely next token becomes the source's."""
    moved: float
    """Mean move of logit(source's answer) - logit(base's answer), as a part of the way from base run to source run."""

    def headline(self) -> str:
        return f"{self.name}: flips {self.flips:.0%}, moves {self.moved:.2f} of the way"

    def to_dataframe(self) -> pd.DataFrame:
        """One line."""
        return pd.DataFrame([asdict(self)])


@final
@dataclass(frozen=True, eq=False, repr=False)
class Interchanged(Result):
    """A source run's coordinates put into a base run: inside a subspace, and everywhere that it must not matter."""

    hook_name: str
    rank: int
    n: int
    """Pairs whose answers differ; of the others nothing could be learned."""
    n_given: int
    whole: Swap
    """The whole activation: what any subspace here could do at most."""
    inside: Swap
    complement: Swap
    from_read: Swap
    """Inside, but with only that difference of source and base that later layers read."""
    from_unread: Swap
    """Inside, but with only the difference that they do not read: it is turned into what they do."""
    random: tuple[Swap, ...]
    """Random subspaces of the same rank."""
    placebo: tuple[Swap, ...]
    """Random subspaces, moved as far as the inside interchange moves."""

    @property
    def p(self) -> float:
        """Part of the random subspaces that move the answer at least as far, (1 + count) / (1 + draws)."""
        return self._p(self.random)

    @property
    def placebo_p(self) -> float:
        """The same for the placebos."""
        return self._p(self.placebo)

    def _p(self, null: tuple[Swap, ...]) -> float:
        return (1 + sum(swap.moved >= self.inside.moved for swap in null)) / (1 + len(null))

    @property
    def illusory(self) -> bool:
        """Whether most of what the subspace does comes from a difference that later layers do not read.

        Such a subspace drives the answer through a path that is dormant otherwise, and is no sign that the model keeps
        the variable there (Makelov et al. 2023, arXiv:2311.17030). Only said of a subspace that does something.
        """
        return self.inside.moved > 0.1 and self.from_unread.moved > 0.5 * self.inside.moved

    def headline(self) -> str:
        flag = ", illusory" if self.illusory else ""
        return (
            f"{self.hook_name}, rank {self.rank}, {self.n} pairs: inside moves {self.inside.moved:.2f} of the way{flag}; "
            f"p = {self.p:.2g} among {len(self.random)} random subspaces, complement {self.complement.moved:.2f}"
        )

    def to_dataframe(self) -> pd.DataFrame:
        """One line for each kind of interchange; random ones as their mean and their largest."""
        lines = [
            (swap.name, swap.flips, swap.moved, swap.moved, float("nan"))
            for swap in (self.whole, self.inside, self.complement, self.from_read, self.from_unread)
        ]
        for name, swaps, p in (
            ("random subspaces", self.random, self.p),
            ("norm-matched placebos", self.placebo, self.placebo_p),
        ):
            moved = torch.tensor([swap.moved for swap in swaps])
            flips = sum(swap.flips for swap in swaps) / len(swaps)
            lines.append((name, flips, float(moved.mean()), float(moved.max()), p))
        frame = pd.DataFrame(lines, columns=["interchange", "flips", "moved", "most moved", "p of inside"])
        frame.insert(0, "hook_name", self.hook_name)
        return frame


@final
@dataclass(frozen=True, eq=False, repr=False)
class ReadSpace(Result):
    """What later layers read at one point, from gradients of the next-token logits."""

    hook_name: str
    basis: Float[Tensor, "read d_model"]
    """Orthonormal rows, most sensitive first; what is perpendicular to all of them is dormant."""
    sensitivity: Float[Tensor, " direction"]
    """Singular values of the gradients, of all directions."""
    tolerance: float
    """A direction counts as read from this part of the largest sensitivity on."""
    n_gradients: int

    def headline(self) -> str:
        read, width = self.basis.shape
        return f"{self.hook_name}: {read} of {width} directions are read, from {self.n_gradients} gradients"

    def to_dataframe(self) -> pd.DataFrame:
        """One line for each direction, most sensitive first."""
        read = [direction < len(self.basis) for direction in range(len(self.sensitivity))]
        return pd.DataFrame({"hook_name": self.hook_name, "sensitivity": self.sensitivity.tolist(), "read": read})

    def split(self, rows: Float[Tensor, "k d_model"]) -> Float[Tensor, " k"]:
        """Part of each row's squared length that is read; a random direction has len(basis) / d_model of it."""
        unit = torch.nn.functional.normalize(rows.double(), dim=-1)
        return (unit @ self.basis.double().T).square().sum(dim=-1).float()
