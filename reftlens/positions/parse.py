"""Reads position rules, including your own, from the field's short form and from the JSON values in checkpoints."""

from __future__ import annotations

import json
import re
from typing import Any

from reftlens.files.reading import parse_json
from reftlens.positions.base import Positions, Union
from reftlens.positions.rules import All, AnySpan, At, First, Generated, Last, LastOf, Span


def union_parts(positions: Positions) -> list[Positions]:
    """Returns the rules in a union, from left to right; a single rule gives a list of itself."""
    if isinstance(positions, Union):
        return union_parts(positions.left) + union_parts(positions.right)
    return [positions]


_OWN: dict[str, type[Positions]] = {}
_SHIPPED = ("first", "last", "all", "at", "span", "any_span", "last_of", "generated", "union", "difference")
_WORDS: dict[str, Positions] = {"all": All(), "first": First(1), "last": Last(1)}


def parse(text: str | int | Positions) -> Positions:
    """Reads the field's short form: `"f7+l7"`, `"f5"`, `"l1"`, with the paper's rule for short prompts.

    The first n tokens stop at floor(len / 2) and the last n at ceil(len / 2), so the two never
    overlap (Wu et al. 2024, arXiv:2404.03592). `"all"`, `"first"` and `"last"` mean `All()`,
    `First(1)` and `Last(1)`, and an integer is an index. `'{"rule": "span", "text": "the tower"}'`
    is a rule in the form that `spec` writes. A `Positions` is returned unchanged.

    Args:
        text: the short form, a word, an index, or a rule.

    Raises:
        ValueError: If the text has none of these forms. The message gives the reason.
        TypeError: If the argument is anything else.
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
    if text.startswith("{"):
        return from_spec(parse_json(text))
    rules: dict[str, Positions] = {}
    for part in text.split("+"):
        # The whole part must match: a typing error must not silently select other tokens.
        match = re.fullmatch(r"([fl])([1-9][0-9]*)", part)
        if match is None:
            raise ValueError(
                f"cannot parse positions {text!r} at {part!r}: expected 'f<n>', 'l<n>' or both joined by '+', "
                "with n >= 1, for example 'f5+l5', or 'all', 'first' or 'last'"
            )
        kind, count = match[1], int(match[2])
        if kind in rules:
            raise ValueError(f"cannot parse positions {text!r}: {kind!r} occurs twice; use at most one f and one l")
        rules[kind] = First(count, half=True) if kind == "f" else Last(count, half=True)
    first, *rest = rules.values()
    return first | rest[0] if rest else first


def from_spec(spec: object) -> Positions:
    """Reads a rule from the values that `Positions.spec` wrote.

    Raises:
        ValueError: If `spec` could not have written these values.
    """
    match spec:
        # A mapping pattern ignores further keys, so "if not rest" refuses them.
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
        case {"rule": str(name), **settings} if name in _OWN:
            return _own(_OWN[name], settings)
    raise ValueError(
        f"not a position rule: {spec!r:.200}. To use your own class, register it with @rl.register; on the command line, pass "
        "--import its_module"
    )


def register_rule(cls: type[Positions]) -> None:
    """Registers your own rule for `from_spec` and `parse`; see `interventions.user_defined`.

    Raises:
        ValueError: If its `rule` is missing or belongs to another class, or a method is missing.
    """
    name = getattr(cls, "rule", None)
    if not isinstance(name, str) or not name.replace("-", "_").isidentifier():
        raise ValueError(
            f"{cls.__name__}.rule must be a short name such as 'my-rule', which saved edits refer to, got {name!r}"
        )
    before = _OWN.get(name)
    # Running a notebook cell again defines its class again.
    taken = before is not None and (before.__module__, before.__qualname__) != (cls.__module__, cls.__qualname__)
    if name in _SHIPPED or taken:
        raise ValueError(f"rule = {name!r} already belongs to another class: choose another rule for {cls.__name__}")
    missing = sorted(getattr(cls, "__abstractmethods__", ()))
    if missing:
        raise ValueError(f"{cls.__name__} must implement {', '.join(missing)}")
    _OWN[name] = cls


def require_loadable(rule: Positions) -> None:
    """Refuses a rule that could not be loaded after saving.

    Raises:
        ValueError: If it could not be loaded. The message says what to do.
    """
    try:
        # Through JSON, as in a file, where a tuple becomes a list.
        read = from_spec(json.loads(json.dumps(rule.spec(), allow_nan=False)))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{rule!r:.200} could not be loaded after saving: {error}") from error
    if read != rule:
        raise ValueError(
            f"{rule!r:.200} would be loaded as {read!r:.200}: spec() must return all arguments of the rule, and equal rules must "
            "compare equal, as frozen dataclasses do"
        )


def _own(cls: type[Positions], settings: dict[Any, Any]) -> Positions:
    try:
        return cls(**settings)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{cls.__name__} cannot be created from {settings!r:.200}: {error}") from error
