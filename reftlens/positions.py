"""Which tokens an edit touches: rules from a prompt mask to the mask of edited tokens.

A rule is a small frozen value. `mask` maps `prompt_mask [batch, pos]` (True where a token belongs to the
prompt) to a mask of the same shape. Padding side, ragged batches and short prompts are all one case: a
token's place is counted among its own row's prompt tokens, so padding never counts.

    >>> First(2) | Last(1)
    First(2) | Last(1)
    >>> parse("f5+l5")
    First(5, half=True) | Last(5, half=True)
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, final

from jaxtyping import Bool, Int
from torch import Tensor


class Positions(ABC):
    """A rule that picks tokens of a prompt. Join rules with `|`, take one from another with `-`."""

    @abstractmethod
    def pick(self, place: Int[Tensor, "batch pos"], length: Int[Tensor, "batch 1"]) -> Bool[Tensor, "batch pos"]:
        """Says for each place whether it is picked.

        Args:
            place: 0-based place of each prompt token in its own prompt; values at other tokens are ignored.
            length: number of prompt tokens in each row.
        """

    @abstractmethod
    def spec(self) -> dict[str, object]:
        """The rule as plain JSON values; `from_spec` reads it back."""

    def mask(self, prompt_mask: Bool[Tensor, "batch pos"]) -> Bool[Tensor, "batch pos"]:
        """The mask of edited tokens.

        Args:
            prompt_mask: True where a token belongs to the prompt.

        Raises:
            ValueError: if the rule picks a token that some prompt does not have.
        """
        place = prompt_mask.long().cumsum(dim=1) - 1
        return self.pick(place, prompt_mask.sum(dim=1, keepdim=True)) & prompt_mask

    def __or__(self, other: Positions) -> Positions:
        return Union(self, other)

    def __sub__(self, other: Positions) -> Positions:
        return Difference(self, other)


def _require_count(rule: str, count: object) -> None:
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise ValueError(f"{rule} needs a number of tokens >= 1, got {count!r}")


@final
@dataclass(frozen=True)
class First(Positions):
    """The first `count` tokens of each prompt (all of them, if the prompt is shorter)."""

    count: int
    half: bool = False
    """Never past the first half, floor(n / 2) tokens: the paper's rule for short prompts."""

    def __post_init__(self) -> None:
        _require_count("First", self.count)

    def pick(self, place: Int[Tensor, "batch pos"], length: Int[Tensor, "batch 1"]) -> Bool[Tensor, "batch pos"]:
        most = length // 2 if self.half else length
        return place < most.clamp(max=self.count)

    def spec(self) -> dict[str, object]:
        return {"rule": "first", "count": self.count, "half": self.half}

    def __repr__(self) -> str:
        return f"First({self.count}{', half=True' if self.half else ''})"


@final
@dataclass(frozen=True)
class Last(Positions):
    """The last `count` tokens of each prompt (all of them, if the prompt is shorter)."""

    count: int
    half: bool = False
    """Never before the second half, ceil(n / 2) tokens: the paper's rule for short prompts. (The reference
    code takes floor(n / 2), which edits nothing in a one-token prompt.)"""

    def __post_init__(self) -> None:
        _require_count("Last", self.count)

    def pick(self, place: Int[Tensor, "batch pos"], length: Int[Tensor, "batch 1"]) -> Bool[Tensor, "batch pos"]:
        most = (length + 1) // 2 if self.half else length
        return place >= length - most.clamp(max=self.count)

    def spec(self) -> dict[str, object]:
        return {"rule": "last", "count": self.count, "half": self.half}

    def __repr__(self) -> str:
        return f"Last({self.count}{', half=True' if self.half else ''})"


@final
@dataclass(frozen=True)
class All(Positions):
    """Every prompt token."""

    def pick(self, place: Int[Tensor, "batch pos"], length: Int[Tensor, "batch 1"]) -> Bool[Tensor, "batch pos"]:
        return place < length

    def spec(self) -> dict[str, object]:
        return {"rule": "all"}

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

    def pick(self, place: Int[Tensor, "batch pos"], length: Int[Tensor, "batch 1"]) -> Bool[Tensor, "batch pos"]:
        index = length + self.index if self.index < 0 else length.new_full(length.shape, self.index)
        missing = ((index < 0) | (index >= length)).flatten()
        if bool(missing.any()):
            row = int(missing.nonzero()[0])
            raise ValueError(
                f"{self!r} wants a token that the prompt in row {row} does not have (it has "
                f"{int(length[row])} tokens); use a smaller index, or First(n) / Last(n)"
            )
        return place == index

    def spec(self) -> dict[str, object]:
        return {"rule": "at", "index": self.index}

    def __repr__(self) -> str:
        return f"At({self.index})"


@dataclass(frozen=True)
class _Pair(Positions):
    """Two rules, joined."""

    left: Positions
    right: Positions
    symbol: ClassVar[str]
    rule: ClassVar[str]

    def spec(self) -> dict[str, object]:
        return {"rule": self.rule, "left": self.left.spec(), "right": self.right.spec()}

    def __repr__(self) -> str:
        right = f"({self.right!r})" if isinstance(self.right, _Pair) else repr(self.right)
        return f"{self.left!r} {self.symbol} {right}"


@final
@dataclass(frozen=True, repr=False)
class Union(_Pair):
    """Tokens that either rule picks."""

    symbol: ClassVar[str] = "|"
    rule: ClassVar[str] = "union"

    def pick(self, place: Int[Tensor, "batch pos"], length: Int[Tensor, "batch 1"]) -> Bool[Tensor, "batch pos"]:
        return self.left.pick(place, length) | self.right.pick(place, length)


@final
@dataclass(frozen=True, repr=False)
class Difference(_Pair):
    """Tokens that the left rule picks and the right one does not."""

    symbol: ClassVar[str] = "-"
    rule: ClassVar[str] = "difference"

    def pick(self, place: Int[Tensor, "batch pos"], length: Int[Tensor, "batch 1"]) -> Bool[Tensor, "batch pos"]:
        return self.left.pick(place, length) & ~self.right.pick(place, length)


def union_parts(positions: Positions) -> list[Positions]:
    """The rules that a union joins, left to right; a single rule is its own only part."""
    if isinstance(positions, Union):
        return union_parts(positions.left) + union_parts(positions.right)
    return [positions]


def parse(text: str | Positions) -> Positions:
    """Reads the field's short form: `"f7+l7"`, `"f5"`, `"l1"`, with the paper's rule for short prompts.

    The first n tokens stop at floor(len / 2) and the last n at ceil(len / 2), so the two never overlap
    (Wu et al. 2024, arXiv:2404.03592). A `Positions` is returned as it is.

    Raises:
        ValueError: for anything else, saying what was wrong.
    """
    if isinstance(text, Positions):
        return text
    if not isinstance(text, str):
        raise TypeError(
            f"positions must be a rule such as First(5) | Last(5) or a string such as 'f5+l5', got {text!r}"
        )
    rules: dict[str, Positions] = {}
    for part in text.split("+"):
        match = re.fullmatch(r"([fl])([1-9][0-9]*)", part)
        if match is None:
            raise ValueError(
                f"cannot read positions {text!r} at {part!r}: wanted 'f<n>', 'l<n>' or both joined by '+', "
                "with n >= 1, for example 'f5+l5'"
            )
        kind, count = match[1], int(match[2])
        if kind in rules:
            raise ValueError(f"cannot read positions {text!r}: {kind!r} stands twice; wanted at most one f and one l")
        rules[kind] = First(count, half=True) if kind == "f" else Last(count, half=True)
    first, *rest = rules.values()
    return first | rest[0] if rest else first


def from_spec(spec: object) -> Positions:
    """Reads back what `Positions.spec` wrote.

    Raises:
        ValueError: if the spec is not one that `spec` writes.
    """
    match spec:
        case {"rule": "first", "count": int(count), "half": bool(half), **rest} if not rest:
            return First(count, half=half)
        case {"rule": "last", "count": int(count), "half": bool(half), **rest} if not rest:
            return Last(count, half=half)
        case {"rule": "all", **rest} if not rest:
            return All()
        case {"rule": "at", "index": int(index), **rest} if not rest:
            return At(index)
        case {"rule": "union", "left": left, "right": right, **rest} if not rest:
            return from_spec(left) | from_spec(right)
        case {"rule": "difference", "left": left, "right": right, **rest} if not rest:
            return from_spec(left) - from_spec(right)
    raise ValueError(f"not a position rule: {spec!r}")
