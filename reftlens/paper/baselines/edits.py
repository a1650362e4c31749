"""Edits as baselines: ReFT itself, and the two cheap controls that it should beat.

A constant push (LobiReFT, SteeringVector) at the same positions does not depend on the edited
activation. Any remaining effect of the input on the outcome comes from other layers and tokens.
(ConsReFT is not one: only its target is constant, and its change depends on the part that it
erases.) A random subspace is LoReFT with R fixed at its initialisation. Only W and b are trained,
so the subspace does not depend on the data.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, final

from torch import Tensor
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
    """One kind of edit after several layers, as `Reft.at_layers` creates it."""

    intervention: type[Intervention] = LoReFT
    layers: Sequence[int] | Literal["all"] = "all"
    positions: Positions | str = "f1+l1"
    rank: int | None = None
    tied: bool = True
    hook: str = "hook_resid_post"
    """The activation point inside each block."""
    learn_subspace: bool = True
    """False keeps R fixed at its initialisation."""

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
                raise ValueError(
                    f"{self.intervention.__name__} has no R that could stay at its random value: use LoReFT"
                )
            for rotation in rotations:
                # Without a gradient, R is neither trained nor counted among what is trained.
                rotation.requires_grad_(False)
        yield reft

    def strength(self, bridge: TransformerBridge) -> list[Tensor]:
        return []
