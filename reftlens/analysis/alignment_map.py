"""At which layer and position is a variable of a causal model stored? Trains and scores one subspace in every cell.

accuracy(cell) = interchange accuracy on held-out pairs of a subspace trained in this cell
(`analysis.alignment`).

Rank, initialisation, pairs, their order and the number of steps are the same in every cell. In
every cell a control is trained with the same settings on arbitrary labels of the same pairs, and
scored on arbitrary labels of the held-out pairs; and the whole activation is swapped, which is the
most that any subspace of the cell can be expected to reach.

A high cell shows that the variable can be swapped there, not that the model reads it there: a later
cell carries what an earlier one stored. `align` in the best cell adds the control on a random
model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from reftlens.analysis.engine.saved import Saved, settings_of
from reftlens.analysis.engine.swap_runs import Among, SwapRuns, whole_activation
from reftlens.bridge import fingerprint, require_causal
from reftlens.data.counterfactual import Counterfactual, arbitrary_labels, as_counterfactuals
from reftlens.edit.reft import Reft
from reftlens.edit.untrained import untrained
from reftlens.interventions import Interchange
from reftlens.positions import Positions
from reftlens.results import AlignmentMap
from reftlens.training.objectives import Interchange as InterchangeLoss
from reftlens.training.train import TrainConfig, train

_Arms = Sequence[Sequence[Sequence[Counterfactual]]]
"""The pairs to train on and the held-out ones, with their labels and with arbitrary ones."""


def alignment_map(
    bridge: TransformerBridge,
    examples: Sequence[Counterfactual | tuple[str, ...]],
    held_out: Sequence[Counterfactual | tuple[str, ...]],
    *,
    positions: Mapping[str, Positions],
    layers: Sequence[int] | Literal["all"] = "all",
    hook: str = "hook_resid_post",
    rank: int = 8,
    config: TrainConfig = TrainConfig(),
    among: Among = "all tokens",
    batch_size: int = 64,
    seed: int = 0,
    save_to: Path | str | None = None,
) -> AlignmentMap:
    """Trains 2 x layers x columns subspaces, each for one variable.

    Args:
        bridge: the frozen base; causal.
        examples: pairs of one variable to train on.
        held_out: other pairs to score on.
        positions: name -> rule, one per column. It must select equally many tokens of a base and
            its source.
        layers: block indices, or "all".
        hook: the point inside a block.
        rank: dimensions of each subspace.
        config: settings of each training. Checkpoints are not kept.
        among: as for `analysis.alignment`.
        batch_size: pairs in one forward pass of scoring.
        seed: seed of the initialisation and the arbitrary labels.
        save_to: a file that stores finished cells. An interrupted map resumes from it. It is not
            deleted afterwards.

    Raises:
        ValueError: If there are no pairs or rules, the pairs swap several variables, training keeps
            checkpoints, or the file is of another map.
    """
    require_causal(bridge, "a map of alignments")
    known, unseen = (as_counterfactuals(part, name) for part, name in ((examples, "examples"), (held_out, "held_out")))
    names = {pair.variable for pair in (*known, *unseen)}
    if not positions or len(names) != 1:
        raise ValueError(
            f"alignment_map needs pairs of one variable and at least one position rule, got {len(positions)} rules and pairs "
            f"of {', '.join(sorted(names))}"
        )
    if config.output_dir is not None:
        raise ValueError(
            "alignment_map does not save its edits: leave output_dir out. To keep finished cells, pass save_to"
        )
    chosen = list(range(bridge.cfg.n_layers)) if layers == "all" else list(layers)
    cells = [
        Reft.at_layers(bridge, layers=[layer], positions=rule, intervention=Interchange, rank=rank, hook=hook)
        for layer in chosen
        for rule in positions.values()
    ]
    arms = ((known, unseen), tuple(arbitrary_labels(part, seed=seed) for part in (known, unseen)))
    saved = None if save_to is None else Saved(save_to, made_for=_digest(bridge, cells, arms, config, among, seed))
    score = partial(_scored, bridge, arms=arms, config=config, among=among, batch_size=batch_size, seed=seed)
    found = _trained(cells, score, 3 * len(unseen), saved, progress=config.progress)
    right, arbitrary, whole = rearrange(
        found, "(kind pair) (row column) -> kind row column pair", kind=3, column=len(positions)
    ).unbind()  # fmt: skip
    return AlignmentMap(
        right=right,
        arbitrary=arbitrary,
        whole=whole,
        labels=tuple(pair.label for pair in unseen),
        rows=tuple(dict.fromkeys(cell.sites[0].hook_name for cell in cells)),
        columns=tuple(positions),
        budget=f"interchanges of rank {rank}, {config.epochs} epochs of {len(known)} pairs, seed {seed}",
    )


def _trained(
    cells: Sequence[Reft],
    score: Callable[[Reft], Float[Tensor, " value"]],
    n_values: int,
    saved: Saved | None,
    *,
    progress: bool,
) -> Float[Tensor, "value cell"]:
    """Trains and scores the cells that are not saved yet."""
    shape = torch.Size((n_values, len(cells)))
    values, done = torch.full(shape, torch.nan), torch.zeros(shape, dtype=torch.bool)
    if saved is not None:
        done, values = saved.read(shape)
    todo = [number for number in range(len(cells)) if not bool(done[:, number].all())]
    for number in tqdm(todo, desc=f"training {len(todo)} cells, 2 in each", unit="cell", disable=not progress):
        values[:, number] = score(cells[number])
        done[:, number] = True
        if saved is not None:
            saved.write(values, done)
    return values


def _digest(
    bridge: TransformerBridge,
    cells: Sequence[Reft],
    arms: _Arms,
    config: TrainConfig,
    among: Among,
    seed: int,
) -> str:
    """Computes the checksum of everything the values depend on. How many pairs run together is not among it."""
    digest = hashlib.sha256(fingerprint(bridge).encode())
    digest.update(repr([arms, [repr(cell) for cell in cells], among, seed]).encode())
    digest.update(settings_of(config).encode())
    return digest.hexdigest()


def _scored(
    bridge: TransformerBridge,
    cell: Reft,
    *,
    arms: _Arms,
    config: TrainConfig,
    among: Among,
    batch_size: int,
    seed: int,
) -> Float[Tensor, " value"]:
    """Returns what is right in a cell, one kind after another: trained, trained on arbitrary labels, the whole activation."""
    found = []
    for known, unseen in arms:
        # One seed for both arms and all cells: they start from the same subspace.
        edit = untrained(cell, seed=seed)
        objective = InterchangeLoss(unseen[0].variable.split("+"))
        train(bridge, edit, known, replace(config, progress=False), objective=objective)
        found.append((SwapRuns(bridge, edit, unseen, among=among, batch_size=batch_size), edit))
    rights = [runs.right(edit) for runs, edit in found]
    runs, edit = found[0]
    return torch.cat([*rights, runs.right(whole_activation(edit))])
