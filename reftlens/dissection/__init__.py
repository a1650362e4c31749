"""Runs the analyses of a trained edit: the cost estimate, the run, and one result that can be displayed and saved."""

from reftlens.dissection.config import DissectConfig
from reftlens.dissection.cost import Cost, estimate_cost
from reftlens.dissection.result import Dissection, load_dissection
from reftlens.dissection.run import dissect

__all__ = [
    "Cost",
    "DissectConfig",
    "Dissection",
    "dissect",
    "estimate_cost",
    "load_dissection",
]
