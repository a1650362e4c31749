"""What a dissection is asked for, and what it found."""

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
    """Weight the directions by these of the edited tokens alone, such as `Last(1)`; all edited tokens if not given."""
    max_examples: int = 256
    """Examples used, drawn at random if there are more."""
    batch_size: int = 32
    """Prompts in one forward pass."""
    directions: int = 2
    """Write directions of each site that are read out and looked up in the examples."""
    n_null: int = 200
    """Draws of each null."""
    n_pairs: int = 64
    """Pairs of prompts for the interchange."""
    n_random: int = 19
    """Random subspaces, and as many placebos, for the interchange."""
    retrain: TrainConfig | None = None
    """How to train the edit again from `seeds`, and on shuffled answers. The dearest part, and left out if not given."""
    seeds: tuple[int, ...] = (1, 2)
    """Of the retrained edits."""
    n_null_edits: int = 6
    """Edits trained on shuffled answers, the null of their agreement; with n of them p is at least 2 / ((n + 2)(n + 1))."""
    seed: int = 0
    """Of every draw."""
    progress: bool = True
    """Say the cost beforehand, and show a progress bar."""

    def __post_init__(self) -> None:
        for name in ("max_examples", "batch_size", "directions", "n_null", "n_pairs", "n_random", "n_null_edits"):
            require_whole_number(name, getattr(self, name), least=1)
        for seed in (self.seed, *self.seeds):
            require_whole_number("a seed", seed, least=0)


@final
@dataclass(frozen=True, eq=False, repr=False)
class Dissection(Findings):
    """All that was found about one edit. It shows itself as a page, and saves itself to a folder."""

    def save(self, directory: str | Path) -> Path:
        """Writes JSON and safetensors to a folder, whole or not at all; `load_dissection` reads it.

        Args:
            directory: the folder; replaced if it is a saved dissection.

        Raises:
            ValueError: if something else is there.
            OSError: if it cannot be written.
        """
        return save_dissection(self, Path(directory))

    def summary(self) -> pd.DataFrame:
        """The main numbers, each with what it has to be compared with."""
        return summarize(self)

    def to_html(self) -> str:
        """The report as one page that needs nothing but itself."""
        return render(report(self))

    def _repr_html_(self) -> str:
        # A frame of its own keeps the page's styles from the notebook's.
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
    """Reads what `Dissection.save` wrote.

    Args:
        directory: the folder.

    Raises:
        ValueError: if it is not a saved dissection, or is damaged.
        OSError: if it cannot be opened.
    """
    return read_dissection(Path(directory), Dissection)
