"""Analyses of trained edits and of the models under them: one question a file, each returning a frozen result."""

from reftlens.analysis.ablation import ablate
from reftlens.analysis.agreement import agreement
from reftlens.analysis.attribution import attribute
from reftlens.analysis.contexts import top_contexts
from reftlens.analysis.dose import dose
from reftlens.analysis.effect import effect_map
from reftlens.analysis.interchange import interchange
from reftlens.analysis.ledger import edit_size, ledger
from reftlens.analysis.lens import read_directions
from reftlens.analysis.localisation import at_rules, beside_tracing
from reftlens.analysis.manifold import off_manifold
from reftlens.analysis.mediation import direct_effect, mediate
from reftlens.analysis.metrics import kl_from, logit_difference_of, loss_of, probability_of
from reftlens.analysis.noise_tracing import trace_noise
from reftlens.analysis.operator import decompose
from reftlens.analysis.outcome import outcome
from reftlens.analysis.overlap import covariance_matched, directions, haar, overlap, random_readings
from reftlens.analysis.patching import patch
from reftlens.analysis.paths import paths
from reftlens.analysis.placebo import turned
from reftlens.analysis.projection import project
from reftlens.analysis.readers import read_space
from reftlens.analysis.retraining import at_random_sites, permuted_labels, random_model, untrained
from reftlens.analysis.spread import spread
from reftlens.analysis.tokens import subject_places
from reftlens.analysis.tracing import trace

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
    "effect_map",
    "haar",
    "interchange",
    "kl_from",
    "ledger",
    "logit_difference_of",
    "loss_of",
    "mediate",
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
    "spread",
    "subject_places",
    "top_contexts",
    "trace",
    "trace_noise",
    "turned",
    "untrained",
]
