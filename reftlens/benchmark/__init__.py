"""Known answers: plants truths in models and tests whether the analyses find them, as one table that includes misses.

    reftlens benchmark --out known.csv     # everything; an interrupted run resumes
    reftlens benchmark --only handmade

Importing this package does not import torch.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reftlens.benchmark.handmade import illusion
    from reftlens.benchmark.known import Known
    from reftlens.benchmark.models import texts
    from reftlens.benchmark.nulls import uniform_p
    from reftlens.benchmark.planted import angles_to, fit_student, plant

PARTS = ("handmade", "sites", "planted", "equality", "nulls", "false-alarms", "readouts")
"""Valid arguments of `run`."""


def units(parts: tuple[str, ...] = PARTS) -> Mapping[str, Callable[[], Iterator[Known]]]:
    """Returns the units, by name, that yield the rows. A unit is run and stored as a whole.

    Args:
        parts: names from `PARTS`.

    Raises:
        ValueError: If a part is unknown.
    """
    unknown = [part for part in parts if part not in PARTS]
    if unknown:
        raise ValueError(f"Unknown part {', '.join(map(repr, unknown))}. Choose from: {', '.join(PARTS)}")
    from reftlens.benchmark.equality import equality_rows
    from reftlens.benchmark.false_alarms import map_rows, readout_rows, trained_edit_rows, verdict_rows
    from reftlens.benchmark.handmade_rows import handmade_rows
    from reftlens.benchmark.models import MODELS
    from reftlens.benchmark.nulls import null_rows
    from reftlens.benchmark.planted import SUMS, distilled_rows, planted_rows
    from reftlens.benchmark.planted_variable import planted_variable_rows
    from reftlens.benchmark.readouts import READ_MODELS, alarm_rows, meaning_rows
    from reftlens.benchmark.sites import site_rows

    every: dict[str, Callable[[], Iterator[Known]]] = {
        "handmade": handmade_rows,
        "handmade: a variable": planted_variable_rows,
    }
    every |= {f"sites: {model}": partial(site_rows, model) for model in ("facts-small", "random gpt2")}
    for model in MODELS:
        every |= {
            f"planted: {model}, logits": partial(planted_rows, model),
            f"planted: {model}, completions": partial(distilled_rows, model),
        }
    every[f"planted: {SUMS}, logits"] = partial(planted_rows, SUMS)
    every |= {f"equality: seed {seed}": partial(equality_rows, seeds=(seed,)) for seed in (0, 1)}
    every |= {
        "nulls": null_rows,
        "false-alarms: maps": map_rows,
        "false-alarms: readouts": readout_rows,
        "false-alarms: trained edits": trained_edit_rows,
        "false-alarms: verdicts": verdict_rows,
    }
    for model in READ_MODELS:
        every |= {
            f"readouts: {model}": partial(meaning_rows, model),
            f"readouts: {model}, false alarms": partial(alarm_rows, model),
        }
    return {name: make for name, make in every.items() if name.split(":")[0] in parts}


def run(parts: tuple[str, ...] = PARTS) -> Iterator[Known]:
    """Yields the rows of the table as they are computed.

    Raises:
        ValueError: If a part is unknown.
    """
    for make in units(parts).values():
        yield from make()


_HOME = {
    "angles_to": "planted",
    "fit_student": "planted",
    "illusion": "handmade",
    "plant": "planted",
    "texts": "models",
    "uniform_p": "nulls",
}
"""Parts of the table that are of use by themselves -> the module of this package that defines them."""

__all__ = [
    "PARTS",
    "angles_to",
    "fit_student",
    "illusion",
    "plant",
    "run",
    "texts",
    "uniform_p",
    "units",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
