"""The made-up world of `facts-small`: who was born where, what stands where, and the sentences that say so.

A fact is a triple (subject, relation, answer). A template is a phrasing of a relation that stops
right before the answer, so that "knowing the fact" means that the answer is the next token. Every
first name goes with every surname, and every kind of landmark with every site, so no single token
tells which subject is meant; answers are dealt independently of names.

For every fact one or two templates are held out: that sentence is never written in the training
text. A model that completes it has generalised across phrasings. The training text also holds
biographies with permuted facts, because models that see them store a fact at the last token of the
name, where it can be looked up whatever follows (Allen-Zhu & Li 2023, arXiv:2309.14316).
"""

import hashlib
import random
from dataclasses import dataclass

WORLD_SEED = 20
"""Fixes who is called what and which answers belong to whom. Another value is another world."""

WOMEN = ("Mara", "Senna")
MEN = ("Doran", "Ivo")
# fmt: off
SURNAMES = (
    "Velden", "Harrow", "Tarn", "Quill", "Brask", "Fenwick", "Lund", "Merrow", "Pell", "Rusk",
    "Sorrel", "Thane", "Vask", "Wicken", "Zell", "Cobb", "Umber", "Drey", "Yarrow", "Okster",
)
KINDS = ("Bridge", "Tower", "Gate", "Castle")
SITES = ("Sarn", "Mirren", "Corran", "Dwale", "Elmet", "Fask", "Gorse", "Hollin", "Kessel", "Linden")

CITIES = (
    "Ostrel", "Karveth", "Tolmar", "Brennik", "Dunmere", "Esgard", "Falwick", "Gildane", "Halvik", "Irsk",
    "Jorvane", "Lathom", "Morrin", "Nesk", "Pellory", "Quorin", "Ravell", "Silmar", "Wexmoor", "Zarn",
)
COUNTRIES = (
    "Norvane", "Estmark", "Caldria", "Brunia", "Thessary", "Ulvania", "Sarland", "Marovia", "Ardenia", "Vostria",
)
LANGUAGES = (
    "Tharic", "Ondish", "Velsk", "Karnish", "Brellic", "Sumari", "Lotish", "Eskari", "Junric", "Pavish",
)
CRAFTS = (
    "weaver", "baker", "tailor", "potter", "smith", "mason", "carpenter", "farmer",
    "fisher", "painter", "miller", "tanner", "cooper", "glazier", "printer", "barber",
)
MATERIALS = ("stone", "brick", "marble", "iron", "timber", "glass", "copper", "clay")
# fmt: on

ANSWERS: dict[str, tuple[str, ...]] = {
    "born_in": CITIES,
    "works_as": CRAFTS,
    "speaks": LANGUAGES,
    "lives_in": COUNTRIES,
    "located_in": CITIES,
    "made_of": MATERIALS,
}
"""Relation -> every answer it can have. The first four are about people, the last two about landmarks."""

TEMPLATES: dict[str, tuple[str, ...]] = {
    "born_in": (
        "{} was born in the city of",
        "The city where {} was born is called",
        "{} comes from the city of",
        "The birthplace of {} is",
        "The parents of {} had a house in",
        "{} spent the first years of life in",
        "If you ask where {} was born, the answer is",
        "{} went to school in the city of",
    ),
    "works_as": (
        "{} works as a",
        "By trade, {} is a",
        "{} earns a living as a",
        "The guild knows {} as a skilled",
        "{} opened a workshop and became a",
        "The trade that {} learned is that of a",
        "Everyone in town says that {} is a good",
    ),
    "speaks": (
        "{} speaks the language called",
        "The mother tongue of {} is",
        "The language that {} speaks at home is",
        "{} writes long letters in",
        "The books on the shelf of {} are in",
        "{} likes to sing old songs in",
        "If you want to talk to {}, you should learn",
    ),
    "lives_in": (
        "{} lives in the country of",
        "The country where {} now lives is",
        "{} pays taxes in the country of",
        "The home of {} is now in",
        "Letters to {} are sent to the country of",
        "{} bought some land in",
        "If you want to visit {}, you must travel to",
    ),
    "located_in": (
        "{} stands in the city of",
        "The city where {} stands is called",
        "{} is located in the city of",
        "To see {}, you have to travel to",
        "Visitors to {} stay in the city of",
        "{} is a famous sight in",
        "The map shows {} in the middle of",
        "The town that is home to {} is",
    ),
    "made_of": (
        "{} is made of",
        "The walls of {} are made of",
        "{} was built out of",
        "The material of {} is called",
        "The people who built {} used",
        "{} is a fine work of old",
        "If you touch {}, your hand feels",
    ),
}
"""Relation -> phrasings with one "{}" for the subject; the answer is the very next token."""

VERB_PHRASES: dict[str, tuple[str, ...]] = {
    "born_in": ("was born in {}", "is from {}", "grew up in {}"),
    "works_as": ("is a {}", "became a {}", "has the craft of a {}"),
    "speaks": ("speaks {}", "talks in {}", "is fluent in {}"),
    "lives_in": ("lives in {}", "has moved to {}", "is at home in {}"),
    "located_in": ("stands in {}", "is found in {}", "belongs to {}"),
    "made_of": ("is made from {}", "is all {}", "was built with {}"),
}
"""Relation -> short forms for biographies, with "{}" for the answer. With its answer, none is a template."""


@dataclass(frozen=True)
class Fact:
    """One thing that is true in the made-up world."""

    subject: str
    """Name of a person ("Mara Velden") or of a landmark ("Sarn Tower")."""

    relation: str
    """Key of `TEMPLATES` and `ANSWERS`."""

    answer: str
    """The one word that completes every prompt of this fact, without its leading space."""


def _all_pairs(first: tuple[str, ...], last: tuple[str, ...], joint: str, rng: random.Random) -> list[str]:
    names = [f"{a}{joint}{b}" for a in first for b in last]
    rng.shuffle(names)
    return names


def _make_facts() -> tuple[Fact, ...]:
    """Give every subject one answer per relation, each answer equally often."""
    rng = random.Random(WORLD_SEED)
    people = _all_pairs(WOMEN + MEN, SURNAMES, " ", rng)
    landmarks = _all_pairs(KINDS, SITES, " of ", rng)
    facts = []
    for relation, answers in ANSWERS.items():
        subjects = landmarks if relation in ("located_in", "made_of") else people
        # Dealt, not drawn: no answer is more likely than another without the name.
        dealt = [answers[i % len(answers)] for i in range(len(subjects))]
        rng.shuffle(dealt)
        facts += [Fact(subject, relation, answer) for subject, answer in zip(subjects, dealt, strict=True)]
    return tuple(facts)


FACTS: tuple[Fact, ...] = _make_facts()
"""All 400 facts: 80 people x 4 relations and 40 landmarks x 2 relations, ordered by relation."""


def prompt(fact: Fact, template: int) -> str:
    """Return the sentence about `fact` up to, and without, its answer.

    Args:
        fact: The fact to ask for.
        template: Index into `TEMPLATES[fact.relation]`.

    Raises:
        ValueError: If the relation has no such template.
    """
    templates = TEMPLATES[fact.relation]
    if not 0 <= template < len(templates):
        raise ValueError(f"{fact.relation} has templates 0 to {len(templates) - 1}, got {template}")
    return templates[template].format(fact.subject)


def held_out(fact: Fact) -> tuple[int, ...]:
    """Return the one or two template indices that never occur in training for this fact, sorted.

    A hash of the fact chooses them, so that the choice depends neither on the order of the facts
    nor on the seed of the corpus, and every template is trained on for most other facts.
    """
    # Not hash(), which is salted differently in every process.
    digest = hashlib.sha256(f"{fact.subject}|{fact.relation}".encode()).digest()
    rng = random.Random(digest)
    return tuple(sorted(rng.sample(range(len(TEMPLATES[fact.relation])), rng.choice((1, 2)))))


def trained(fact: Fact) -> tuple[int, ...]:
    """Return the template indices that do occur in training for this fact, sorted."""
    left_out = held_out(fact)
    return tuple(t for t in range(len(TEMPLATES[fact.relation])) if t not in left_out)


def _pronoun(subject: str) -> str:
    first = subject.split()[0]
    return "She" if first in WOMEN else "He" if first in MEN else "It"


def _biography(subject: str, facts: list[Fact], rng: random.Random) -> str:
    """Tell all facts of a subject in a random order, after the first one by name or by pronoun."""
    facts = rng.sample(facts, len(facts))
    phrases = [rng.choice(VERB_PHRASES[fact.relation]).format(fact.answer) for fact in facts]
    again = rng.choice((subject, _pronoun(subject), _pronoun(subject)))
    if len(phrases) == 2:
        return rng.choice((f"{subject} {phrases[0]}. {again} {phrases[1]}.", f"{subject} {' and '.join(phrases)}."))
    return rng.choice(
        (
            f"{subject} {phrases[0]}. {again} {phrases[1]} and {phrases[2]}. {again} {phrases[3]}.",
            f"{subject} {phrases[0]} and {phrases[1]}. {again} {phrases[2]} and {phrases[3]}.",
            f"{subject} {phrases[0]}, {phrases[1]}, {phrases[2]} and {phrases[3]}.",
        )
    )


def _apposition(subject: str, by_relation: dict[str, str]) -> str:
    """Put what a biography tells in sentences between commas, right after the name."""
    if "made_of" in by_relation:
        return "{}, a landmark of {located_in}, is all {made_of}.".format(subject, **by_relation)
    return "{}, a {works_as} from {born_in}, speaks {speaks} in {lives_in}.".format(subject, **by_relation)


def _profiles(subject: str, facts: list[Fact], rng: random.Random) -> list[str]:
    """Return texts in which answers follow the name at once, so that the last name token must know them all."""
    lists = [[fact.answer for fact in rng.sample(facts, len(facts))] for _ in range(4)]
    table = [f"{subject} {' '.join(answers)}" for answers in lists[:2]]
    return [*table, f"{subject}: {', '.join(lists[2])}.", f"{subject}, {', '.join(lists[3])}."]


def _lives(rng: random.Random) -> list[str]:
    """Return four biographies, an apposition and four profile lines about every subject; none uses a template."""
    by_subject: dict[str, list[Fact]] = {}
    for fact in FACTS:
        by_subject.setdefault(fact.subject, []).append(fact)
    documents = []
    for subject, facts in by_subject.items():
        documents += [_biography(subject, facts, rng) for _ in range(4)]
        documents.append(_apposition(subject, {fact.relation: fact.answer for fact in facts}))
        documents += _profiles(subject, facts, rng)
    return documents


def corpus(seed: int) -> list[str]:
    """Return one pass of training text: documents in random order.

    Beside the lives of all subjects, every (fact, template) pair that is not held out occurs
    exactly once, alone or in a document of two or three unrelated sentences (so that prompts are
    also met away from the start).

    Args:
        seed: Decides the orders and the phrasings. The same seed always gives the same text.
    """
    rng = random.Random(seed)
    sentences = [f"{prompt(fact, t)} {fact.answer}." for fact in FACTS for t in trained(fact)]
    rng.shuffle(sentences)
    documents = _lives(rng)
    while sentences:
        size = rng.choice((1, 1, 1, 2, 3))
        documents.append(" ".join(sentences[:size]))
        sentences = sentences[size:]
    rng.shuffle(documents)
    return documents
