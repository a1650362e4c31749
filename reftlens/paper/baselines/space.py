"""The values that a search tries for each setting: lr=1e-4..1e-2 is a range on a logarithmic scale, rank=1|2|4 a choice."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, final

from reftlens.paper.runs.config import read_setting

SEARCHED = (
    "method", "layers", "rank", "positions", "tied", "hook", "lr", "schedule", "warmup_ratio", "weight_decay",
    "max_grad_norm", "dropout", "l1", "batch_size", "gradient_accumulation",
)  # fmt: skip
"""Settings of a run that can be searched. The data, the seed and the number of epochs are the same in all trials."""


@final
@dataclass(frozen=True)
class Range:
    """Positive numbers between two bounds, on a logarithmic scale."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not 0 < self.low < self.high < math.inf:
            raise ValueError(f"a range needs 0 < low < high, got {self.low:g}..{self.high:g}")

    def __str__(self) -> str:
        return f"{self.low:g}..{self.high:g}"

    def __contains__(self, value: object) -> bool:
        return isinstance(value, int | float) and self.low <= value <= self.high


@final
@dataclass(frozen=True)
class Choice:
    """A few values."""

    values: tuple[Any, ...]

    def __str__(self) -> str:
        return "|".join(",".join(map(str, one)) if isinstance(one, tuple) else str(one) for one in self.values)

    def __contains__(self, value: object) -> bool:
        return value in self.values


Space = Mapping[str, Range | Choice]
"""Setting -> what is tried."""


def parse_space(texts: Iterable[str]) -> dict[str, Range | Choice]:
    """Reads a space of settings.

    Args:
        texts: such as "lr=1e-4..1e-2", "rank=1|2|4", "layers=all|1,4" and "positions=l1|f1+l1".

    Raises:
        ValueError: If a text has another form, the setting cannot be searched, or a value does not
            fit it.
    """
    space: dict[str, Range | Choice] = {}
    for text in texts:
        name, equals, values = (part.strip() for part in text.partition("="))
        if not equals or not values:
            raise ValueError(f"a searched setting has the form lr=1e-4..1e-2 or rank=1|2|4, got {text!r}")
        if name not in (*SEARCHED, "length"):
            raise ValueError(f"{name} cannot be searched: choose from {', '.join(SEARCHED)}")
        low, dots, high = values.partition("..")
        if dots:
            space[name] = Range(_number(name, low), _number(name, high))
        else:
            space[name] = Choice(tuple(dict.fromkeys(_value(name, one.strip()) for one in values.split("|"))))
    return space


def _value(name: str, text: str) -> Any:
    if name == "length":  # a setting of prefix tuning alone
        return int(_number(name, text))
    # The first reading that the setting accepts: "1" may be a rank or a name.
    for parsed in (_whole, float, str):
        try:
            return read_setting(name, parsed(text))
        except ValueError as error:
            wrong = error
    raise wrong


def _whole(text: str) -> int | bool:
    # Settings such as `tied` are true or false, and bool("false") would be True.
    return text == "true" if text in ("true", "false") else int(text)


def _number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise ValueError(f"the bounds of {name} must be numbers, got {text!r}") from error


def default_space(n_layers: int, width: int) -> dict[str, Range | Choice]:
    """Returns what is searched by default: rate, rank, layers and positions.

    Args:
        n_layers: of the model.
        width: of its residual stream; no rank exceeds it.
    """
    whole = tuple(range(n_layers))
    # In a model of one block the first half is empty, and the others are the same.
    halves = (whole[: n_layers // 2], whole[n_layers // 2 :], whole[n_layers // 2 : n_layers // 2 + 1])
    return {
        "lr": Range(1e-5, 1e-1),
        "rank": Choice(tuple(rank for rank in (1, 2, 4, 8, 16) if rank <= width)),
        "layers": Choice(tuple(dict.fromkeys(("all", *(half for half in halves if half))))),
        "positions": Choice(("l1", "f1+l1", "f5+l5", "all")),
        "length": Choice((1, 2, 4, 8, 16)),
    }


def within(space: Space, own: Mapping[str, Any]) -> dict[str, Range | Choice]:
    """Returns the part of a space that a method or a run has, with its own values among the choices.

    Args:
        space: settings.
        own: its settings by name. A rank of None means a class without a rank.
    """
    return {
        name: _with(part, own[name])
        for name, part in space.items()
        if name in own and not (name == "rank" and own[name] is None)
    }


def _with(part: Range | Choice, value: Any) -> Range | Choice:
    """Adds a value to a choice. A range stays as it is."""
    value = tuple(value) if isinstance(value, list | range) else value
    if isinstance(part, Range) or value is None or value in part.values:
        return part
    # So that the first trial of a search can have the settings that the method has anyway.
    return Choice((*part.values, value))
