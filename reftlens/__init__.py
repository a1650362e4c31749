"""reftlens: train a representation edit (ReFT) as TransformerLens hooks, and take it apart.

Names load on first use, so that `import reftlens` stays quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from reftlens._version import __version__ as __version__

if TYPE_CHECKING:
    from reftlens import analysis, plot, results
    from reftlens.analysis.reft_map import reft_map
    from reftlens.bridge import load_bridge
    from reftlens.cone.hold import Held, hold, run_cone
    from reftlens.data import Batch, encode, str_tokens
    from reftlens.data.counterfactual import CausalModel, Counterfactual, Counterfactuals, counterfactuals
    from reftlens.dissection import DissectConfig, Dissection, dissect, load_dissection
    from reftlens.edit import serving
    from reftlens.edit.attach_to_hf import attach_to_hf
    from reftlens.edit.check_sites import check_sites
    from reftlens.edit.generate import Decoding, generate
    from reftlens.edit.hooks import Edit, EditError, attach
    from reftlens.edit.merge import merge
    from reftlens.edit.preview import Preview, preview
    from reftlens.edit.pyreft import load_pyreft, save_pyreft
    from reftlens.edit.reft import Reft
    from reftlens.edit.site import Site
    from reftlens.interventions import (
        RED,
        AdditiveLoReFT,
        Affine,
        BoundlessInterchange,
        ConsReFT,
        DiReFT,
        Interchange,
        Intervention,
        LobiReFT,
        LoReFT,
        MaskedInterchange,
        NoReFT,
        NotAffineError,
        ReFTr1,
        Rescale,
        SplitInterchange,
        SplitLoReFT,
        SteeringVector,
        check_intervention,
        register,
    )
    from reftlens.paper import baselines, tasks
    from reftlens.positions import All, AnySpan, At, First, Generated, Last, LastOf, Positions, Prompts, Span, parse
    from reftlens.training import objectives
    from reftlens.training.seeds import train_seeds
    from reftlens.training.train import TrainConfig, TrainLog, train

_ROOMS = {
    "analysis": "analysis",
    "baselines": "paper.baselines",
    "objectives": "training.objectives",
    "plot": "plot",
    "results": "results",
    "serving": "edit.serving",
    "tasks": "paper.tasks",
}
"""Public namespace -> the package it is."""

_HOME = {
    "reft_map": "analysis.reft_map",
    "load_bridge": "bridge",
    "Held": "cone.hold",
    "hold": "cone.hold",
    "run_cone": "cone.hold",
    "Batch": "data",
    "encode": "data",
    "str_tokens": "data",
    "CausalModel": "data.counterfactual",
    "Counterfactual": "data.counterfactual",
    "Counterfactuals": "data.counterfactual",
    "counterfactuals": "data.counterfactual",
    "DissectConfig": "dissection",
    "Dissection": "dissection",
    "dissect": "dissection",
    "load_dissection": "dissection",
    "attach_to_hf": "edit.attach_to_hf",
    "check_sites": "edit.check_sites",
    "Decoding": "edit.generate",
    "generate": "edit.generate",
    "Edit": "edit.hooks",
    "EditError": "edit.hooks",
    "attach": "edit.hooks",
    "merge": "edit.merge",
    "Preview": "edit.preview",
    "preview": "edit.preview",
    "load_pyreft": "edit.pyreft",
    "save_pyreft": "edit.pyreft",
    "Reft": "edit.reft",
    "Site": "edit.site",
    "AdditiveLoReFT": "interventions",
    "Affine": "interventions",
    "BoundlessInterchange": "interventions",
    "ConsReFT": "interventions",
    "DiReFT": "interventions",
    "Interchange": "interventions",
    "Intervention": "interventions",
    "LoReFT": "interventions",
    "LobiReFT": "interventions",
    "MaskedInterchange": "interventions",
    "NoReFT": "interventions",
    "NotAffineError": "interventions",
    "RED": "interventions",
    "ReFTr1": "interventions",
    "Rescale": "interventions",
    "SplitInterchange": "interventions",
    "SplitLoReFT": "interventions",
    "SteeringVector": "interventions",
    "check_intervention": "interventions",
    "register": "interventions",
    "All": "positions",
    "AnySpan": "positions",
    "At": "positions",
    "First": "positions",
    "Generated": "positions",
    "Last": "positions",
    "LastOf": "positions",
    "Positions": "positions",
    "Prompts": "positions",
    "Span": "positions",
    "parse": "positions",
    "train_seeds": "training.seeds",
    "TrainConfig": "training.train",
    "TrainLog": "training.train",
    "train": "training.train",
}
"""Public name -> the module that defines it."""

__all__ = sorted(["__version__", *_ROOMS, *_HOME])


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f"reftlens.{_ROOMS[name]}")
    if name in _HOME:
        from reftlens.arguments import explained

        return explained(getattr(importlib.import_module(f"reftlens.{_HOME[name]}"), name), "reftlens")
    raise AttributeError(f"module 'reftlens' has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
