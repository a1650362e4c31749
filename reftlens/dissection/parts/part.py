"""One part of a dissection: what it computes, what that costs, and how it is drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, final

import pandas as pd
from matplotlib.figure import Figure

from reftlens import plot
from reftlens.dissection.config import DissectConfig
from reftlens.dissection.found import Found
from reftlens.dissection.work import Work
from reftlens.plot.labels import row_names, spoken
from reftlens.plot.page import Picture, Section
from reftlens.results import Result
from reftlens.results.words import labelled

Preset = Literal["quick", "standard", "full"]

BACKWARD = 1.5
"""Cost of a backward pass in forward passes. The base is frozen, so it has no gradients of weights."""


@final
@dataclass(frozen=True)
class Sizes:
    """What the cost of a part is counted from."""

    config: DissectConfig
    examples: int
    """Number of examples that are measured."""
    training: int
    """Number of examples that were given."""
    tokens: int
    """Number of tokens of a prompt."""
    edited: float
    """Number of tokens of a prompt that a site edits, averaged over sites."""
    cone: float
    """Number of tokens of a prompt from the first edited one on."""
    sites: int
    depth: float
    """Layers from a site on, averaged over sites, as a fraction of those from the first site on."""
    layers: int
    behind: int
    """Number of layers behind the first site."""
    heads: int
    width: int
    """Width of the widest edited activation."""
    wanted: float
    """Fraction of the examples that the base does not answer as wanted."""
    span: float
    """Layers from the first site to the last, as a fraction of those from the first site on."""

    @property
    def batches(self) -> float:
        return self.examples / self.config.batch_size

    @property
    def mapped(self) -> float:
        """The prompts of the maps, in batches."""
        return min(self.config.n_mapped, self.examples) / self.config.batch_size


@final
@dataclass(frozen=True)
class Spent:
    """What a part costs: how often each kind of run is made, for one batch of prompts."""

    passes: float = 0.0
    """Passes over whole prompts, without logits."""
    cones: float = 0.0
    """Runs of the edit's light cone, each by itself."""
    variants: float = 0.0
    """Runs of the edit's light cone, side by side with others."""
    swaps: float = 0.0
    """Runs of the last token alone from the first site on, side by side."""
    gradients: float = 0.0
    """Backward runs of these."""
    readouts: int = 0
    """Residuals that are read through the unembedding."""
    algebra: float = 0.0
    """Eigendecompositions of matrices as wide as the widest edited activation."""
    bytes_held: int = 0
    """Peak memory of tensors besides the model and one batch."""

    def __add__(self, other: Spent) -> Spent:
        return Spent(*(getattr(self, item.name) + getattr(other, item.name) for item in fields(self)))


@final
@dataclass(frozen=True)
class Part:
    """An analysis of a dissection."""

    name: str
    """By which a user asks for it."""
    heading: str
    """Of its section."""
    compute: Callable[[Work], dict[str, Any]]
    """Returns results by field of `Found`. A ValueError leaves the part out, with its message as the reason."""
    cost: Callable[[Sizes], Spent]
    draw: Callable[[Found], Section | None]
    """Returns the section; None without results."""
    preset: Preset = "standard"
    """The smallest preset that has it."""
    needs: tuple[str, ...] = ()
    """Parts whose results it starts from."""


def picture(name: str, figure: Figure, caption: str, of: Sequence[Result] | str = "") -> Picture:
    """Draws a figure for the page.

    Args:
        name: the file's name without "dissect_".
        figure: from `reftlens.plot`.
        caption: one or two sentences that say what the marks are.
        of: what it shows, for those who cannot see it: a sentence, or the results, of which the
            headlines are taken.
    """
    shown = of if isinstance(of, str) else "; ".join(result.headline() for result in of) + "."
    return Picture(f"dissect_{name}", plot.png(figure), caption, f"{caption} {shown}".strip())


def table(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Joins frames of equal columns, and names rows and columns as a reader does.

    Args:
        frames: from `to_dataframe`.
    """
    joined = pd.concat(list(frames), ignore_index=True)
    if "row" in joined:
        # All rows at once, because how short a name may be depends on the others.
        rows = list(dict.fromkeys(joined["row"]))
        joined["row"] = joined["row"].map(dict(zip(rows, map(spoken, row_names(rows)), strict=True)))
    return labelled(joined)
