"""At which layer and position can an edit be trained to work? Trains one edit of the same budget per layer x position cell.

gain(cell) = mean over held-out prompts of (score under the edit trained in this cell - score of the
base).

Rank, initialisation, examples, their order and the number of steps are the same in every cell, so
cells differ only in their location. The control trains in the same cells for the same number of
steps, on the same prompts with shuffled answers. An edit can write an answer anywhere from which it
can affect the last token. The gain above the control comes from what the edit can read at its cell.
Columns are position rules, so that prompts of different lengths align.

`analysis.beside_tracing` compares such a map with a tracing map, and says what the comparison does
not show:

    examples = [(prompt, " Rome"), ...]
    columns = {"last subject token": LastOf(AnySpan(subjects)), "last token": Last(1)}
    trained = reft_map(bridge, examples, held_out, positions=columns, rank=1, config=TrainConfig(epochs=20))
    traced = at_rules(patch(bridge, clean, corrupted, metric), clean, columns)
    beside_tracing(trained, traced)

Each cell is trained by `train`, on its light cone: late cells cost a fraction of early ones. The
base runs once for each example of an arm, whatever the number of cells.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
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

from reftlens.analysis.controls.retraining import permuted_labels
from reftlens.analysis.engine.coalitions import Coalitions, whole_sites
from reftlens.analysis.engine.saved import Saved, settings_of
from reftlens.analysis.metrics import Metric, probability_of
from reftlens.bridge import each, fingerprint, is_main_process, require_causal
from reftlens.cone.shared import shared
from reftlens.data import encode
from reftlens.edit.reft import Reft
from reftlens.edit.untrained import untrained
from reftlens.interventions import Intervention, LoReFT
from reftlens.positions import Positions
from reftlens.results import ReftMap
from reftlens.training.train import TrainConfig, train

Pairs = Sequence[tuple[str, str]]
Score = Callable[[TransformerBridge, Sequence[str], Sequence[str]], Metric]
"""Makes a metric from prompts and answers: `probability_of`, `loss_of` (lower is better, so gains are negative), or your own."""

_Cell = tuple[Reft, str]
"""An untrained edit, and the name of its column."""
_MEASURES = [("real", "held out"), ("real", "trained"), ("shuffled", "held out")]
"""What is measured in a cell: the examples an edit is trained on, and the prompts it is scored on."""


def reft_map(
    bridge: TransformerBridge,
    examples: Pairs,
    held_out: Pairs,
    *,
    positions: Mapping[str, Positions],
    layers: Sequence[int] | Literal["all"] = "all",
    hook: str = "hook_resid_pre",
    intervention: type[Intervention] = LoReFT,
    rank: int | None = 1,
    config: TrainConfig = TrainConfig(),
    score: Score = probability_of,
    score_name: str = "probability of the answer",
    memory_bytes: int = 1 << 30,
    save_to: Path | str | None = None,
) -> ReftMap:
    """Trains 2 x layers x columns edits. The progress bar shows this number and the steps of each beforehand.

    Args:
        bridge: the frozen base; causal.
        examples: (prompt, completion) pairs to train on.
        held_out: other pairs to score on, because memorised examples say little about where an edit
            can be trained.
        positions: name -> rule, one per column. Every prompt must have the tokens.
        layers: block indices, or "all".
        hook: the point inside a block; `hook_resid_pre` is what `patch` and tracing write to.
        intervention: the class.
        rank: of each edit; None for a class without a rank.
        config: settings of each training run. Its seed also sets the initialisation. Checkpoints
            are not kept. Base runs that all cells share take up to `hold_bytes` besides those of
            the cell that is trained.
        score: makes the metric, a function of the logits after each prompt, from prompts and
            answers.
        score_name: name of the score, with its unit.
        memory_bytes: approximate limit for the activations of one scoring run.
        save_to: a file that stores finished cells. An interrupted map resumes from it. It is not
            deleted afterwards.

    Raises:
        ValueError: If there is nothing to train, score or compare, a prompt lacks the tokens of a
            rule, more than half of the examples have the same answer, training keeps checkpoints,
            or the file is of another map.
    """
    require_causal(bridge, "a map of trained edits")
    if not examples or not held_out or not positions:
        raise ValueError(
            "reft_map needs at least one example, one held-out pair and one position rule, got "
            f"{len(examples)}, {len(held_out)} and {len(positions)}"
        )
    if config.output_dir is not None:
        raise ValueError("reft_map does not save its edits: leave output_dir out. To keep finished cells, pass save_to")
    # Layouts only: each arm trains a fresh copy from the same seed.
    make = partial(Reft.at_layers, bridge, intervention=intervention, rank=rank, hook=hook)
    cells = [
        (make(layers=[layer], positions=rule), column)
        for layer in (range(bridge.cfg.n_layers) if layers == "all" else layers)
        for column, rule in positions.items()
    ]
    rows = _rows(cells, layers, positions)
    scored = {
        "held out": _Scored(bridge, held_out, score, memory_bytes),
        "trained": _Scored(bridge, examples, score, memory_bytes),
    }
    for one in scored.values():
        one.require(cells)
    arms = {"real": list(examples), "shuffled": permuted_labels(examples, seed=config.seed)}
    saved = None if save_to is None else Saved(save_to, made_for=_digest(bridge, arms, scored, cells, config))
    values = _trained(bridge, cells, arms, scored, config, saved)
    real, seen, shuffled = (
        rearrange(part, "prompt (row column) -> row column prompt", row=len(rows)) for part in values
    )
    kind = intervention.__name__ + ("" if rank is None else f" of rank {rank}")
    return ReftMap(
        held_out=real,
        trained=seen,
        control=shuffled,
        base=scored["held out"].base,
        base_trained=scored["trained"].base,
        rows=rows,
        columns=tuple(positions),
        score=score_name,
        budget=f"{kind}, {cells[0][0].n_parameters():,} numbers, {_steps(len(examples), config)} steps on {len(examples)} examples, seed {config.seed}",
    )


def _rows(cells: Sequence[_Cell], layers: Sequence[int] | str, positions: Mapping[str, Positions]) -> tuple[str, ...]:
    """Returns the hook names of a map's rows. Raises if a layer is missing or named twice."""
    if not cells:
        raise ValueError('layers must be "all" or at least one layer, got none')
    rows = tuple(dict.fromkeys(reft.sites[0].hook_name for reft, _ in cells))
    if len(rows) * len(positions) != len(cells):
        raise ValueError(f"layers must not repeat a layer, got {layers}")
    return rows


def _trained(
    bridge: TransformerBridge,
    cells: Sequence[_Cell],
    arms: Mapping[str, Pairs],
    scored: Mapping[str, _Scored],
    config: TrainConfig,
    saved: Saved | None,
) -> tuple[Float[Tensor, "prompt cell"], ...]:
    """Trains the cells that are not saved yet, and scores each. Returns one table for each of `_MEASURES`."""
    sizes = [len(scored[on].pairs) for _, on in _MEASURES]
    # The measures below one another, since a Saved file holds one table.
    shape = torch.Size((sum(sizes), len(cells)))
    values, done = torch.full(shape, torch.nan), torch.zeros(shape, dtype=torch.bool)
    if saved is not None:
        done, values = saved.read(shape)
    todo = [number for number in range(len(cells)) if not bool(done[:, number].all())]
    steps = _steps(len(arms["real"]), config)
    bar = f"training {len(todo)} cells, {len(arms)} edits of {steps} steps in each"

    def score(number: int) -> Float[Tensor, " prompt"]:
        layout, _ = cells[number]
        trained = {}
        for arm, pairs in arms.items():
            trained[arm] = untrained(layout, seed=config.seed)
            train(bridge, trained[arm], pairs, replace(config, progress=False))
        return torch.cat([scored[on].under(trained[arm]) for arm, on in _MEASURES])

    found = each(bridge, score, todo)
    hidden = not (config.progress and is_main_process())
    # All cells hold parts of the same base runs.
    with shared(bridge, memory_bytes=config.hold_bytes) if config.hold_bytes else nullcontext():
        for number, scores in zip(
            todo, tqdm(found, desc=bar, unit="cell", total=len(todo), disable=hidden), strict=True
        ):
            values[:, number] = scores
            done[:, number] = True
            if saved is not None:
                saved.write(values, done)
    return values.split(sizes)


class _Scored:
    """Scores prompts under one edit after another, on one recording of the base."""

    def __init__(self, bridge: TransformerBridge, pairs: Pairs, score: Score, memory_bytes: int) -> None:
        prompts, answers = zip(*pairs, strict=True)
        self.pairs, self.batch = pairs, encode(bridge, prompts)
        self.runs = Coalitions(bridge, self.batch, score(bridge, prompts, answers), memory_bytes=memory_bytes)
        self.base: Float[Tensor, " prompt"] = self.runs.unedited.float()

    def require(self, cells: Sequence[_Cell]) -> None:
        """Raises if a rule does not select a token of some prompt."""
        for name, reft in {column: reft for reft, column in cells}.items():
            mask = reft.edits(self.batch)[0].mask
            for row in (~mask.any(1)).nonzero().flatten().tolist():
                raise ValueError(f"{name!r} does not select any token of {self.pairs[row][0]!r}")

    def under(self, reft: Reft) -> Float[Tensor, " prompt"]:
        """Computes the score of each prompt under an edit."""
        edits = reft.edits(self.batch)
        sets = torch.ones(1, len(edits), dtype=torch.bool)
        return (self.runs.effects(edits, whole_sites(edits), sets)[0] + self.runs.unedited).float()


def _steps(n_examples: int, config: TrainConfig) -> int:
    batches = -(-n_examples // config.batch_size)
    return -(-batches // config.gradient_accumulation) * config.epochs


def _digest(
    bridge: TransformerBridge,
    arms: Mapping[str, Pairs],
    scored: Mapping[str, _Scored],
    cells: Sequence[_Cell],
    config: TrainConfig,
) -> str:
    """Computes the checksum of everything the values depend on. A score is identified by its values on the base."""
    digest = hashlib.sha256(fingerprint(bridge).encode())
    digest.update(json.dumps([*arms.values(), *(one.pairs for one in scored.values())]).encode())
    digest.update(repr([(column, repr(reft)) for reft, column in cells]).encode())
    digest.update(settings_of(config).encode())
    for one in scored.values():
        digest.update(one.base.contiguous().numpy().tobytes())
    return digest.hexdigest()
