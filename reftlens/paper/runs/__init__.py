"""Training runs: settings (`config`), the paper's presets (`presets`), their parameter counts
(`parameters`), and the folder of a run (`run`, `folder`).

Settings and presets load without torch, so that listing them is quick. The names below load on
first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reftlens.paper.runs.config import RunConfig
    from reftlens.paper.runs.parameters import count_parameters
    from reftlens.paper.runs.presets import PRESETS, ROWS, Preset, preset_named, read_settings
    from reftlens.paper.runs.run import train_run
    from reftlens.paper.runs.testing import score_run

_HOME = {
    "PRESETS": "presets",
    "ROWS": "presets",
    "Preset": "presets",
    "RunConfig": "config",
    "count_parameters": "parameters",
    "preset_named": "presets",
    "read_settings": "presets",
    "score_run": "testing",
    "train_run": "run",
}
"""Public name -> the module of this package that defines it."""

__all__ = [
    "PRESETS",
    "ROWS",
    "Preset",
    "RunConfig",
    "count_parameters",
    "preset_named",
    "read_settings",
    "score_run",
    "train_run",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
