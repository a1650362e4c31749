"""Analyses of trained edits and their base models: one question per file, each returning a frozen result."""

from reftlens.analysis.ablate import ablate
from reftlens.analysis.agreement import agreement
from reftlens.analysis.alignment import align, alignment, null_alignments
from reftlens.analysis.alignment_map import alignment_map
from reftlens.analysis.attribute import attribute
from reftlens.analysis.beside_tracing import at_rules, beside_tracing
from reftlens.analysis.beside_training import beside_training
from reftlens.analysis.calibrate import calibrate
from reftlens.analysis.carry import carry
from reftlens.analysis.certify import certify, sampled_prompts
from reftlens.analysis.channels import channels
from reftlens.analysis.controls.random_finetune import random_finetune
from reftlens.analysis.controls.retraining import at_random_sites, null_edits, permuted_labels, random_model
from reftlens.analysis.controls.turned import turned
from reftlens.analysis.decompose import decompose
from reftlens.analysis.dose import dose
from reftlens.analysis.effect_map import effect_map
from reftlens.analysis.engine.activations import edited_activations
from reftlens.analysis.engine.dictionary_files import load_dictionary, save_dictionary
from reftlens.analysis.explain_finetune import explain_finetune, explain_finetune_cost
from reftlens.analysis.graph import graph, graph_cost
from reftlens.analysis.identify import identify, identify_cost
from reftlens.analysis.interchange import interchange
from reftlens.analysis.ledger import edit_size, ledger
from reftlens.analysis.mediate import direct_effect, mediate
from reftlens.analysis.metrics import kl_from, logit_difference_of, loss_of, probability_of
from reftlens.analysis.minimal import minimal
from reftlens.analysis.off_manifold import off_manifold
from reftlens.analysis.outcome import outcome
from reftlens.analysis.overlap import covariance_matched, directions, haar, overlap, random_readings
from reftlens.analysis.patch import patch
from reftlens.analysis.paths import paths
from reftlens.analysis.predict_map import predict_map
from reftlens.analysis.project import project
from reftlens.analysis.read_directions import read_directions
from reftlens.analysis.read_space import read_space, read_spaces
from reftlens.analysis.readouts import readouts
from reftlens.analysis.spread import spread
from reftlens.analysis.tokens import subject_places
from reftlens.analysis.top_contexts import top_contexts
from reftlens.analysis.trace import trace
from reftlens.analysis.trace_noise import trace_noise
from reftlens.analysis.train_dictionary import train_dictionary
from reftlens.arguments import explain_all
from reftlens.data.counterfactual import arbitrary_labels
from reftlens.edit.untrained import untrained

__all__ = [
    "ablate",
    "agreement",
    "align",
    "alignment",
    "alignment_map",
    "arbitrary_labels",
    "at_random_sites",
    "at_rules",
    "attribute",
    "beside_tracing",
    "beside_training",
    "calibrate",
    "carry",
    "certify",
    "channels",
    "covariance_matched",
    "decompose",
    "direct_effect",
    "directions",
    "dose",
    "edit_size",
    "edited_activations",
    "effect_map",
    "explain_finetune",
    "explain_finetune_cost",
    "graph",
    "graph_cost",
    "haar",
    "identify",
    "identify_cost",
    "interchange",
    "kl_from",
    "ledger",
    "load_dictionary",
    "logit_difference_of",
    "loss_of",
    "mediate",
    "minimal",
    "null_alignments",
    "null_edits",
    "off_manifold",
    "outcome",
    "overlap",
    "patch",
    "paths",
    "permuted_labels",
    "predict_map",
    "probability_of",
    "project",
    "random_finetune",
    "random_model",
    "random_readings",
    "read_directions",
    "read_space",
    "read_spaces",
    "readouts",
    "sampled_prompts",
    "save_dictionary",
    "spread",
    "subject_places",
    "top_contexts",
    "trace",
    "trace_noise",
    "train_dictionary",
    "turned",
    "untrained",
]

explain_all(globals())
