"""The interventions. Each class docstring begins with the equation."""

from reftlens.interventions.agreement import require_agreement, require_within
from reftlens.interventions.base import Affine, Intervention, NotAffineError
from reftlens.interventions.check import check_intervention
from reftlens.interventions.direft import DiReFT, NoReFT
from reftlens.interventions.family import FAMILY, known_kinds
from reftlens.interventions.interchange import (
    BoundlessInterchange,
    Interchange,
    MaskedInterchange,
    SourceIntervention,
    SplitInterchange,
)
from reftlens.interventions.loreft import AdditiveLoReFT, ConsReFT, LobiReFT, LoReFT
from reftlens.interventions.orthonormal import Orthonormal
from reftlens.interventions.parts import SplitLoReFT
from reftlens.interventions.reft_r1 import ReFTr1
from reftlens.interventions.user_defined import register, registered
from reftlens.interventions.vectors import RED, Rescale, SteeringVector

__all__ = [
    "FAMILY",
    "RED",
    "AdditiveLoReFT",
    "Affine",
    "BoundlessInterchange",
    "ConsReFT",
    "DiReFT",
    "Interchange",
    "Intervention",
    "LoReFT",
    "LobiReFT",
    "MaskedInterchange",
    "NoReFT",
    "NotAffineError",
    "Orthonormal",
    "ReFTr1",
    "Rescale",
    "SourceIntervention",
    "SplitInterchange",
    "SplitLoReFT",
    "SteeringVector",
    "check_intervention",
    "known_kinds",
    "register",
    "registered",
    "require_agreement",
    "require_within",
]
