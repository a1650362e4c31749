"""The settings of a dissection: which parts run, and the budget of each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from reftlens.cone.shared import MEMORY_BYTES
from reftlens.numbers import require_whole_number
from reftlens.positions import Positions
from reftlens.training.train import TrainConfig


@final
@dataclass(frozen=True)
class DissectConfig:
    """Parts and budgets of a dissection."""

    parts: str | tuple[str, ...] = "standard"
    """A preset, "quick", "standard" or "full"; or the names of parts, such as ("where", "through")."""
    at: Positions | None = None
    """Edited tokens that weight the directions, such as `Last(1)`; all edited tokens by default."""
    max_examples: int = 256
    """Maximum number of examples. If there are more, they are drawn at random."""
    batch_size: int = 32
    """Number of prompts in one forward pass."""
    memory_bytes: int = MEMORY_BYTES
    """Limit of the base runs that are kept between parts. Prompts beyond it run again in each part."""
    directions: int = 2
    """Number of write directions per site that are read out and looked up in the examples."""
    n_identified: int = 64
    """Number of prompts, half of them held out, from which it is measured how far outputs determine the directions."""
    n_null: int = 200
    """Number of draws of each null."""
    n_mapped: int = 16
    """Maximum number of prompts, all of one length in tokens, for the maps over sites, tokens, heads and paths."""
    n_paths: int = 3
    """Number of heads and MLPs, those that carry most of the effect, between which paths are followed."""
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
    lens: str | None = None
    """A file with a Jacobian lens of the base, for "readouts"; by default one is fitted, which costs most of this part."""
    inspect: str | None = None
    """The inspection prompt of "readouts"; its last token takes the vector."""
    dictionaries: tuple[str, ...] = ()
    """Folders with sparse dictionaries in SAELens' format, at least one for each site, for "readouts"."""
    seed: int = 0
    """Seed of every draw."""
    progress: bool = True
    """Print the cost beforehand and show a progress bar."""

    def __post_init__(self) -> None:
        counts = ("max_examples", "batch_size", "directions", "n_null", "n_mapped", "n_paths", "n_pairs", "n_random")
        for name in (*counts, "n_null_edits", "n_identified"):
            require_whole_number(name, getattr(self, name), least=1)
        require_whole_number("memory_bytes", self.memory_bytes, least=0)
        for seed in (self.seed, *self.seeds):
            require_whole_number("a seed", seed, least=0)
