"""Draws results as figures. Plots do not need a model, open a window, or change matplotlib's settings.

Each takes one result or a list of them; those of `DRAWINGS` are what `result.plot()` draws.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from matplotlib.figure import Figure

from reftlens import results
from reftlens.arguments import explain_all
from reftlens.plot.ablation import ablation
from reftlens.plot.agreement import agreement
from reftlens.plot.alignment_map import alignment_map
from reftlens.plot.answers import composed, mannered
from reftlens.plot.attribution import attribution
from reftlens.plot.beside_tracing import beside_tracing
from reftlens.plot.canvas import png
from reftlens.plot.carried import carried
from reftlens.plot.channels import channels
from reftlens.plot.codebook import codebook
from reftlens.plot.dose import dose
from reftlens.plot.edit_graph import graph
from reftlens.plot.edit_profile import edit_profile
from reftlens.plot.edit_size import edit_size
from reftlens.plot.effect_map import effect_map
from reftlens.plot.explain_finetune import explain_finetune
from reftlens.plot.html import token_strip
from reftlens.plot.interchange import interchange
from reftlens.plot.ledger import ledger
from reftlens.plot.meanings import meanings
from reftlens.plot.mediation import mediation
from reftlens.plot.memorised import memorised
from reftlens.plot.minimal import minimal
from reftlens.plot.off_manifold import off_manifold
from reftlens.plot.outcomes import outcomes
from reftlens.plot.overhead import overhead
from reftlens.plot.overlap import overlap
from reftlens.plot.patch_map import patch_map
from reftlens.plot.predicted_map import beside_training, predicted_map
from reftlens.plot.projection import projection
from reftlens.plot.readout import readout
from reftlens.plot.reft_map import reft_map
from reftlens.plot.search import search
from reftlens.plot.spectrum import spectrum
from reftlens.plot.spread import spread
from reftlens.plot.steering import steering
from reftlens.plot.table import table
from reftlens.plot.training_curve import training_curve

__all__ = [
    "ablation",
    "agreement",
    "alignment_map",
    "attribution",
    "beside_tracing",
    "beside_training",
    "carried",
    "channels",
    "codebook",
    "composed",
    "dose",
    "draw",
    "edit_profile",
    "edit_size",
    "effect_map",
    "explain_finetune",
    "graph",
    "interchange",
    "ledger",
    "mannered",
    "meanings",
    "mediation",
    "memorised",
    "minimal",
    "off_manifold",
    "outcomes",
    "overhead",
    "overlap",
    "patch_map",
    "png",
    "predicted_map",
    "projection",
    "readout",
    "reft_map",
    "search",
    "spectrum",
    "spread",
    "steering",
    "table",
    "token_strip",
    "training_curve",
]


def draw(result: results.Result | Sequence[results.Result], **options: Any) -> Figure:
    """Draws a result of any class, as `result.plot()` does.

    Args:
        result: one result, or several of one class.
        options: of the function that draws the class, such as `title`.

    Raises:
        TypeError: If it is not a result, or the results are of several classes.
    """
    found = [result] if isinstance(result, results.Result) else list(result)
    kinds = dict.fromkeys(map(type, found))
    if len(kinds) != 1:
        raise TypeError(
            f"draw needs one result, or several of one class, got {', '.join(kind.__name__ for kind in kinds) or 'none'}"
        )
    for kind in next(iter(kinds)).__mro__:
        if kind in DRAWINGS:
            return DRAWINGS[kind](found if len(found) > 1 else found[0], **options)
    raise TypeError(f"draw needs a result of an analysis, got {type(found[0]).__name__}")


# Before DRAWINGS, so that `result.plot()` explains wrong arguments as well.
explain_all(globals())

DRAWINGS: dict[type, Callable[..., Figure]] = {
    results.Ablation: ablation,
    results.Agreement: agreement,
    results.AlignmentMap: alignment_map,
    results.Attribution: attribution,
    results.BesideTracing: beside_tracing,
    results.BesideTraining: beside_training,
    results.Channels: channels,
    results.Carried: carried,
    results.Codebook: codebook,
    results.Composed: composed,
    results.DirectionReadout: readout,
    results.Dose: dose,
    results.EditGraph: graph,
    results.EditProfile: edit_profile,
    results.EditSize: edit_size,
    results.ExplainedFinetune: explain_finetune,
    results.Interchanged: interchange,
    results.Ledger: ledger,
    results.Mannered: mannered,
    results.Meaning: meanings,
    results.Memorised: memorised,
    results.Minimal: minimal,
    results.OffManifold: off_manifold,
    results.Operator: spectrum,
    results.Outcome: outcomes,
    results.Overhead: overhead,
    results.Overlap: overlap,
    results.PatchMap: patch_map,
    results.PredictedMap: predicted_map,
    results.Projection: projection,
    results.ReftMap: reft_map,
    results.Result: table,
    results.Search: search,
    results.Spread: spread,
    results.SteeringComparison: steering,
    results.TokenMap: effect_map,
}
"""Class of result -> what draws it. A class that is not here is drawn as its nearest base class: in the end, as a table."""
