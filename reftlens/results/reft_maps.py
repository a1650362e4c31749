"""Edits trained in each cell of a map, and what they have in common with a tracing map of the same cells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from reftlens.results.base import Result
from reftlens.results.patchings import PatchMap


@final
@dataclass(frozen=True, eq=False, repr=False)
class ReftMap(Result):
    """How well an edit of one budget learns in each cell."""

    held_out: Float[Tensor, "rows columns prompt"]
    """The score of each held-out prompt under the edit trained in this cell."""
    trained: Float[Tensor, "rows columns example"]
    """The score of each example that it was trained on."""
    control: Float[Tensor, "rows columns prompt"]
    """The score of each held-out prompt under an edit trained in this cell on shuffled answers."""
    base: Float[Tensor, " prompt"]
    """The score of each held-out prompt in the base."""
    base_trained: Float[Tensor, " example"]
    """The score of each training example in the base."""
    rows: tuple[str, ...]
    """The points that edits act at."""
    columns: tuple[str, ...]
    """Names of the position rules."""
    score: str
    """What the score is, with its unit."""
    budget: str
    """What each edit had: kind, rank, numbers, steps and seed."""

    def gain(self) -> Float[Tensor, "rows columns"]:
        """Score on held-out prompts minus the base's, mean over prompts."""
        return (self.held_out - self.base).mean(-1)

    def control_gain(self) -> Float[Tensor, "rows columns"]:
        """The same of the edits trained on shuffled answers."""
        return (self.control - self.base).mean(-1)

    def trained_gain(self) -> Float[Tensor, "rows columns"]:
        """The same on the examples trained on."""
        return (self.trained - self.base_trained).mean(-1)

    def headline(self) -> str:
        best = divmod(int(self.gain().argmax()), len(self.columns))
        return (
            f"{len(self.rows)} x {len(self.columns)} cells; gain in {self.score} on {len(self.base)} held-out prompts: best "
            f"{float(self.gain()[best]):+.2f} at {self.rows[best[0]]}, {self.columns[best[1]]}, with shuffled answers "
            f"{float(self.control_gain()[best]):+.2f} there; {self.budget}"
        )

    def to_dataframe(self) -> pd.DataFrame:
        """One line for each cell: gains on held-out prompts, on training examples, and with shuffled answers."""
        table = torch.stack([self.gain(), self.trained_gain(), self.control_gain()], dim=-1)
        lines = [
            (row, column, *table[r, c].tolist())
            for r, row in enumerate(self.rows)
            for c, column in enumerate(self.columns)
        ]
        return pd.DataFrame(lines, columns=["row", "column", "gain", "gain on training", "gain, shuffled answers"])


@final
@dataclass(frozen=True, eq=False, repr=False)
class BesideTracing(Result):
    """A map of trained edits beside a tracing map of the same cells."""

    reft: ReftMap
    tracing: PatchMap
    """Rows and columns as in `reft`."""
    correlation: float
    """Spearman's rank correlation over cells of the edits' gain and the restored part; NaN if one map is constant."""
    over_cells: tuple[float, float]
    """Its 95% bootstrap interval with cells drawn anew. Neighbouring cells are alike, so it is too narrow."""
    over_prompts: tuple[float, float]
    """Its 95% bootstrap interval with the prompts of both maps drawn anew, each map's own: cells and trained edits stay, so
    what another seed of training would give is not in it. Drawing anew disturbs ranks, so it lies rather low."""
    at_traced: float
    """The gain of the edit in the cell that tracing restores most at."""
    at_random: float
    """The mean gain over all cells: what a cell drawn at random gives."""
    as_good: float
    """Part of all other cells whose edit gains at least as much as that in the traced one; 0.5 is what chance gives."""

    def headline(self) -> str:
        cells, prompts = (f"{low:+.2f} to {high:+.2f}" for low, high in (self.over_cells, self.over_prompts))
        return (
            f"rank correlation {self.correlation:+.2f} over {self.tracing.mean().numel()} cells, 95% intervals {cells} (cells "
            f"drawn anew) and {prompts} (prompts drawn anew); gain in tracing's best cell {self.at_traced:+.2f}, in a random one "
            f"{self.at_random:+.2f}; {self.as_good:.0%} of the others do as well"
        )

    def to_dataframe(self) -> pd.DataFrame:
        """One line for each cell: the edits' gains beside the restored part."""
        return self.reft.to_dataframe().assign(restored=self.tracing.restored().flatten().tolist())
