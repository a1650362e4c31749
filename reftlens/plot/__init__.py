"""Draws results as figures. Plots do not need a model, open a window, or change matplotlib's settings."""

from __future__ import annotations

from reftlens.arguments import explain_all
from reftlens.plot.ablation import ablation
from reftlens.plot.agreement import agreement
from reftlens.plot.attribution import attribution
from reftlens.plot.beside_tracing import beside_tracing
from reftlens.plot.canvas import png
from reftlens.plot.codebook import codebook
from reftlens.plot.dose import dose
from reftlens.plot.edit_profile import edit_profile
from reftlens.plot.edit_size import edit_size
from reftlens.plot.effect_map import effect_map
from reftlens.plot.html import token_strip
from reftlens.plot.interchange import interchange
from reftlens.plot.ledger import ledger
from reftlens.plot.mediation import mediation
from reftlens.plot.memorised import memorised
from reftlens.plot.off_manifold import off_manifold
from reftlens.plot.outcomes import outcomes
from reftlens.plot.overhead import overhead
from reftlens.plot.overlap import overlap
from reftlens.plot.patch_map import patch_map
from reftlens.plot.projection import projection
from reftlens.plot.readout import readout
from reftlens.plot.spectrum import spectrum
from reftlens.plot.spoken import composed, mannered
from reftlens.plot.spread import spread
from reftlens.plot.training_curve import training_curve

__all__ = [
    "ablation",
    "agreement",
    "attribution",
    "beside_tracing",
    "codebook",
    "composed",
    "dose",
    "edit_profile",
    "edit_size",
    "effect_map",
    "interchange",
    "ledger",
    "mannered",
    "mediation",
    "memorised",
    "off_manifold",
    "outcomes",
    "overhead",
    "overlap",
    "patch_map",
    "png",
    "projection",
    "readout",
    "spectrum",
    "spread",
    "token_strip",
    "training_curve",
]

explain_all(globals())
