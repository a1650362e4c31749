"""Grows an edit that reproduces a finetuned model: one site first, then more rank or another site, while it helps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

from transformer_lens.model_bridge import TransformerBridge

from reftlens.analysis.engine.two_models import Finetuned, Outputs
from reftlens.data.texts import Prompt
from reftlens.edit.reft import Reft
from reftlens.interventions import Intervention
from reftlens.positions import Positions
from reftlens.results.finetunes import Grown
from reftlens.training.objectives import Distillation, Objective
from reftlens.training.train import TrainConfig, train

Cell = tuple[int, str]
"""Layer and hook of a site."""
Pairs = Sequence[tuple[Prompt, str]]


@final
@dataclass(frozen=True)
class Room:
    """The edits that may be tried."""

    cells: tuple[Cell, ...]
    positions: Positions | str
    intervention: type[Intervention]
    ranks: tuple[int, ...]
    max_sites: int
    stop: float

    def layout(self, bridge: TransformerBridge, cells: Sequence[Cell], rank: int, seed: int) -> Reft:
        """Returns an untrained edit of these sites, from the lowest layer up."""
        parts = [
            Reft.at_layers(
                bridge,
                layers=[layer],
                hook=hook,
                positions=self.positions,
                intervention=self.intervention,
                rank=rank,
                seed=seed + place,
            )
            for place, (layer, hook) in enumerate(sorted(cells, key=self.cells.index))
        ]
        return Reft([pair for part in parts for pair in part])

    def most_edits(self) -> int:
        """Returns how many edits `grow` trains at most."""
        more_ranks, more_sites = len(self.ranks) - 1, min(self.max_sites, len(self.cells)) - 1
        # Each round tries both while both are possible, and goes on with one of them.
        both = more_ranks > 0 and more_sites > 0
        return len(self.cells) + (2 * (more_ranks + more_sites) - 1 if both else more_ranks + more_sites)


@final
class Distilling:
    """Trains edits on the outputs of one finetuned model, which are computed once."""

    def __init__(
        self,
        bridge: TransformerBridge,
        finetuned: Finetuned,
        examples: Pairs,
        config: TrainConfig,
        outputs: Outputs,
        trained: Callable[[], Any],
    ) -> None:
        """Args: outputs: of the finetuned model on these examples. trained: called after each training."""
        self.bridge, self.examples, self.config, self.trained = bridge, examples, config, trained
        # A conversation is a list, which no key can be: the finetuned model runs on it at each
        # training.
        known = {
            (prompt, completion): logits
            for (prompt, completion), logits in zip(examples, outputs.of_each(), strict=True)
            if isinstance(prompt, str)
        }
        self.objective = Distillation(finetuned.teacher, known=known)

    def edit(self, layout: Reft) -> Reft:
        """Trains an edit in place, and returns it."""
        return self.train(layout, self.examples, self.objective)

    def train(self, layout: Reft, examples: Pairs, objective: Objective | None = None) -> Reft:
        """Does the same with other examples, or with the loss of their completions where no objective is given."""
        train(self.bridge, layout, examples, self.config, objective=objective)
        self.trained()
        return layout


@final
@dataclass(frozen=True, eq=False)
class Growth:
    """What the search found."""

    reft: Reft
    rank: int
    path: tuple[Grown, ...]
    alone: tuple[Reft, ...]
    """The edit of the smallest rank at each single site, in the order of the cells."""


def grow(bridge: TransformerBridge, room: Room, distilling: Distilling, chosen_by: Outputs) -> Growth:
    """Trains an edit at each site alone, and lets the best one grow while it explains more.

    Args:
        bridge: the base.
        room: the edits that may be tried.
        distilling: trains them.
        chosen_by: the outputs that they are chosen by.

    Raises:
        ValueError: If the finetuned model has the outputs of its base there.
    """
    seed, ranks = distilling.config.seed, room.ranks
    if not float(chosen_by.base.sum()):
        raise ValueError(
            "the finetuned model has the outputs of its base on the examples that edits are chosen by: give more examples, "
            "on which it differs"
        )

    def tried(stage: str, cells: Sequence[Cell], rank: int) -> tuple[Grown, Sequence[Cell], Reft]:
        reft = distilling.edit(room.layout(bridge, cells, rank, seed))
        share = 1 - float(chosen_by.left(reft).sum() / chosen_by.base.sum())
        return Grown(stage, reft.site_names, rank, share, False), cells, reft

    first = [tried("first", [cell], ranks[0]) for cell in room.cells]
    order = sorted(range(len(first)), key=lambda place: -_worth(first[place][0]))
    best = first[order[0]]
    path = [step for step, _, _ in first]
    kept = {id(best[0])}
    while True:
        step, cells, _ = best
        more = [tried("rank", cells, rank) for rank in ranks[ranks.index(step.rank) + 1 :][:1]]
        if len(cells) < room.max_sites:
            free = [room.cells[place] for place in order if room.cells[place] not in cells]
            more += [tried("site", [*cells, cell], step.rank) for cell in free[:1]]
        path += [one for one, _, _ in more]
        next_best = max(more, key=lambda one: _worth(one[0]), default=best)
        # Of itself, the KL of a good edit falls without end: a larger one is also trained more
        # easily.
        if next_best is best or not _worth(next_best[0]) >= _worth(step) + room.stop:
            break
        best = next_best
        kept.add(id(best[0]))
    steps = tuple(Grown(one.stage, one.sites, one.rank, one.explained, id(one) in kept) for one in path)
    return Growth(best[2], best[0].rank, steps, tuple(reft for _, _, reft in first))


def _worth(step: Grown) -> float:
    # An edit whose logits overflow explains nothing; every comparison with its NaN would be false.
    return step.explained if step.explained == step.explained else -math.inf
