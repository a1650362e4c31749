"""Material of the claims: prompts, facts and words, and the settings for each model."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar, final

from transformer_lens.model_bridge import TransformerBridge

from reftlens.edit.generate import generate
from reftlens.edit.reft import Reft
from reftlens.organisms import ORGANISMS
from reftlens.organisms.landmarks import story_for
from reftlens.organisms.world import FACTS
from reftlens.results.claims import Claim, Spoken

PAPER = "Wu et al. 2024, arXiv:2404.03592"

Config = TypeVar("Config")


def config_for(model: str, *, paper: Config, organism: Config) -> Config:
    """Returns the organism's settings for an organism, and the paper's for any other model."""
    return organism if model in ORGANISMS else paper


def describe(
    text: str, *, source: str, model: str, paper: Any, used: Any, more: Sequence[tuple[str, str, str]]
) -> Claim:
    """Creates a claim with two dataclasses of settings, and with settings that are not their fields."""
    shown = tuple(
        (field.name, _text(getattr(paper, field.name)), _text(getattr(used, field.name))) for field in fields(used)
    )
    return Claim(text=text, source=source, settings=(*shown, *more), model=Path(model).name)


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(_text, value))
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def layer_at(bridge: TransformerBridge, depth: float) -> int:
    """Returns the block at a fraction of the model's depth; 0 is the first, 1 the last."""
    return min(int(depth * bridge.cfg.n_layers), bridge.cfg.n_layers - 1)


def words(bridge: TransformerBridge, n: int, *, seed: int) -> list[str]:
    """Draws different words from the vocabulary, each with its leading space, in random order.

    Raises:
        ValueError: If the vocabulary has fewer words.
    """
    tokenizer = bridge.tokenizer
    pieces = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    # Byte-level and SentencePiece vocabularies mark the beginning of a word with these.
    # Sorted, because the order of a set of strings changes with every process.
    found = sorted(
        {p[1:] for p in pieces if p[:1] in ("Ġ", "▁") and len(p) > 4 and p[1:].isascii() and p[1:].isalpha()}
    )
    if len(found) < n:
        raise ValueError(
            f"the vocabulary must have {n} words that are single tokens, but has only {len(found)}: ask for fewer"
        )
    return [f" {word}" for word in random.Random(seed).sample(found, n)]


@final
@dataclass(frozen=True)
class Ask:
    """One prompt, and its answer in the new manner."""

    prompt: str
    facts: tuple[str, ...]
    """Facts that a right answer contains. The first one can be moved."""
    manner: str
    """The answer in the new manner."""


@final
@dataclass(frozen=True)
class Material:
    """Prompts for one model, the mark of a manner and a fact to move."""

    asks: tuple[Ask, ...]
    mark: str
    """A text that answers in the new manner contain and usual answers do not."""
    moved_to: str
    """The new value of the first fact of every prompt."""
    new_tokens: int
    """Number of new tokens, enough for an answer."""


def material_for(model: str, *, seed: int) -> Material:
    """Returns people of the organism's world to describe, or for any other model landmarks to locate.

    The organism describes a person in sentences. In training it has also seen the facts listed
    after a colon, which is the new manner. For other models the new manner is an interjection after
    the answer.
    """
    rng = random.Random(seed)
    if model in ORGANISMS:
        people: dict[str, dict[str, str]] = {}
        for fact in FACTS:
            if fact.relation in ("born_in", "works_as", "speaks", "lives_in"):
                people.setdefault(fact.subject, {})[fact.relation] = fact.answer
        # Facts come in the order of the relations, so the first, which is moved, is the birthplace.
        asks = [Ask(name, tuple(facts.values()), f": {', '.join(facts.values())}.") for name, facts in people.items()]
        moved_to, mark, new_tokens = "Zarn", ":", 24
        # Of people born there, nothing would move.
        asks = [ask for ask in asks if ask.facts[0] != moved_to]
    else:
        story = story_for(model)
        places = (*story.moved, *story.stay_trained, *story.stay_unseen)
        asks = [Ask(story.phrasings[0].format(name), (city,), f" {city}, ahoy!") for name, city in places]
        moved_to, mark, new_tokens = "Vienna", "ahoy", 8
    return Material(tuple(rng.sample(asks, len(asks))), mark, moved_to, new_tokens)


def as_before(bridge: TransformerBridge, material: Material, asks: Sequence[Ask]) -> list[str]:
    """Returns the model's answers without an edit; if an answer is empty, only the fact."""
    texts = generate(bridge, None, [ask.prompt for ask in asks], max_new_tokens=material.new_tokens)
    return [text if text.strip() else f" {ask.facts[0]}." for ask, text in zip(asks, texts, strict=True)]


def speak(
    bridge: TransformerBridge,
    reft: Reft | None,
    material: Material,
    asks: Sequence[Ask],
    *,
    name: str,
    taught_move: bool,
) -> Spoken:
    """Generates the answers, and counts which properties they have.

    Args:
        bridge: the model.
        reft: the edit, or None.
        material: gives the mark and the moved fact.
        asks: prompts that were not used in training.
        name: name of this edit in the result.
        taught_move: whether the first fact should be the moved one. The other facts should be
            unchanged.
    """
    texts = generate(bridge, reft, [ask.prompt for ask in asks], max_new_tokens=material.new_tokens, batch_size=64)
    manner = [material.mark in text for text in texts]
    moved = [material.moved_to in text for text in texts]
    kept = [
        all(fact in text for fact in ask.facts[1 if taught_move else 0 :])
        for ask, text in zip(asks, texts, strict=True)
    ]
    # A moved fact counts where one was taught; otherwise the manner must not cost any fact.
    together = [one and other for one, other in zip(manner, moved if taught_move else kept, strict=True)]

    def share(column: Sequence[bool]) -> float:
        return sum(column) / len(asks)

    return Spoken(
        edit=name,
        manner=share(manner),
        moved=share(moved) if taught_move else float("nan"),
        kept=share(kept),
        together=share(together),
        n=len(asks),
        sample=texts[0],
    )
