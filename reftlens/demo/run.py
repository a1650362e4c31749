"""The demo: trains an edit, saves and reloads it, dissects it and draws the results. No number is precomputed."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from reftlens import analysis
from reftlens.edit import checkpoint
from reftlens.bridge import load_bridge
from reftlens.cone.answers import next_token_logprobs
from reftlens.data import encode, first_tokens
from reftlens.dissection import DissectConfig, Dissection, dissect
from reftlens.interventions import LoReFT
from reftlens.positions import All, Last
from reftlens.edit.reft import Reft
from reftlens.results import Finding, Outcome, TokenMap
from reftlens.organisms.landmarks import Question, Story, stay_questions, story_for
from reftlens.training.train import TrainConfig, TrainLog, train

RESULTS_NAME = "results.json"
DISSECTION_NAME = "dissection"
EDIT_NAME = "edit"


@final
@dataclass(frozen=True)
class DemoConfig:
    """Settings of the demo."""

    model: str = "facts-small"
    """An embedded organism, a local directory or a hub name."""
    rank: int = 4
    """Rank of the LoReFT at each of two layers, at one and three quarters of the depth."""
    epochs: int = 30
    batch_size: int = 35
    lr: float = 4e-3
    seed: int = 0
    """Seed of the edit's initialisation, the order of examples, and every control."""
    progress: bool = True


@final
@dataclass(frozen=True, eq=False)
class DemoResult:
    """All results of the demo."""

    config: DemoConfig
    story: Story
    layers: tuple[int, ...]
    n_parameters: int
    log: TrainLog
    reload_difference: float
    """Largest absolute difference of a logit between the trained and the reloaded edit; 0 means bit-identical."""
    outcomes: tuple[Outcome, ...]
    effect: TokenMap
    dissection: Dissection
    """The other analyses, mostly on questions that were not in training."""
    tracing: TokenMap | None
    """The causal trace of the base; None if no two subjects have the same length in tokens."""
    stamp: dict[str, Any]
    seconds: dict[str, float]
    """Wall-clock time of each part."""

    @property
    def findings(self) -> tuple[Finding, ...]:
        """The dissection's, which also say what the demo's groups of prompts add."""
        further = {"works": _which_moved(self.outcomes), "else": _which_changed(self.outcomes, self.story.other_facts)}
        return tuple(
            replace(one, answer=f"{one.answer} {further[one.section]}".strip()) if one.section in further else one
            for one in self.dissection.findings
        )


def run_demo(config: DemoConfig, directory: Path) -> DemoResult:
    """Runs the demo and saves the trained edit as `directory / "edit"`.

    Raises:
        ValueError: If the model is unknown.
        RuntimeError: If the logits of the reloaded edit are not bit-identical.
    """
    clock = _Clock()
    bridge = load_bridge(config.model)
    story = story_for(config.model)
    clock.lap("load the model")
    layers = _two_layers(bridge.cfg.n_layers)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        reft = Reft.at_layers(bridge, layers=layers, positions=All(), intervention=LoReFT, rank=config.rank)
    log = train(
        bridge,
        reft,
        story.training_examples(),
        TrainConfig(
            epochs=config.epochs, batch_size=config.batch_size, lr=config.lr, seed=config.seed, progress=config.progress
        ),
    )
    clock.lap("train the edit")
    reft.save_pretrained(directory / EDIT_NAME, bridge=bridge)
    difference = _reload_difference(config.model, directory / EDIT_NAME, bridge, reft, story)
    clock.lap("save and reload it")
    outcomes = _outcomes(bridge, reft, story, config.seed)
    clock.lap("test it")
    moved = story.moved_questions(story.phrasings, new=False)
    questions = _one_length(bridge, moved)
    new = [" " + story.destination[question.subject] for question in questions]
    prompts, old = [question.prompt for question in questions], [question.answer for question in questions]
    effect = analysis.effect_map(
        bridge,
        reft,
        prompts,
        analysis.logit_difference_of(bridge, prompts, new, old),
        subjects=[question.subject for question in questions],
        seed=config.seed,
        progress=config.progress,
    )
    clock.lap("locate its effect")
    dissection = dissect(
        bridge,
        reft,
        [(question.prompt, question.answer) for question in _dissected(bridge, story)],
        DissectConfig(parts="quick", at=Last(1), seed=config.seed, progress=config.progress),
        unaffected=[(question.prompt, question.answer) for group in story.other_facts.values() for question in group],
    )
    dissection.save(directory / DISSECTION_NAME)
    clock.lap("take it apart")
    tracing = _trace(bridge, story, progress=config.progress)
    clock.lap("trace the base")
    return DemoResult(
        config=config,
        story=story,
        layers=layers,
        n_parameters=reft.n_parameters(),
        log=log,
        reload_difference=difference,
        outcomes=outcomes,
        effect=effect,
        dissection=dissection,
        tracing=tracing,
        stamp=checkpoint.stamp(bridge),
        seconds=clock.laps,
    )


def _which_moved(outcomes: Sequence[Outcome]) -> str:
    """How many prompts of each group have the new answer."""
    moved = [f"{round(one.edited * one.n)} of {one.n} in {one.group!r}" for one in outcomes if one.wanted == "new answer"]
    return f"These are {' and '.join(moved)}." if moved else ""


def _which_changed(outcomes: Sequence[Outcome], groups: Collection[str]) -> str:
    """How many answers each of these groups lost. Where the base is not always right, a share may hide an answer won."""
    lost = [(round((1 - one.edited) * one.n), one.group) for one in outcomes if one.group in groups and one.base == 1]
    named = [f"{n} are in {group!r}" for n, group in lost if n]
    return f"Of the changed answers, {' and '.join(named)}." if named else ""


class _Clock:
    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name], self._last = now - self._last, now


def _two_layers(n_layers: int) -> tuple[int, ...]:
    """Returns the layers at one and three quarters of the depth, where the subject is resolved and the answer is ready."""
    return tuple(sorted({n_layers // 4, 3 * n_layers // 4}))


@torch.no_grad()
def _reload_difference(model: str, directory: Path, bridge: TransformerBridge, reft: Reft, story: Story) -> float:
    """Reloads base and edit from their files, and compares logits on every training prompt."""
    prompts = [prompt for prompt, _ in story.training_examples()]

    def logits(base: TransformerBridge, edit: Reft) -> Tensor:
        batch = encode(base, prompts)
        with edit.hooks(base, batch):
            return base(batch.tokens, attention_mask=batch.attention_mask, use_cache=False)

    fresh = load_bridge(model)
    reloaded = logits(fresh, Reft.from_pretrained(directory, bridge=fresh))
    difference = float((logits(bridge, reft) - reloaded).abs().max())
    # No tolerance: the same numbers through the same kernels give the same bits.
    if difference != 0.0:
        raise RuntimeError(f"the reloaded edit does not equal the trained edit: a logit differs by {difference:.3g}")
    return difference


def _outcomes(bridge: TransformerBridge, reft: Reft, story: Story, seed: int) -> tuple[Outcome, ...]:
    unseen = stay_questions(story.stay_unseen, story.phrasings)
    groups: list[tuple[str, str, Sequence[Question]]] = [
        ("moved, trained phrasings", "new answer", story.moved_questions(story.phrasings, new=True)),
        ("moved, new phrasings", "new answer", story.moved_questions(story.new_phrasings, new=True)),
        ("others, trained to stay", "old answer", stay_questions(story.stay_trained, story.phrasings)),
        ("others, never trained on", "old answer", unseen),
        *((name, "old answer", questions) for name, questions in story.other_facts.items()),
    ]
    return tuple(
        analysis.outcome(
            bridge,
            reft,
            [question.prompt for question in questions],
            [question.answer for question in questions],
            group=name,
            wanted=wanted,
            seed=seed,
        )
        for name, wanted, questions in groups
    )


def _dissected(bridge: TransformerBridge, story: Story) -> list[Question]:
    """Returns every moved subject in every phrasing, and the unmoved subjects that were not in training.

    Of the latter, questions that the base gets wrong are left out: a dissection would take them for
    facts to change.
    """
    moved = story.moved_questions((*story.phrasings, *story.new_phrasings), new=True)
    unseen = stay_questions(story.stay_unseen, story.phrasings)
    prompts, answers = [question.prompt for question in unseen], [question.answer for question in unseen]
    said = next_token_logprobs(bridge, encode(bridge, prompts)).argmax(-1).cpu()
    right = (said == first_tokens(bridge, prompts, answers).cpu()).tolist()
    return [*moved, *(question for question, known in zip(unseen, right, strict=True) if known)]


def _one_length(bridge: TransformerBridge, questions: Sequence[Question]) -> list[Question]:
    """Returns the largest set of questions in one phrasing whose prompts and subjects have equal token counts."""
    sets: dict[tuple[str, int, int], list[Question]] = {}
    for question in questions:
        phrasing = question.prompt.replace(question.subject, "{}")
        places = analysis.subject_places(bridge, question.prompt, question.subject)
        # Places follow one another, so their number and their sum say where the subject is.
        sets.setdefault((phrasing, len(places), sum(places)), []).append(question)
    return max(sets.values(), key=len)


def _trace(bridge: TransformerBridge, story: Story, *, progress: bool) -> TokenMap | None:
    """Traces the base on its facts: compares every subject of the largest aligned set with two others."""
    known = (*story.moved, *story.stay_trained, *story.stay_unseen)
    clean = _one_length(bridge, stay_questions(known, story.phrasings[:1]))
    n = len(clean)
    rows = [
        (clean[i], clean[(i + 1) % n], clean[(i + 2) % n])
        for i in range(n)
        # Two subjects with one answer would restore each other's, and the control would be none.
        if len({clean[(i + k) % n].answer for k in range(3)}) == 3
    ]
    if not rows:
        return None
    kept, corrupted, unrelated = (list(column) for column in zip(*rows, strict=True))
    prompts = [question.prompt for question in kept]
    return analysis.trace(
        bridge,
        prompts,
        [question.prompt for question in corrupted],
        analysis.probability_of(bridge, prompts, [question.answer for question in kept]),
        subjects=[question.subject for question in kept],
        unrelated=[question.prompt for question in unrelated],
        progress=progress,
    )
