"""The family of edits: one idea a file, each class opening with its equation."""

from reftlens.interventions.agreement import require_agreement, require_within
from reftlens.interventions.base import Affine, Intervention, NotAffineError
from reftlens.interventions.check import check_intervention
from reftlens.interventions.direft import DiReFT, NoReFT
from reftlens.interventions.interchange import Interchange
from reftlens.interventions.loreft import AdditiveLoReFT, ConsReFT, LobiReFT, LoReFT
from reftlens.interventions.orthonormal import Orthonormal
from reftlens.interventions.own import register, registered
from reftlens.interventions.parts import SplitLoReFT
from reftlens.interventions.reft_r1 import ReFTr1
from reftlens.interventions.vectors import RED, Rescale, SteeringVector

FAMILY: tuple[type[Intervention], ...] = (
    LoReFT,
    DiReFT,
    NoReFT,
    ConsReFT,
    LobiReFT,
    AdditiveLoReFT,
    RED,
    Rescale,
    SteeringVector,
    ReFTr1,
    SplitLoReFT,
    Interchange,
)
"""Every member that ships. A new one is one class in a file of this folder and one word here."""


def known_kinds() -> tuple[type[Intervention], ...]:
    """Every class that a name may mean: the family, and what you registered."""
    return (*FAMILY, *registered())


__all__ = [
    "FAMILY",
    "RED",
    "AdditiveLoReFT",
    "Affine",
    "ConsReFT",
    "DiReFT",
    "Interchange",
    "Intervention",
    "LoReFT",
    "LobiReFT",
    "NoReFT",
    "NotAffineError",
    "Orthonormal",
    "ReFTr1",
    "Rescale",
    "SplitLoReFT",
    "SteeringVector",
    "check_intervention",
    "known_kinds",
    "register",
    "registered",
    "require_agreement",
    "require_within",
]
