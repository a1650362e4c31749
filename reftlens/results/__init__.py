"""What the analyses return: frozen values with their axis labels, the name of the quantity, and its control.

A plot takes one of these and needs nothing else, no model and no edit. Tensors are on the CPU, in float32.
"""

from reftlens.results.ablations import Ablation
from reftlens.results.agreements import Agreement, agreements_to_dataframe
from reftlens.results.attributions import Attribution
from reftlens.results.base import Result
from reftlens.results.claims import Codebook, Composed, Mannered, Memorised, Overhead
from reftlens.results.comparisons import Comparison
from reftlens.results.contexts import Context, ReadContexts
from reftlens.results.doses import Dose
from reftlens.results.evaluations import Answered, Evaluation
from reftlens.results.interchanges import Interchanged, ReadSpace, Swap
from reftlens.results.ledgers import TERMS, Ledger
from reftlens.results.manifolds import OffManifold
from reftlens.results.maps import EditSize, TokenMap
from reftlens.results.operators import DirectionReadout, Operator
from reftlens.results.outcomes import Outcome, SiteCheck, SiteChecks, outcomes_to_dataframe
from reftlens.results.overlaps import Overlap
from reftlens.results.patchings import PatchMap
from reftlens.results.profiles import EditProfile
from reftlens.results.projections import Projection
from reftlens.results.reft_maps import BesideTracing, ReftMap
from reftlens.results.spreads import Spread

__all__ = [
    "TERMS",
    "Ablation",
    "Agreement",
    "Answered",
    "Attribution",
    "BesideTracing",
    "Codebook",
    "Comparison",
    "Composed",
    "Context",
    "DirectionReadout",
    "Dose",
    "EditProfile",
    "EditSize",
    "Evaluation",
    "Interchanged",
    "Ledger",
    "Mannered",
    "Memorised",
    "OffManifold",
    "Operator",
    "Outcome",
    "Overhead",
    "Overlap",
    "PatchMap",
    "Projection",
    "ReadContexts",
    "ReadSpace",
    "ReftMap",
    "Result",
    "SiteCheck",
    "SiteChecks",
    "Spread",
    "Swap",
    "TokenMap",
    "agreements_to_dataframe",
    "outcomes_to_dataframe",
]
