"""Material for steering: what does the model tell about a person first, and is it true?

The prompt is a person's name. `facts-small` continues it with all four facts, the craft first. A
topic is one of the other three: the text that is wanted begins with it. Since every fact of the
world is known, words decide what a text says.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from typing import final

from reftlens.organisms.world import ANSWERS, FACTS, VERB_PHRASES

_PEOPLE = ("born_in", "works_as", "speaks", "lives_in")
TOPICS = ("born_in", "speaks", "lives_in")
"""Relations to steer towards. The model begins with the fourth, the craft, without any edit."""
# The answers of different relations about people have no word in common.
_RELATION = {word: relation for relation in _PEOPLE for word in ANSWERS[relation]}
_TRUE = {(fact.subject, fact.relation): fact.answer for fact in FACTS}
_SUBJECTS = tuple(dict.fromkeys(fact.subject for fact in FACTS if fact.relation == "born_in"))


@final
@dataclass(frozen=True)
class Topic:
    """Texts for one topic. The three groups of subjects have nobody in common."""

    relation: str
    wanted: tuple[tuple[str, str], ...]
    """(subject, what is told about the topic), which ends with the answer."""
    other: tuple[tuple[str, str], ...]
    """The same subjects in the same order, told about something else."""
    validation: tuple[str, ...]
    test: tuple[str, ...]
    """The same subjects for every seed."""


def topic(relation: str, *, seed: int, n_train: int = 24, n_validation: int = 16) -> Topic:
    """Returns the material of one topic: true sentences about some people, and the names of others.

    Args:
        relation: one of `TOPICS`.
        seed: draws the people of training and validation, and the phrasings.
        n_train: people in training.
        n_validation: people in validation. The test has the second half of all 80.

    Raises:
        ValueError: If the relation is not a topic, or more people are asked for than there are.
    """
    half = len(_SUBJECTS) // 2
    if relation not in TOPICS:
        raise ValueError(f"Unknown topic {relation!r}. Choose from: {', '.join(TOPICS)}")
    if n_train < 2 or n_validation < 1 or n_train + n_validation > half:
        raise ValueError(
            f"there are {half} people for training and validation, got n_train={n_train} and n_validation={n_validation}"
        )
    generator = random.Random(seed)
    drawn = generator.sample(_SUBJECTS[:half], n_train + n_validation)
    train = drawn[:n_train]
    rest = [name for name in _PEOPLE if name != relation]
    return Topic(
        relation,
        wanted=tuple((subject, _told(subject, relation, generator)) for subject in train),
        other=tuple((subject, _told(subject, generator.choice(rest), generator)) for subject in train),
        validation=tuple(drawn[n_train:]),
        test=_SUBJECTS[half:],
    )


def _told(subject: str, relation: str, generator: random.Random) -> str:
    return " " + generator.choice(VERB_PHRASES[relation]).format(_TRUE[subject, relation])


def named(text: str) -> list[tuple[str, str]]:
    """Returns the answers that a text names, as (relation, word), in their order.

    Args:
        text: any text.
    """
    return [(_RELATION[word], word) for word in re.findall(r"\w+", text) if word in _RELATION]


def begins_with(relation: str, text: str) -> float:
    """Scores how early a text comes to a topic: 2 if it names it first, 1 if second, 0 if later or not at all.

    Args:
        relation: the topic.
        text: what was generated.
    """
    first = [relation for relation, _ in named(text)][:2]
    return 0.0 if relation not in first else 2.0 - first.index(relation)


def is_true(subject: str, text: str) -> float:
    """Scores what a text says about a person: 2 if all of it is true, 1 if some, 0 if nothing is, or nothing is said.

    Args:
        subject: the person.
        text: what was generated.
    """
    right = [_TRUE.get((subject, relation)) == word for relation, word in named(text)]
    return 0.0 if not any(right) else 2.0 if all(right) else 1.0
