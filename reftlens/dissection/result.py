"""The settings and the result of a dissection."""

from __future__ import annotations

import html
from dataclasses import dataclass
from pathlib import Path
from typing import final

import pandas as pd

from reftlens.dissection.findings import Findings
from reftlens.dissection.saving import read_dissection, save_dissection
from reftlens.dissection.sections import report
from reftlens.dissection.summary import summarize
from reftlens.numbers import require_whole_number
from reftlens.plot.page import render
from reftlens.positions import Positions
from reftlens.training.train import TrainConfig


@final
@dataclass(frozen=True)
class DissectConfig:
    """Budgets of a dissection."""

    at: Positions | None = None
    """Edited tokens that weight the directions, such as `Last(1)`; all edited tokens by default."""
    max_examples: int = 256
    """Maximum number of examples. If there are more, they are drawn at random."""
    batch_size: int = 32
    """Number of prompts in one forward pass."""
    directions: int = 2
    """Number of write directions per site that are read out and looked up in the examples."""
    n_null: int = 200
    """Number of draws of each null."""
    n_pairs: int = 64
    """Number of prompt pairs for the interchange."""
    n_random: int = 19
    """Number of random subspaces, and of placebos, for the interchange."""
    retrain: TrainConfig | None = None
    """Training settings to retrain the edit from `seeds` and on shuffled answers. This part costs most; None omits it."""
    seeds: tuple[int, ...] = (1, 2)
    """Seeds of the retrained edits."""
    n_null_edits: int = 6
    """Number n of edits trained on shuffled answers, the null of the agreement; p is at least 2 / ((n + 2)(n + 1))."""
    seed: int = 0
    """Seed of every draw."""
    progress: bool = True
    """Print the cost beforehand and show a progress bar."""

    def __post_init__(self) -> None:
        for name in ("max_examples", "batch_size", "directions", "n_null", "n_pairs", "n_random", "n_null_edits"):
            require_whole_number(name, getattr(self, name), least=1)
        for seed in (self.seed, *self.seeds):
            require_whole_number("a seed", seed, least=0)


@final
@dataclass(frozen=True, eq=False, repr=False)
class Dissection(Findings):
    """All results about one edit. It displays as a page and can be saved to a folder."""

    def save(self, directory: str | Path) -> Path:
        """Writes JSON and safetensors to a folder, atomically. `load_dissection` reads it.

        Args:
            directory: the folder; replaced if it is a saved dissection.

        Raises:
            ValueError: If the folder holds anything else.
            OSError: If it cannot be written.
        """
        return save_dissection(self, Path(directory))

    def summary(self) -> pd.DataFrame:
        """Returns the main numbers, each with its null or control."""
        return summarize(self)

    def to_html(self) -> str:
        """Returns the report as one self-contained page."""
        return render(report(self))

    def _repr_html_(self) -> str:
        # A separate frame isolates the page's styles from the notebook's.
        page = html.escape(self.to_html(), quote=True)
        return f'<iframe sandbox srcdoc="{page}" style="width:100%;height:45em;border:1px solid #8888"></iframe>'

    def __repr__(self) -> str:
        used = ", ".join(
            f"{op.where}: {op.effective_rank:.1f} of {len(op.spectrum)}, input-dependent {op.input_rank:.1f}"
            + (f" (untrained {fresh.effective_rank:.1f} and {fresh.input_rank:.1f})" if fresh is not None else "")
            for op, fresh in self.beside_untrained()
        )
        left = f"; left out: {', '.join(what for what, _ in self.left_out)}" if self.left_out else ""
        return (
            f"Dissection of {self.edit.splitlines()[0]} on {self.model}, {self.n_wanted + self.n_kept} examples"
            f"{'; effective rank ' + used if used else ''}{left}"
        )


def load_dissection(directory: str | Path) -> Dissection:
    """Reads a dissection that `Dissection.save` wrote.

    Args:
        directory: the folder.

    Raises:
        ValueError: If it is not a saved dissection, or is damaged.
        OSError: If it cannot be opened.
    """
    return read_dissection(Path(directory), Dissection)
