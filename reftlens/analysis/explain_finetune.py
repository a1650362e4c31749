"""How much of a finetuned model does a small edit of its base reproduce? Distils a LoRA, or any finetune, into a ReFT edit.

explained = 1 - sum KL(finetuned || edited) / sum KL(finetuned || base)

The sums run over the tokens that predict a completion. The edit is trained on the finetuned model's
next-token distributions (`Distillation`), first alone at each site with the smallest rank, then at
the best site with more rank or more sites, for as long as it explains more of examples that are
kept from its training. Where the edit fails, activations of the base are replaced by the finetuned
model's own: a component whose replacement explains more carries what the edit lacks.

A high share says that the outputs agree on these prompts. It is not evidence of the same mechanism:
many edits, at many sites, give the same outputs. The number means something only beside its
controls: an edit of the same budget that was trained on the task's labels and never saw the
finetune (if it explains as much, then the edit shows the task and nothing about this finetune), the
same for a finetune on shuffled answers and for a random finetune of the same norm (if they are
explained as well, then an edit of this budget can imitate anything), and prompts far from the
training data. A control has one training, of the layout that the search chose for the finetune.
Another finetune may be explained better at other sites, so a low share of it does not say that no
edit of this size imitates it.

The search is greedy: a smaller edit than the one found may exist.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast, final

from torch import nn
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from reftlens.analysis.controls.random_finetune import random_finetune
from reftlens.analysis.controls.retraining import permuted_labels
from reftlens.analysis.controls.turned import turned
from reftlens.analysis.engine.growing import Cell, Distilling, Room, grow
from reftlens.analysis.engine.replacements import Replacing
from reftlens.analysis.engine.two_models import Finetuned, Outputs
from reftlens.arguments import warn
from reftlens.bridge import is_main_process, load_finetuned, require_causal
from reftlens.cone.shared import sharing
from reftlens.data import Batch, Given, Prompt
from reftlens.data.texts import as_list
from reftlens.display import progress_bar
from reftlens.edit.reft import Reft
from reftlens.edit.untrained import untrained
from reftlens.interventions import Intervention, LoReFT
from reftlens.numbers import require_number, require_whole_number
from reftlens.positions import All, Generated, Positions
from reftlens.results import ExplainedFinetune
from reftlens.results.finetunes import FOUND, Explained
from reftlens.training.objectives import Completion
from reftlens.training.train import TrainConfig

Pairs = Sequence[tuple[Prompt, str]]
Model: TypeAlias = str | Path | nn.Module
"""A finetuned model: a folder (an adapter of `peft`, or a whole model), a model in memory, a bridge, or an edit of the base."""

_KEPT = 5
"""One example in so many is kept from training, to choose by."""


@sharing
def explain_finetune(
    bridge: TransformerBridge,
    finetuned: Model,
    examples: Pairs,
    held_out: Given,
    *,
    far: Given | None = None,
    labels: Pairs | None = None,
    shuffled: Model | Callable[[Pairs], Model] | None = None,
    layers: Sequence[int] | Literal["all"] = "all",
    hooks: Sequence[str] = ("hook_resid_post",),
    positions: Positions | str = All() | Generated(),
    intervention: type[Intervention] = LoReFT,
    ranks: Sequence[int] = (1, 2, 4, 8),
    max_sites: int = 2,
    stop: float = 0.02,
    config: TrainConfig = TrainConfig(),
    n_replaced: int = 16,
    random_finetunes: int = 1,
    floor: float = 1e-3,
    batch_size: int = 64,
) -> tuple[Reft, ExplainedFinetune]:
    """Searches for the smallest edit that reproduces a finetuned model's outputs, and measures what it leaves.

    It trains several edits; `explain_finetune_cost` gives their steps beforehand, and the progress
    bar counts them.

    Args:
        bridge: the frozen base; causal.
        finetuned: a folder that `peft` saved (LoRA, DoRA), the folder of a whole model, a model of
            transformers or `peft` in memory (which is copied), a bridge, or an edit of the base.
        examples: (prompt, completion) pairs to distil on. Only the finetuned model's distributions
            at the completion's tokens are learned. A fifth of the pairs, drawn by the seed of
            `config`, is kept from training to choose by.
        held_out: other prompts, or pairs, on which shares are reported. The search never sees them.
        far: prompts, or pairs, far from what the finetune was trained on.
        labels: (prompt, answer) pairs of the task, usually `examples` themselves. With them, the
            first control is run: an edit of the same budget, trained on these answers, as many as
            it has examples; few are repeated. Prompts that are kept to choose by are left out.
        shuffled: a model finetuned on shuffled answers, or a function that makes one from pairs; it
            gets `labels` shuffled.
        layers: blocks that may be edited, or "all".
        hooks: points inside a block that may be edited.
        positions: the tokens that are edited: all by default, because a change of weights acts at
            all of them.
        intervention: the class of the edits; one with a rank.
        ranks: of an edit, in ascending order. All sites have the same rank.
        max_sites: of an edit.
        stop: the search goes on as long as a larger edit explains so much more, on the examples it
            chooses by.
        config: settings of each training. Its seed also sets the initialisation. Checkpoints are
            not kept.
        n_replaced: held-out prompts on which activations are replaced, at most; 0 replaces none.
        random_finetunes: random finetunes that are explained as a control; each needs a further
            training.
        floor: mean nats of KL(finetuned || base) below which a share says nothing.
        batch_size: prompts in one forward pass.

    Returns:
        The edit, an ordinary `Reft` that every other analysis takes, and the result.

    Raises:
        ValueError: If the finetuned model does not have the form of its base or gives the same
            outputs, there are fewer than two examples, or an argument is out of range.
    """
    require_causal(bridge, "an explanation by distillation")
    room = Room(_cells(bridge, layers, hooks), positions, intervention, tuple(ranks), max_sites, stop)
    _check(room, config, labels, shuffled, random_finetunes=random_finetunes, n_replaced=n_replaced, floor=floor)
    known, chosen_by = _divided(examples, config.seed)
    held_out = _unseen(held_out, [*known, *chosen_by])
    model = _model(bridge, finetuned)
    # All that may be refused comes before the trainings.
    on_shuffled = _shuffled(bridge, shuffled, labels, config.seed)
    _require_random(bridge, model, random_finetunes)
    n_edits = room.most_edits() + bool(labels) + (shuffled is not None) + random_finetunes
    about = f"explaining a finetune, at most {n_edits} edits of {_steps(len(known), config)} steps"
    with progress_bar(total=n_edits, desc=about, unit="edit", shown=config.progress and is_main_process()) as bar:
        work = _Work(bridge, replace(config, progress=False), floor, batch_size, bar)
        unseen = work.outputs(model, held_out, "held out")
        if not float(unseen.base.sum()):
            raise ValueError("the finetuned model has the outputs of its base on held_out: there is nothing to explain")
        elsewhere = tuple(work.far(model, far))
        distilling = work.distilling(model, known)
        growth = grow(bridge, room, distilling, work.outputs(model, chosen_by, "chosen by"))
        asked = (work.outputs(model, known, "trained on"), unseen, *elsewhere)
        controls = _Controls(work, growth.reft, known, chosen_by, held_out, distilling, asked[1:])
        beside = list(controls.all(model, labels or (), on_shuffled, random_finetunes))
    found = ExplainedFinetune(
        sites=growth.reft.site_names,
        kind=intervention.__name__,
        rank=growth.rank,
        numbers=growth.reft.n_parameters(),
        shares=tuple(outputs.explained(FOUND, growth.reft) for outputs in asked),
        controls=tuple(beside),
        layers=tuple(unseen.explained(edit.site_names[0], edit) for edit in growth.alone),
        path=growth.path,
        replaced=(),
        replaced_share=float("nan"),
        n_replaced=0,
        budget=f"{_steps(len(known), config)} steps on {len(known)} examples, seed {config.seed}",
    )
    if not n_replaced:
        return growth.reft, found
    parts = Replacing(bridge, model, held_out, growth.reft, most=n_replaced, floor=floor, seed=config.seed)
    table = parts.table(_random(bridge, model, config.seed) if random_finetunes else None)
    return growth.reft, replace(found, replaced=table, replaced_share=parts.share, n_replaced=parts.n)


def explain_finetune_cost(
    n_examples: int,
    n_sites: int,
    *,
    ranks: Sequence[int] = (1, 2, 4, 8),
    max_sites: int = 2,
    n_controls: int = 2,
    config: TrainConfig = TrainConfig(),
) -> int:
    """Returns how many optimiser steps `explain_finetune` takes at most. All else is a few runs of each prompt.

    Args:
        n_examples: of the distillation.
        n_sites: layers times hooks.
        ranks: as for `explain_finetune`.
        max_sites: as for `explain_finetune`.
        n_controls: edits trained as controls: one for the labels, one for shuffled answers, and
            `random_finetunes`.
        config: as for `explain_finetune`.
    """
    cells = tuple((place, "") for place in range(n_sites))
    room = Room(cells, "all", LoReFT, tuple(ranks), max_sites, 0.02)
    return (room.most_edits() + n_controls) * _steps(n_examples - _n_kept(n_examples), config)


@final
@dataclass(frozen=True, eq=False)
class _Work:
    """What all trainings and measurements of one explanation share."""

    bridge: TransformerBridge
    config: TrainConfig
    floor: float
    batch_size: int
    bar: tqdm[Any]

    def outputs(self, model: Finetuned, prompts: Given, name: str) -> Outputs:
        return Outputs(self.bridge, model, prompts, name=name, floor=self.floor, batch_size=self.batch_size)

    def far(self, model: Finetuned, prompts: Given | None) -> Iterator[Outputs]:
        if prompts is not None:
            yield self.outputs(model, prompts, "far")

    def distilling(self, model: Finetuned, examples: Pairs) -> Distilling:
        outputs = self.outputs(model, examples, "trained on")
        return Distilling(self.bridge, model, examples, self.config, outputs, self.bar.update)


@final
@dataclass(frozen=True, eq=False)
class _Controls:
    """Edits of the same layout as the one found, from the same first weights."""

    work: _Work
    found: Reft
    known: Pairs
    chosen_by: Pairs
    held_out: Given
    distilling: Distilling
    asked: Sequence[Outputs]
    """The finetuned model's outputs on held-out and far prompts."""

    def _fresh(self) -> Reft:
        return untrained(self.found, seed=self.work.config.seed)

    def all(
        self, model: Finetuned, labels: Pairs, shuffled: Callable[[], Finetuned] | None, n_random: int
    ) -> Iterator[Explained]:
        yield from self.on_labels(labels)
        yield from self.on_shuffled(shuffled)
        yield from self.on_random(model, n_random)

    def on_labels(self, labels: Pairs) -> Iterator[Explained]:
        # Without the prompts that the distilled edit was not trained on either.
        kept = {repr(prompt) for prompt, _ in self.chosen_by}
        answers = [pair for pair in labels if repr(pair[0]) not in kept] or list(labels)
        if answers:
            # More or fewer answers than examples would be more or fewer steps, and another budget.
            as_many = [answers[place % len(answers)] for place in range(len(self.known))]
            edit = self.distilling.train(self._fresh(), as_many)
            # On far prompts too: an edit that learned the task does not know what else this
            # finetune changed.
            yield from (outputs.explained("an edit on the labels", edit) for outputs in self.asked)

    def on_shuffled(self, shuffled: Callable[[], Finetuned] | None) -> Iterator[Explained]:
        if shuffled is not None:
            yield self._explained("a finetune on shuffled answers", shuffled())

    def on_random(self, model: Finetuned, n: int) -> Iterator[Explained]:
        for number in range(n):
            with _random(self.work.bridge, model, self.work.config.seed + number) as other:
                yield self._explained("a random finetune" + (f" {number + 1}" if n > 1 else ""), other)

    def _explained(self, name: str, other: Finetuned) -> Explained:
        edit = self.work.distilling(other, self.known).edit(self._fresh())
        return self.work.outputs(other, self.held_out, "held out").explained(name, edit)


@contextmanager
def _random(bridge: TransformerBridge, model: Finetuned, seed: int) -> Iterator[Finetuned]:
    """Opens a context with a random finetune of the same norm; for an edit, the edit in random directions."""
    if model.reft is not None:
        yield Finetuned(bridge, turned(model.reft, seed=seed))
        return
    with random_finetune(bridge, model.bridge, seed=seed):
        yield model


def _model(bridge: TransformerBridge, finetuned: Model) -> Finetuned:
    if isinstance(finetuned, Reft):
        return Finetuned(bridge, finetuned)
    other = load_finetuned(bridge, finetuned)
    if other is bridge:
        raise ValueError("finetuned is the base itself: pass a second bridge, a folder or an edit")
    return Finetuned(other)


def _shuffled(
    bridge: TransformerBridge, shuffled: Model | Callable[[Pairs], Model] | None, labels: Pairs | None, seed: int
) -> Callable[[], Finetuned] | None:
    """Returns what gives the finetune on shuffled answers. One that is there is loaded, and answers are shuffled, at once."""
    if shuffled is None:
        return None
    if isinstance(shuffled, str | Path | nn.Module):
        model = _model(bridge, shuffled)
        return lambda: model
    finetune = shuffled
    # Permuting takes any prompts, and its annotation says texts.
    pairs = permuted_labels(cast("Sequence[tuple[str, str]]", labels), seed=seed)
    return lambda: _model(bridge, finetune(pairs))


def _require_random(bridge: TransformerBridge, model: Finetuned, n: int) -> None:
    """Raises what making a random finetune would raise."""
    if n:
        with _random(bridge, model, 0):
            pass


def _unseen(held_out: Given, examples: Pairs) -> Given:
    """Returns the held-out prompts, and warns of those that are also trained on or chosen by, where they are given as texts."""
    if isinstance(held_out, Batch):
        return held_out
    # They are read several times, and a generator only once.
    held_out = as_list(held_out, "held_out")
    # A conversation has no hash, but its text has one.
    known = {repr(prompt) for prompt, _ in examples}
    asked = [repr(one[0] if isinstance(one, tuple) and one else one) for one in held_out if not isinstance(one, Batch)]
    n_known = sum(prompt in known for prompt in asked)
    if n_known:
        warn(
            f"{n_known} of {len(asked)} held-out prompts are also among the examples, so the share held out is partly one of "
            "prompts that were trained on: leave them out of held_out"
        )
    return held_out


def _cells(bridge: TransformerBridge, layers: Sequence[int] | Literal["all"], hooks: Sequence[str]) -> tuple[Cell, ...]:
    n_layers = bridge.cfg.n_layers
    chosen = list(range(n_layers)) if layers == "all" else [int(layer) for layer in layers]
    outside = [layer for layer in chosen if not 0 <= layer < n_layers]
    if outside or not chosen or not hooks or len({*chosen}) < len(chosen):
        raise ValueError(
            f'layers must be "all" or different blocks from 0 to {n_layers - 1}, and hooks at least one point, got {layers} and '
            f"{list(hooks)}"
        )
    return tuple((layer, hook) for layer in sorted(chosen) for hook in hooks)


def _check(
    room: Room,
    config: TrainConfig,
    labels: Pairs | None,
    shuffled: object,
    *,
    random_finetunes: int,
    n_replaced: int,
    floor: float,
) -> None:
    for name, value, least in (
        ("max_sites", room.max_sites, 1),
        ("random_finetunes", random_finetunes, 0),
        ("n_replaced", n_replaced, 0),
    ):
        require_whole_number(name, value, least=least)
    require_number("stop", room.stop, above=0, below=1)
    require_number("floor", floor, least=0)
    if not room.ranks or list(room.ranks) != sorted(set(room.ranks)):
        raise ValueError(f"ranks must ascend, with at least one, got {list(room.ranks)}")
    if config.output_dir is not None:
        raise ValueError(
            "explain_finetune does not save its edits: leave output_dir out, and save the edit that it returns"
        )
    if shuffled is not None and not isinstance(shuffled, str | Path | nn.Module) and not labels:
        raise ValueError("a function that finetunes on shuffled answers needs the answers: pass labels")


def _divided(examples: Pairs, seed: int) -> tuple[Pairs, Pairs]:
    """Returns the examples that are trained on, and those that the search chooses by."""
    pairs = Completion().read(examples)
    if len(pairs) < 2:
        raise ValueError(f"explain_finetune needs at least two examples, one to choose by, got {len(pairs)}")
    order = random.Random(seed).sample(range(len(pairs)), len(pairs))
    kept = set(order[: _n_kept(len(pairs))])
    return [one for n, one in enumerate(pairs) if n not in kept], [one for n, one in enumerate(pairs) if n in kept]


def _n_kept(n_examples: int) -> int:
    return max(1, n_examples // _KEPT)


def _steps(n_examples: int, config: TrainConfig) -> int:
    batches = -(-n_examples // config.batch_size)
    return -(-batches // config.gradient_accumulation) * config.epochs
