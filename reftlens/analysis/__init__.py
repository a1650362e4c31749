"""Analyses of trained edits and their base models: one question per file, each returning a frozen result."""

from reftlens.analysis.ablate import ablate
from reftlens.analysis.agreement import agreement
from reftlens.analysis.attribute import attribute
from reftlens.analysis.beside_tracing import at_rules, beside_tracing
from reftlens.analysis.controls.retraining import at_random_sites, null_edits, permuted_labels, random_model
from reftlens.analysis.controls.turned import turned
from reftlens.analysis.decompose import decompose
from reftlens.analysis.dose import dose
from reftlens.analysis.effect_map import effect_map
from reftlens.analysis.engine.activations import edited_activations
from reftlens.analysis.interchange import interchange
from reftlens.analysis.ledger import edit_size, ledger
from reftlens.analysis.mediate import direct_effect, mediate
from reftlens.analysis.metrics import kl_from, logit_difference_of, loss_of, probability_of
from reftlens.analysis.off_manifold import off_manifold
from reftlens.analysis.outcome import outcome
from reftlens.analysis.overlap import covariance_matched, directions, haar, overlap, random_readings
from reftlens.analysis.patch import patch
from reftlens.analysis.paths import paths
from reftlens.analysis.project import project
from reftlens.analysis.read_directions import read_directions
from reftlens.analysis.read_space import read_space, read_spaces
from reftlens.analysis.readouts import readouts
from reftlens.analysis.spread import spread
from reftlens.analysis.tokens import subject_places
from reftlens.analysis.top_contexts import top_contexts
from reftlens.analysis.trace import trace
from reftlens.analysis.trace_noise import trace_noise
from reftlens.arguments import explain_all
from reftlens.edit.untrained import untrained

__all__ = [
    "ablate",
    "agreement",
    "at_random_sites",
    "at_rules",
    "attribute",
    "beside_tracing",
    "covariance_matched",
    "decompose",
    "direct_effect",
    "directions",
    "dose",
    "edit_size",
    "edited_activations",
    "effect_map",
    "haar",
    "interchange",
    "kl_from",
    "ledger",
    "logit_difference_of",
    "loss_of",
    "mediate",
    "null_edits",
    "off_manifold",
    "outcome",
    "overlap",
    "patch",
    "paths",
    "permuted_labels",
    "probability_of",
    "project",
    "random_model",
    "random_readings",
    "read_directions",
    "read_space",
    "read_spaces",
    "readouts",
    "spread",
    "subject_places",
    "top_contexts",
    "trace",
    "trace_noise",
    "turned",
    "untrained",
]

explain_all(globals())
