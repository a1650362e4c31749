"""The family: all interventions that ship, in one list. Add yours here."""

from __future__ import annotations

from reftlens.interventions.base import Intervention
from reftlens.interventions.direft import DiReFT, NoReFT
from reftlens.interventions.interchange import BoundlessInterchange, Interchange, MaskedInterchange, SplitInterchange
from reftlens.interventions.loreft import AdditiveLoReFT, ConsReFT, LobiReFT, LoReFT
from reftlens.interventions.parts import SplitLoReFT
from reftlens.interventions.reft_r1 import ReFTr1
from reftlens.interventions.user_defined import registered
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
    SplitInterchange,
    BoundlessInterchange,
    MaskedInterchange,
)
"""Every intervention that ships. To add one, write its class in a file of this folder and add its name here."""


def known_kinds() -> tuple[type[Intervention], ...]:
    """Returns every class that can be named: those that ship and those that you registered."""
    return (*FAMILY, *registered())
