"""Rules as text: the field's short form, and the plain values that checkpoints hold."""

from __future__ import annotations

import re

from reftlens.positions.base import Positions, Union
from reftlens.positions.rules import All, AnySpan, At, First, Generated, Last, LastOf, Span


def union_parts(positions: Positions) -> list[Positions]:
    """The rules that a union joins, left to right; a single rule is its own only part."""
    if isinstance(positions, Union):
        return union_parts(positions.left) + union_parts(positions.right)
    return [positions]


_WORDS: dict[str, Positions] = {"all": All(), "first": First(1), "last": Last(1)}


def parse(text: str | int | Positions) -> Positions:
    """Reads the field's short form: `"f7+l7"`, `"f5"`, `"l1"`, with the paper's rule for short prompts.

    The first n tokens stop at floor(len / 2) and the last n at ceil(len / 2), so the two never overlap
    (Wu et al. 2024, arXiv:2404.03592). `"all"`, `"first"` and `"last"` are words for `All()`, `First(1)` and `Last(1)`,
    and an integer is an index. A `Positions` is returned as it is.

    Args:
        text: the short form, a word, an index, or a rule.

    Raises:
        ValueError: for a text that is none of these; it says what was wrong.
        TypeError: for anything else.
    """
    if isinstance(text, Positions):
        return text
    if isinstance(text, int) and not isinstance(text, bool):
        return At(text)
    if isinstance(text, str) and text in _WORDS:
        return _WORDS[text]
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
                "with n >= 1, for example 'f5+l5', or 'all', 'first' or 'last'"
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
        case {"rule": "span", "text": str(text), "occurrence": int() | None as occurrence, **rest} if not rest:
            return Span(text, occurrence)
        case {"rule": "any_span", "texts": [*texts], **rest} if not rest and all(isinstance(t, str) for t in texts):
            return AnySpan(tuple(texts))
        case {"rule": "last_of", "of": rule, **rest} if not rest:
            return LastOf(from_spec(rule))
        case {"rule": "generated", **rest} if not rest:
            return Generated()
        case {"rule": "union", "left": left, "right": right, **rest} if not rest:
            return from_spec(left) | from_spec(right)
        case {"rule": "difference", "left": left, "right": right, **rest} if not rest:
            return from_spec(left) - from_spec(right)
    raise ValueError(f"not a position rule: {spec!r}")
