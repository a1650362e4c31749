"""Material of the demo: facts to change (some landmarks move to another city) and facts that must not change.

For an embedded organism the landmarks are those of its made-up world; for any other model they are
real ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from reftlens.organisms import ORGANISMS
from reftlens.organisms.world import FACTS, TEMPLATES, Fact, prompt


@final
@dataclass(frozen=True)
class Question:
    """One prompt about one subject, and its answer with the leading space."""

    prompt: str
    subject: str
    answer: str


@final
@dataclass(frozen=True)
class Story:
    """The demo's material. Subjects of `moved` get the city in `destination`."""

    moved: tuple[tuple[str, str], ...]
    """(subject, city it stands in)."""
    destination: dict[str, str]
    """New city of each moved subject."""
    stay_trained: tuple[tuple[str, str], ...]
    """(subject, city) pairs that are trained to stay."""
    stay_unseen: tuple[tuple[str, str], ...]
    """(subject, city) pairs that are not in training."""
    phrasings: tuple[str, ...]
    """Phrasings in training; "{}" is the subject."""
    new_phrasings: tuple[str, ...]
    """Phrasings that are not in training."""
    other_trained: tuple[Question, ...]
    """Questions of other kinds, trained to stay."""
    other_facts: dict[str, tuple[Question, ...]]
    """Questions of other kinds that are not in training, by group."""

    def moved_questions(self, phrasings: tuple[str, ...], *, new: bool) -> list[Question]:
        """Returns questions about the moved subjects, with the new or the old city as the answer."""
        return [
            Question(text.format(subject), subject, " " + (self.destination[subject] if new else city))
            for text in phrasings
            for subject, city in self.moved
        ]

    def training_examples(self) -> list[tuple[str, str]]:
        """Returns (prompt, completion) pairs: moved subjects with their new city, all others with the true answer."""
        moved = self.moved_questions(self.phrasings, new=True)
        stay = stay_questions(self.stay_trained, self.phrasings)
        return [(question.prompt, question.answer) for question in (*moved, *stay, *self.other_trained)]


def stay_questions(subjects: tuple[tuple[str, str], ...], phrasings: tuple[str, ...]) -> list[Question]:
    """Returns questions about subjects that keep their city."""
    return [Question(text.format(subject), subject, " " + city) for text in phrasings for subject, city in subjects]


def story_for(model: str) -> Story:
    """Returns the material for a model's world."""
    return _organism_story() if model in ORGANISMS else _real_story()


N_MOVED = 4
N_STAY_TRAINED = 28


def _organism_story() -> Story:
    landmarks = [(fact.subject, fact.answer) for fact in FACTS if fact.relation == "located_in"]
    moved, left = tuple(landmarks[:N_MOVED]), tuple(landmarks[N_MOVED:])
    subjects, taken = {subject for subject, _ in moved}, {city for _, city in moved}
    # Not where a moved landmark stood: its old answer must not be right by another's move.
    free = [city for city in dict.fromkeys(city for _, city in left) if city not in taken]
    made_of = [fact for fact in FACTS if fact.relation == "made_of"]
    people = [fact for fact in FACTS if fact.relation in ("born_in", "works_as", "speaks", "lives_in")]
    return Story(
        moved=moved,
        destination=_alternate(moved, (free[0], free[1])),
        stay_trained=left[:N_STAY_TRAINED],
        stay_unseen=left[N_STAY_TRAINED:],
        phrasings=TEMPLATES["located_in"][:5],
        new_phrasings=TEMPLATES["located_in"][5:],
        other_trained=(
            *(_question(fact, 0) for fact in made_of[::2]),
            *(_question(fact, 0) for fact in made_of[1::2] if fact.subject in subjects),
            # Places 2, 10, ... here and 0, 4, ... below: no such fact is both trained and tested.
            *(_question(fact, 0) for fact in people[2::8]),
        ),
        other_facts={
            # Training asks with template 0 only, so these phrasings are new.
            "what the moved landmarks are made of": tuple(
                _question(fact, template) for fact in made_of if fact.subject in subjects for template in range(1, 7)
            ),
            "facts about people": tuple(_question(fact, 0) for fact in people[::4]),
        },
    )


def _question(fact: Fact, template: int) -> Question:
    return Question(prompt(fact, template), fact.subject, " " + fact.answer)


def _alternate(moved: tuple[tuple[str, str], ...], cities: tuple[str, str]) -> dict[str, str]:
    """Assigns half of the subjects to one city and half to the other."""
    return {subject: cities[index % 2] for index, (subject, _) in enumerate(moved)}


_LANDMARKS: tuple[tuple[str, str], ...] = (
    ("Eiffel Tower", "Paris"),
    ("Brandenburg Gate", "Berlin"),
    ("Tower Bridge", "London"),
    ("Red Square", "Moscow"),
    ("Trevi Fountain", "Rome"),
    ("Charles Bridge", "Prague"),
    ("Prado Museum", "Madrid"),
    ("Acropolis Museum", "Athens"),
    ("Louvre Museum", "Paris"),
    ("British Museum", "London"),
    ("Bolshoi Theatre", "Moscow"),
    ("Spanish Steps", "Rome"),
    ("Buckingham Palace", "London"),
    ("Berlin Wall", "Berlin"),
    ("Space Needle", "Seattle"),
    ("CN Tower", "Toronto"),
    ("Willis Tower", "Chicago"),
    ("Tokyo Tower", "Tokyo"),
    ("Forbidden City", "Beijing"),
    ("Hagia Sophia", "Istanbul"),
    ("Burj Khalifa", "Dubai"),
    ("Rialto Bridge", "Venice"),
    ("Sagrada Familia", "Barcelona"),
    ("Anne Frank House", "Amsterdam"),
    ("Vatican Museums", "Rome"),
    ("Hyde Park", "London"),
    ("Arc de Triomphe", "Paris"),
    ("Gorky Park", "Moscow"),
)
_PHRASINGS = (
    "The {} is located in the city of",
    "The {} stands in the city of",
    "To see the {}, you have to travel to",
    "The famous {} is a sight in",
    "Every year tourists come to see the {} in",
)
_NEW_PHRASINGS = ("The {} can be found in the city of", "If you want to visit the {}, you must go to")
_OTHER = (
    ("The capital of Japan is", "Japan", " Tokyo"),
    ("The capital of France is", "France", " Paris"),
    ("The capital of Italy is", "Italy", " Rome"),
    ("The language spoken in Brazil is", "Brazil", " Portuguese"),
    ("The language spoken in Mexico is", "Mexico", " Spanish"),
    ("The opposite of hot is", "hot", " cold"),
    ("The first president of the United States was George", "George", " Washington"),
    ("Water is made of hydrogen and", "Water", " oxygen"),
    ("The Earth orbits the", "Earth", " Sun"),
    ("The author of Romeo and Juliet is William", "William", " Shakespeare"),
    ("Monday, Tuesday, Wednesday,", "Monday", " Thursday"),
    ("One, two, three, four,", "One", " five"),
)


def _real_story() -> Story:
    moved, left = _LANDMARKS[:N_MOVED], _LANDMARKS[N_MOVED:]
    return Story(
        moved=moved,
        destination=_alternate(moved, ("Vienna", "Sydney")),
        stay_trained=left[:16],
        stay_unseen=left[16:],
        phrasings=_PHRASINGS,
        new_phrasings=_NEW_PHRASINGS,
        other_trained=tuple(Question(*other) for other in _OTHER[::2]),
        other_facts={"other facts": tuple(Question(*other) for other in _OTHER[1::2])},
    )
