"""Position rules: by index in the prompt, by its text, and for the tokens after it.

A rule that ships has a class here, a `case` of `from_spec` and a name in `_SHIPPED` (both in
`parse`), and an export.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool
from torch import Tensor

from reftlens.positions.base import Positions, Prompts

_MOST = 2**31 - 1
"""Largest count or index: larger than any prompt, and small enough for a tensor."""


def _require_count(rule: str, count: object) -> None:
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise ValueError(f"{rule} needs a number of tokens of at least 1, got {count!r}")
    if count > _MOST:
        raise ValueError(
            f"{rule} needs a number of tokens of at most {_MOST:,}, got {count:,}; All() selects every token"
        )


def _require_bool(rule: str, half: object) -> None:
    if not isinstance(half, bool):
        raise ValueError(f"{rule} needs half=True or half=False, got {half!r}")


def _require_text(rule: str, text: object) -> None:
    if not isinstance(text, str) or not text:
        raise ValueError(f"{rule} needs a non-empty text to look for, got {text!r}")


def _cut(text: str, longest: int = 20) -> str:
    return text if len(text) <= longest else text[: longest - 1] + "…"


@final
@dataclass(frozen=True)
class First(Positions):
    """The first `count` tokens of each prompt (all of them, if the prompt is shorter)."""

    count: int
    half: bool = False
    """Limits the rule to the first half, floor(n / 2) tokens: the paper's rule for short prompts."""

    def __post_init__(self) -> None:
        _require_count("First", self.count)
        _require_bool("First", self.half)

    def pick(self, prompts: Prompts) -> Bool[Tensor, "batch pos"]:
        most = prompts.length // 2 if self.half else prompts.length
        return prompts.mask & (prompts.place < most.clamp(max=self.count))

    def spec(self) -> dict[str, object]:
        return {"rule": "first", "count": self.count, "half": self.half}

    @property
    def short(self) -> str:
        return f"f{self.count}" if self.half else f"first {self.count}"

    def __repr__(self) -> str:
        return f"First({self.count}{', half=True' if self.half else ''})"


@final
@dataclass(frozen=True)
class Last(Positions):
    """The last `count` tokens of each prompt (all of them, if the prompt is shorter)."""

    count: int
    half: bool = False
    """Limits the rule to the second half, ceil(n / 2) tokens: the paper's rule for short prompts.
    (The reference code takes floor(n / 2), which edits nothing in a one-token prompt.)
    """

    def __post_init__(self) -> None:
        _require_count("Last", self.count)
        _require_bool("Last", self.half)

    def pick(self, prompts: Prompts) -> Bool[Tensor, "batch pos"]:
        most = (prompts.length + 1) // 2 if self.half else prompts.length
        return prompts.mask & (prompts.place >= prompts.length - most.clamp(max=self.count))

    def spec(self) -> dict[str, object]:
        return {"rule": "last", "count": self.count, "half": self.half}

    @property
    def short(self) -> str:
        # The last token is in the second half of any prompt, so "half" changes nothing.
        return f"l{self.count}" if self.half and self.count > 1 else f"last {self.count}"

    def __repr__(self) -> str:
        return f"Last({self.count}{', half=True' if self.half else ''})"


@final
@dataclass(frozen=True)
class All(Positions):
    """Every prompt token."""

    def pick(self, prompts: Prompts) -> Bool[Tensor, "batch pos"]:
        return prompts.mask

    def spec(self) -> dict[str, object]:
        return {"rule": "all"}

    @property
    def short(self) -> str:
        return "all"

    def __repr__(self) -> str:
        return "All()"


@final
@dataclass(frozen=True)
class At(Positions):
    """The prompt token at `index`: 0 is the first, -1 the last. Every prompt must have it."""

    index: int

    def __post_init__(self) -> None:
        if not isinstance(self.index, int) or isinstance(self.index, bool):
            raise ValueError(f"At needs an integer index, got {self.index!r}")
        if abs(self.index) > _MOST:
            raise ValueError(f"At needs an index of at most {_MOST:,} in absolute value, got {self.index:,}")

    def pick(self, prompts: Prompts) -> Bool[Tensor, "batch pos"]:
        length = prompts.length
        index = length + self.index if self.index < 0 else length.new_full(length.shape, self.index)
        missing = ((index < 0) | (index >= length)).flatten()
        if bool(missing.any()):
            row = int(missing.nonzero()[0])
            raise ValueError(
                f"{self!r} does not exist in the prompt in row {row}, which has {int(length[row])} tokens: use a smaller "
                "index, or First(n) / Last(n)"
            )
        return prompts.mask & (prompts.place == index)

    def spec(self) -> dict[str, object]:
        return {"rule": "at", "index": self.index}

    @property
    def short(self) -> str:
        return f"at {self.index}"

    def __repr__(self) -> str:
        return f"At({self.index})"


@final
@dataclass(frozen=True)
class Span(Positions):
    """The tokens that contain a text, matched by characters. Every prompt must contain it."""

    text: str
    occurrence: int | None = None
    """Index of the occurrence: 0 is the first, -1 the last, None means all. Occurrences do not overlap."""

    def __post_init__(self) -> None:
        _require_text("Span", self.text)
        if self.occurrence is not None and (isinstance(self.occurrence, bool) or not isinstance(self.occurrence, int)):
            raise ValueError(f"Span needs occurrence=None or an integer, got {self.occurrence!r}")

    def pick(self, prompts: Prompts) -> Bool[Tensor, "batch pos"]:
        if prompts.texts is None or prompts.offsets is None:
            raise ValueError(
                f"{self!r} needs the text of the prompts: pass the batch of rl.encode instead of its prompt mask, made with a "
                "tokenizer that returns character offsets"
            )
        begin, end = prompts.offsets.unbind(-1)
        picked = torch.zeros_like(prompts.mask)
        for row, text in enumerate(prompts.texts):
            for start in self._starts(text, row):
                # Intervals overlap; that of a token without text (BOS) is empty and never does.
                picked[row] |= (begin[row] < start + len(self.text)) & (end[row] > start) & (begin[row] < end[row])
        return picked & prompts.mask

    def _starts(self, text: str, row: int) -> list[int]:
        starts = [match.start() for match in re.finditer(re.escape(self.text), text)]
        if not starts:
            raise ValueError(f"{self!r} is not in the prompt in row {row}: {text!r}")
        if self.occurrence is None:
            return starts
        if not -len(starts) <= self.occurrence < len(starts):
            raise ValueError(f"{self!r} occurs only {len(starts)} times in the prompt in row {row}: {text!r}")
        return [starts[self.occurrence]]

    def spec(self) -> dict[str, object]:
        return {"rule": "span", "text": self.text, "occurrence": self.occurrence}

    @property
    def short(self) -> str:
        return repr(_cut(self.text)) + ("" if self.occurrence is None else f"[{self.occurrence}]")

    def __repr__(self) -> str:
        return f"Span({self.text!r}{'' if self.occurrence is None else f', {self.occurrence}'})"


@final
@dataclass(frozen=True)
class AnySpan(Positions):
    """The tokens that contain one of several texts, such as the subjects of prompts about different subjects.

    In each prompt the rule uses the first occurrence of the longest text found. Every prompt must
    contain one of the texts.
    """

    texts: tuple[str, ...]

    def __post_init__(self) -> None:
        if isinstance(self.texts, str) or not isinstance(self.texts, Iterable) or not (texts := tuple(self.texts)):
            raise ValueError(f"AnySpan needs a tuple of texts to look for, got {self.texts!r}")
        if not all(isinstance(text, str) and text for text in texts):
            raise ValueError(f"AnySpan needs a tuple of texts to look for, got {self.texts!r}")
        # A list could not be hashed and would not equal the rule that is read back from a file.
        object.__setattr__(self, "texts", texts)

    def pick(self, prompts: Prompts) -> Bool[Tensor, "batch pos"]:
        if prompts.texts is None or prompts.offsets is None:
            raise ValueError(
                "AnySpan needs the text of the prompts: pass the batch of rl.encode instead of its prompt mask"
            )
        picked = torch.zeros_like(prompts.mask)
        for row, text in enumerate(prompts.texts):
            held = [wanted for wanted in self.texts if wanted in text]
            if not held:
                raise ValueError(f"the prompt in row {row} contains none of the {len(self.texts)} texts: {text!r}")
            # Row by row, since Span demands its text in every prompt that it gets.
            one = Prompts(prompts.mask[row : row + 1], None, (text,), prompts.offsets[row : row + 1])
            picked[row] = Span(max(held, key=len), 0).pick(one)[0]
        return picked

    def spec(self) -> dict[str, object]:
        return {"rule": "any_span", "texts": list(self.texts)}

    @property
    def short(self) -> str:
        return f"any of {len(self.texts)} texts"

    def __repr__(self) -> str:
        return f"AnySpan({self.texts!r})"


@final
@dataclass(frozen=True)
class LastOf(Positions):
    """The last token that another rule picks in each prompt: `LastOf(Span("the tower"))`."""

    rule: Positions

    def __post_init__(self) -> None:
        if not isinstance(self.rule, Positions):
            raise TypeError(f"LastOf needs a rule such as Span('the tower'), got {self.rule!r}")

    def pick(self, prompts: Prompts) -> Bool[Tensor, "batch pos"]:
        picked = self.rule.pick(prompts)
        # Picked tokens from here to the end of the row: 1 at the last of them.
        behind = picked.long().flip(1).cumsum(1).flip(1)
        return picked & (behind == 1)

    def spec(self) -> dict[str, object]:
        return {"rule": "last_of", "of": self.rule.spec()}

    @property
    def short(self) -> str:
        return f"last of ({self.rule.short})"

    def __repr__(self) -> str:
        return f"LastOf({self.rule!r})"


@final
@dataclass(frozen=True)
class Generated(Positions):
    """All tokens after the prompt: completion tokens in training, generated tokens in decoding."""

    @property
    def generated(self) -> bool:
        return True

    def pick(self, prompts: Prompts) -> Bool[Tensor, "batch pos"]:
        return torch.zeros_like(prompts.mask) if prompts.completion is None else prompts.completion

    def spec(self) -> dict[str, object]:
        return {"rule": "generated"}

    @property
    def short(self) -> str:
        return "generated"

    def __repr__(self) -> str:
        return "Generated()"
