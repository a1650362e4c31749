"""Analyses of trained edits and of the models under them: one question a file, each returning a frozen result."""

from reftlens.analysis.effect import effect_map
from reftlens.analysis.ledger import edit_size, ledger
from reftlens.analysis.lens import read_directions
from reftlens.analysis.operator import decompose
from reftlens.analysis.outcome import outcome
from reftlens.analysis.overlap import covariance_matched, directions, haar, overlap, random_readings
from reftlens.analysis.tokens import subject_places
from reftlens.analysis.tracing import trace

__all__ = [
    "covariance_matched",
    "decompose",
    "directions",
    "edit_size",
    "effect_map",
    "haar",
    "ledger",
    "outcome",
    "overlap",
    "random_readings",
    "read_directions",
    "subject_places",
    "trace",
]
