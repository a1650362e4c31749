"""Activations along the write directions of an edit, before it and after it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from reftlens.results.base import Result


@final
@dataclass(frozen=True, eq=False, repr=False)
class Projection(Result):
    """The edited tokens of one site along the edit's two strongest write directions."""

    hook_name: str
    before: Float[Tensor, "token 2"]
    """Coordinates of h, in the units of the activation."""
    after: Float[Tensor, "token 2"]
    """Of h + delta."""
    control: Float[Tensor, "token 2"]
    """Of h + delta turned to random directions: how far a change of this size moves here by chance."""
    groups: tuple[str, ...]
    """What each token's prompt belongs to."""

    def headline(self) -> str:
        moved, turned = ((end - self.before).square().sum(1).mean().sqrt() for end in (self.after, self.control))
        return (
            f"{self.hook_name}, {len(self.groups)} tokens of {len(set(self.groups))} groups; rms move {float(moved):.3g} "
            f"along its two directions (random directions {float(turned):.3g})"
        )

    def to_dataframe(self) -> pd.DataFrame:
        """One line for each token."""
        ends = {"before": self.before, "after": self.after, "control": self.control}
        names = [f"{name} {direction}" for name in ends for direction in (0, 1)]
        table = pd.DataFrame(torch.cat(list(ends.values()), dim=1).tolist(), columns=names)
        table.insert(0, "group", list(self.groups))
        return table
