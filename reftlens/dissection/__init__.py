"""A trained edit taken apart by every analysis at once: what it costs, the run, and one result that shows and saves itself."""

from reftlens.dissection.cost import Cost, estimate_cost
from reftlens.dissection.result import DissectConfig, Dissection, load_dissection
from reftlens.dissection.run import dissect

__all__ = [
    "Cost",
    "DissectConfig",
    "Dissection",
    "dissect",
    "estimate_cost",
    "load_dissection",
]
