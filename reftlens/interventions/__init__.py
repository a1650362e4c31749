"""The family of edits: one idea a file, each class opening with its equation."""

from reftlens.interventions.base import Affine, Intervention, NotAffineError
from reftlens.interventions.direft import DiReFT, NoReFT
from reftlens.interventions.loreft import AdditiveLoReFT, ConsReFT, LobiReFT, LoReFT
from reftlens.interventions.orthonormal import Orthonormal
from reftlens.interventions.vectors import RED, SteeringVector

FAMILY: tuple[type[Intervention], ...] = (
    LoReFT,
    DiReFT,
    NoReFT,
    ConsReFT,
    LobiReFT,
    AdditiveLoReFT,
    RED,
    SteeringVector,
)
"""Every member that a checkpoint may name. A new intervention is one class in a file of this folder and one word here."""

__all__ = [
    "FAMILY",
    "RED",
    "AdditiveLoReFT",
    "Affine",
    "ConsReFT",
    "DiReFT",
    "Intervention",
    "LoReFT",
    "LobiReFT",
    "NoReFT",
    "NotAffineError",
    "Orthonormal",
    "SteeringVector",
]
