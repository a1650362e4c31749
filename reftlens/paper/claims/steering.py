"""Steering: does a trained edit beat a difference of means, at calibrated strength?

AxBench (Wu et al. 2025, arXiv:2501.17148) found that prompting and training steer best, while a
difference of means is among the best detectors of a concept. Here a concept is a topic of
`reftlens.organisms.topics`, and the judges count words and perplexity. The trained methods see
texts that begin as the judge wants; so do the computed vectors, but without gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import final

from transformer_lens.model_bridge import TransformerBridge

from reftlens.bridge import load_bridge
from reftlens.edit.generate import Decoding, generate
from reftlens.organisms import ORGANISMS
from reftlens.organisms.topics import TOPICS, begins_with, is_true, topic
from reftlens.paper.baselines.judges import Fluency, Judges
from reftlens.paper.baselines.steering import FACTORS, STEERING, SteeringProblem, compare_steering
from reftlens.results.claims import Claim, SteeringClaim

_SAMPLES = 2
"""Texts sampled from the base per training prompt, which are the ordinary ones."""


@final
@dataclass(frozen=True)
class SteeringConfig:
    """Settings."""

    topics: tuple[str, ...] = TOPICS
    seeds: tuple[int, ...] = (0, 1, 2)
    """Each draws other people for training and validation, other phrasings, and other initial weights."""
    methods: tuple[str, ...] = tuple(STEERING)
    layers: tuple[int, ...] = (3, 4)
    """The model's card has the fact at the last token of the prompt from here on."""
    factors: tuple[float, ...] = FACTORS
    n_train: int = 24
    n_validation: int = 16
    max_new_tokens: int = 8


def problem(bridge: TransformerBridge, relation: str, config: SteeringConfig, *, seed: int) -> SteeringProblem:
    """Makes the problem of one topic.

    Args:
        bridge: `facts-small`.
        relation: one of `TOPICS`.
        config: the settings.
        seed: of the people, the phrasings and the ordinary texts.
    """
    material = topic(relation, seed=seed, n_train=config.n_train, n_validation=config.n_validation)
    prompts = [prompt for prompt, _ in material.wanted] * _SAMPLES
    decoding = Decoding(max_new_tokens=config.max_new_tokens, temperature=1.0, seed=seed)
    ordinary = [
        (prompt, text)
        for prompt, text in zip(prompts, generate(bridge, None, prompts, decoding=decoding), strict=True)
        if text
    ]
    return SteeringProblem(
        relation,
        wanted=material.wanted,
        other=material.other,
        ordinary=ordinary,
        validation=material.validation,
        test=material.test,
        judges=Judges(partial(_concept, relation), _instruct, Fluency(bridge, ordinary)),
        max_new_tokens=config.max_new_tokens,
    )


def _concept(relation: str, prompts: Sequence[str], texts: Sequence[str]) -> list[float]:
    return [begins_with(relation, text) for text in texts]


def _instruct(prompts: Sequence[str], texts: Sequence[str]) -> list[float]:
    """The prompt asks for facts about a person: are they true?"""
    return [is_true(prompt, text) for prompt, text in zip(prompts, texts, strict=True)]


def steering(
    bridge: TransformerBridge, config: SteeringConfig = SteeringConfig(), *, model: str, progress: bool = True
) -> SteeringClaim:
    """Compares the methods on every topic and seed.

    Args:
        bridge: `facts-small`.
        config: the settings.
        model: name of the model in the result.
        progress: show a progress bar.

    Raises:
        ValueError: If a topic or method is unknown.
    """
    unknown = [name for name in config.methods if name not in STEERING]
    if unknown:
        raise ValueError(f"Unknown method {unknown[0]!r}. Choose from: {', '.join(STEERING)}")
    problems = {seed: [problem(bridge, name, config, seed=seed) for name in config.topics] for seed in config.seeds}
    methods = {name: STEERING[name] for name in config.methods}
    found = compare_steering(bridge, problems, methods, layers=config.layers, factors=config.factors, progress=progress)
    n_test = len(problems[config.seeds[0]][0].test)
    about = Claim(
        text="At calibrated strength, an edit trained by gradients steers better than a difference of means.",
        source="Wu et al. 2025, arXiv:2501.17148 (AxBench)",
        settings=(
            ("concepts", "500 per layer, such as a kind of text", ", ".join(config.topics)),
            ("base", "Gemma-2 2B and 9B", Path(model).name),
            ("judge", "a large language model", "words, facts, and perplexity under the base"),
            (
                "candidates",
                "several strengths",
                f"{found.n_candidates}: {len(config.factors)} strengths at {len(config.layers)} layers",
            ),
            (
                "prompts",
                "10 per concept, half of them for the choice of the strength",
                f"{config.n_validation} for the choice, {n_test} others",
            ),
            ("seeds", "not read", ", ".join(map(str, config.seeds))),
        ),
        model=Path(model).name,
    )
    return SteeringClaim(about, found)


def run(model: str, *, seed: int = 0, progress: bool = True) -> SteeringClaim:
    """Tests the claim with three seeds, on the model that ships.

    Args:
        model: an organism.
        seed: the first of three seeds.
        progress: show a progress bar.

    Raises:
        ValueError: If it is another model, whose facts are not known.
    """
    if model not in ORGANISMS:
        raise ValueError(
            f"this claim needs a model whose facts are known: {', '.join(ORGANISMS)}, got {model!r}. "
            "For your own model and judges use rl.baselines.compare_steering"
        )
    config = replace(SteeringConfig(), seeds=(seed, seed + 1, seed + 2))
    return steering(load_bridge(model), config, model=model, progress=progress)
