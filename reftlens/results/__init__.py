"""What the analyses return: frozen values with their axis labels, the name of the quantity, and its control.

A plot takes one of these and needs nothing else, no model and no edit. Tensors are on the CPU, in float32.
"""

from reftlens.results.ledgers import TERMS, Ledger
from reftlens.results.maps import EditSize, TokenMap
from reftlens.results.operators import DirectionReadout, Operator
from reftlens.results.outcomes import Outcome, SiteCheck, SiteChecks, outcomes_to_dataframe
from reftlens.results.overlaps import Overlap

__all__ = [
    "TERMS",
    "DirectionReadout",
    "EditSize",
    "Ledger",
    "Operator",
    "Outcome",
    "Overlap",
    "SiteCheck",
    "SiteChecks",
    "TokenMap",
    "outcomes_to_dataframe",
]
