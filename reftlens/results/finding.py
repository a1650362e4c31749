"""One sentence of a report: a question, what was found, the null beside it, and where to read more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, final

Strength = Literal["shown", "not distinguishable", "not measured"]


@final
@dataclass(frozen=True)
class Finding:
    """A question of a reader with its answer."""

    question: str
    answer: str
    """Whole sentences with the number. They claim no more than the number and its null allow."""
    section: str
    """Name of the part of the dissection whose section shows the results, such as "works"; the anchor on a page."""
    null: str = ""
    """The null or control with its number; empty if nothing was measured."""
    strength: Strength = "shown"
    """"shown": the result is beyond its null, or is a plain measurement. "not distinguishable": it
    is not beyond its null. "not measured": the part was not run, or could not be.
    """
    code: str = ""
    """The call that measures it; empty if it was measured, or cannot be."""

    def __str__(self) -> str:
        return " ".join(part for part in (self.question, self.answer, self.null, self.code) if part)
