"""Results of the analyses: frozen dataclasses with axis labels, the name of the quantity, and its control.

An analysis of your own returns a frozen dataclass that extends `Result`, or `SiteResult` for one
site of an edit: give it a `headline` and `to_dataframe`, and it shows, draws and saves itself.
Plots take only results, no model or edit. Tensors are on the CPU, in float32.
"""

from reftlens.results.alignments import Alignment, AlignmentMap
from reftlens.results.base import Result, SiteResult
from reftlens.results.behaviour import (
    Dose,
    Interchanged,
    OffManifold,
    Outcome,
    ReadSpace,
    SiteCheck,
    SiteChecks,
    Swap,
    outcomes_to_dataframe,
)
from reftlens.results.carried import Carried
from reftlens.results.causes import (
    Ablation,
    Attribution,
    BesideTracing,
    BesideTraining,
    EditProfile,
    PredictedMap,
    ReftMap,
)
from reftlens.results.certificate import Certificate, WorstPrompt
from reftlens.results.claims import Codebook, Composed, Mannered, Memorised, Overhead, SteeringClaim
from reftlens.results.directions import TERMS, Context, DirectionReadout, Ledger, Operator, Projection, ReadContexts
from reftlens.results.finding import Finding
from reftlens.results.finetunes import Explained, ExplainedFinetune
from reftlens.results.graph import EditGraph
from reftlens.results.known import Calibrated, Identification, Identified, Minimal, Turn
from reftlens.results.loading import load
from reftlens.results.maps import EditSize, PatchMap, Spread, TokenMap
from reftlens.results.pairs import Agreement, Overlap, agreements_to_dataframe
from reftlens.results.readouts import Meaning
from reftlens.results.routes import Channels
from reftlens.results.scores import Answered, Comparison, Evaluation
from reftlens.results.search import Search
from reftlens.results.steering import Steered, SteeringComparison

__all__ = [
    "TERMS",
    "Ablation",
    "Agreement",
    "Alignment",
    "AlignmentMap",
    "Answered",
    "Attribution",
    "BesideTracing",
    "BesideTraining",
    "Calibrated",
    "Carried",
    "Certificate",
    "Channels",
    "Codebook",
    "Comparison",
    "Composed",
    "Context",
    "DirectionReadout",
    "Dose",
    "EditGraph",
    "EditProfile",
    "EditSize",
    "Evaluation",
    "Explained",
    "ExplainedFinetune",
    "Finding",
    "Identification",
    "Identified",
    "Interchanged",
    "Ledger",
    "Mannered",
    "Meaning",
    "Memorised",
    "Minimal",
    "OffManifold",
    "Operator",
    "Outcome",
    "Overhead",
    "Overlap",
    "PatchMap",
    "PredictedMap",
    "Projection",
    "ReadContexts",
    "ReadSpace",
    "ReftMap",
    "Result",
    "Search",
    "SiteCheck",
    "SiteChecks",
    "SiteResult",
    "Spread",
    "Steered",
    "SteeringClaim",
    "SteeringComparison",
    "Swap",
    "TokenMap",
    "Turn",
    "WorstPrompt",
    "agreements_to_dataframe",
    "load",
    "outcomes_to_dataframe",
]
