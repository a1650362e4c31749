"""Edits in the harness: ReFT itself, and the two cheap controls it has to beat.

A constant push (LobiReFT, SteeringVector) at the same positions does not depend on what it edits; what the input still does to
the outcome, other layers and tokens do. ConsReFT's target alone is constant: its change depends on what it erases. A random
subspace: LoReFT whose R is drawn at the start and stays as it is, so that W and b alone are trained and the subspace owes
nothing to the data.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, final

from transformer_lens.model_bridge import TransformerBridge

from reftlens.edit.reft import Reft
from reftlens.interventions import Intervention, LoReFT, Orthonormal
from reftlens.numbers import require_whole_number
from reftlens.paper.baselines.base import Method
from reftlens.positions import Positions
from reftlens.training.objectives import Objective
from reftlens.training.objectives.base import Example


@final
@dataclass(frozen=True, kw_only=True)
class EditAt(Method):
    """One kind of edit after several layers, as `Reft.at_layers` lays it out."""

    intervention: type[Intervention] = LoReFT
    layers: Sequence[int] | Literal["all"] = "all"
    positions: Positions | str = "f1+l1"
    rank: int | None = None
    tied: bool = True
    hook: str = "hook_resid_post"
    """The activation point inside each block."""
    learn_subspace: bool = True
    """False leaves R as it was drawn."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rank is not None:
            require_whole_number("rank", self.rank, least=1)

    @contextmanager
    def applied(self, bridge: TransformerBridge, objective: Objective, example: Example) -> Iterator[Reft]:
        reft = Reft.at_layers(
            bridge,
            layers=self.layers,
            positions=self.positions,
            intervention=self.intervention,
            rank=self.rank,
            tied=self.tied,
            hook=self.hook,
        )
        if not self.learn_subspace:
            rotations = [module for module in reft.modules() if isinstance(module, Orthonormal)]
            if not rotations:
                raise ValueError(f"{self.intervention.__name__} has no R to leave as it was drawn: use LoReFT")
            for rotation in rotations:
                rotation.requires_grad_(False)
        yield reft
