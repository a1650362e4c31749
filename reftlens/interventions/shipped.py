"""The list of interventions that ship: add yours here."""

from __future__ import annotations

from reftlens.interventions.base import Intervention
from reftlens.interventions.direft import DiReFT, NoReFT
from reftlens.interventions.interchange import Interchange
from reftlens.interventions.loreft import AdditiveLoReFT, ConsReFT, LobiReFT, LoReFT
from reftlens.interventions.parts import SplitLoReFT
from reftlens.interventions.reft_r1 import ReFTr1
from reftlens.interventions.register import registered
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
