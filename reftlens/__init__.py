"""reftlens: train a representation edit (ReFT) as TransformerLens hooks, and take it apart.

Names are loaded on first use, so that `import reftlens` stays quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from reftlens._version import __version__

if TYPE_CHECKING:
    from reftlens import analysis, plot
    from reftlens.bridge import load_bridge
    from reftlens.checks import check_sites
    from reftlens.data import Batch, encode
    from reftlens.edit import Edit, EditError, attach
    from reftlens.generation import generate
    from reftlens.interventions import DiReFT, Intervention, LoReFT
    from reftlens.positions import All, At, First, Last, Positions, parse
    from reftlens.reft import Reft
    from reftlens.site import Site
    from reftlens.training import TrainConfig, TrainLog, train

_HOME = {
    "load_bridge": "bridge",
    "check_sites": "checks",
    "Batch": "data",
    "encode": "data",
    "Edit": "edit",
    "EditError": "edit",
    "attach": "edit",
    "generate": "generation",
    "DiReFT": "interventions",
    "Intervention": "interventions",
    "LoReFT": "interventions",
    "All": "positions",
    "At": "positions",
    "First": "positions",
    "Last": "positions",
    "Positions": "positions",
    "parse": "positions",
    "Reft": "reft",
    "Site": "site",
    "TrainConfig": "training",
    "TrainLog": "training",
    "train": "training",
}
"""Public name -> the module it lives in."""

__all__ = [
    "All",
    "At",
    "Batch",
    "DiReFT",
    "Edit",
    "EditError",
    "First",
    "Intervention",
    "Last",
    "LoReFT",
    "Positions",
    "Reft",
    "Site",
    "TrainConfig",
    "TrainLog",
    "__version__",
    "analysis",
    "attach",
    "check_sites",
    "encode",
    "generate",
    "load_bridge",
    "parse",
    "plot",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in ("analysis", "plot"):
        return importlib.import_module(f"reftlens.{name}")
    if name in _HOME:
        return getattr(importlib.import_module(f"reftlens.{_HOME[name]}"), name)
    raise AttributeError(f"module 'reftlens' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
