"""reftlens: train a representation edit (ReFT) as TransformerLens hooks, and take it apart.

Names are loaded on first use, so that `import reftlens` stays quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from reftlens._version import __version__

if TYPE_CHECKING:
    from reftlens import analysis, baselines, objectives, plot, tasks
    from reftlens.bridge import load_bridge
    from reftlens.cell_training import reft_map
    from reftlens.checks import check_sites
    from reftlens.cone import Held, hold, run_cone
    from reftlens.data import Batch, encode
    from reftlens.dissection import DissectConfig, Dissection, dissect, load_dissection
    from reftlens.edit import Edit, EditError, attach
    from reftlens.generation import Decoding, generate
    from reftlens.interventions import (
        RED,
        AdditiveLoReFT,
        ConsReFT,
        DiReFT,
        Interchange,
        Intervention,
        LobiReFT,
        LoReFT,
        NoReFT,
        NotAffineError,
        ReFTr1,
        Rescale,
        SplitLoReFT,
        SteeringVector,
    )
    from reftlens.merging import merge
    from reftlens.positions import All, AnySpan, At, First, Generated, Last, LastOf, Positions, Span, parse
    from reftlens.previewing import Preview, preview
    from reftlens.pyreft import load_pyreft, save_pyreft
    from reftlens.reft import Reft
    from reftlens.seeds import train_seeds
    from reftlens.site import Site
    from reftlens.training import TrainConfig, TrainLog, train

_HOME = {
    "load_bridge": "bridge",
    "Held": "cone",
    "hold": "cone",
    "run_cone": "cone",
    "check_sites": "checks",
    "Batch": "data",
    "encode": "data",
    "DissectConfig": "dissection",
    "Dissection": "dissection",
    "dissect": "dissection",
    "load_dissection": "dissection",
    "Edit": "edit",
    "EditError": "edit",
    "attach": "edit",
    "Decoding": "generation",
    "generate": "generation",
    "RED": "interventions",
    "AdditiveLoReFT": "interventions",
    "ConsReFT": "interventions",
    "DiReFT": "interventions",
    "Intervention": "interventions",
    "LoReFT": "interventions",
    "LobiReFT": "interventions",
    "Interchange": "interventions",
    "ReFTr1": "interventions",
    "Rescale": "interventions",
    "SplitLoReFT": "interventions",
    "NoReFT": "interventions",
    "NotAffineError": "interventions",
    "SteeringVector": "interventions",
    "merge": "merging",
    "All": "positions",
    "AnySpan": "positions",
    "At": "positions",
    "First": "positions",
    "Generated": "positions",
    "Last": "positions",
    "LastOf": "positions",
    "Positions": "positions",
    "Span": "positions",
    "parse": "positions",
    "Preview": "previewing",
    "preview": "previewing",
    "load_pyreft": "pyreft",
    "save_pyreft": "pyreft",
    "Reft": "reft",
    "reft_map": "cell_training",
    "Site": "site",
    "TrainConfig": "training",
    "TrainLog": "training",
    "train": "training",
    "train_seeds": "seeds",
}
"""Public name -> the module it lives in."""

__all__ = [
    "RED",
    "AdditiveLoReFT",
    "All",
    "AnySpan",
    "At",
    "Batch",
    "ConsReFT",
    "Decoding",
    "DiReFT",
    "DissectConfig",
    "Dissection",
    "Edit",
    "EditError",
    "First",
    "Generated",
    "Held",
    "Interchange",
    "Intervention",
    "Last",
    "LastOf",
    "LoReFT",
    "LobiReFT",
    "NoReFT",
    "NotAffineError",
    "Positions",
    "Preview",
    "ReFTr1",
    "Reft",
    "Rescale",
    "Site",
    "Span",
    "SplitLoReFT",
    "SteeringVector",
    "TrainConfig",
    "TrainLog",
    "__version__",
    "analysis",
    "attach",
    "baselines",
    "check_sites",
    "dissect",
    "encode",
    "generate",
    "hold",
    "load_bridge",
    "load_dissection",
    "load_pyreft",
    "merge",
    "objectives",
    "parse",
    "plot",
    "preview",
    "reft_map",
    "run_cone",
    "save_pyreft",
    "tasks",
    "train",
    "train_seeds",
]


def __getattr__(name: str) -> Any:
    if name in ("analysis", "baselines", "objectives", "plot", "tasks"):
        return importlib.import_module(f"reftlens.{name}")
    if name in _HOME:
        return getattr(importlib.import_module(f"reftlens.{_HOME[name]}"), name)
    raise AttributeError(f"module 'reftlens' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
