"""Trains the base's own weights: all of them, or only its biases."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge

from reftlens.cone.hold import hold
from reftlens.paper.baselines.base import Method, unfrozen
from reftlens.training.objectives import Objective
from reftlens.training.objectives.base import Example


@final
@dataclass(frozen=True, kw_only=True)
class FullFineTuning(Method):
    """Trains every parameter that the loss depends on."""

    @contextmanager
    def applied(self, bridge: TransformerBridge, objective: Objective, example: Example) -> Iterator[None]:
        with unfrozen(list(used(bridge, objective, example).values())):
            yield

    def strength(self, bridge: TransformerBridge) -> list[Tensor]:
        return trainable(bridge)


@final
@dataclass(frozen=True, kw_only=True)
class BitFit(Method):
    """Trains only the biases, including those of layer norms (Ben Zaken et al. 2022, arXiv:2106.10199)."""

    @contextmanager
    def applied(self, bridge: TransformerBridge, objective: Objective, example: Example) -> Iterator[None]:
        biases = [value for name, value in used(bridge, objective, example).items() if name.endswith("bias")]
        if not biases:
            raise ValueError(
                f"BitFit trains biases, and {type(bridge.original_model).__name__} has none: leave this method out"
            )
        with unfrozen(biases):
            yield

    def strength(self, bridge: TransformerBridge) -> list[Tensor]:
        return trainable(bridge)


def trainable(bridge: TransformerBridge) -> list[Tensor]:
    """Returns the base parameters that require gradients."""
    return [value for value in bridge.parameters() if value.requires_grad]


def used(bridge: TransformerBridge, objective: Objective, example: Example) -> dict[str, nn.Parameter]:
    """Finds the base parameters that the loss of an example depends on, by name, with one backward pass.

    Some are unused: a bridge splits a fused query-key-value matrix and keeps it alongside its
    parts, and a classifier does not read the unembedding.
    """
    named = dict(bridge.original_model.named_parameters())
    try:
        # The base is frozen, and a frozen parameter would get no gradient even where it is used.
        bridge.requires_grad_(True)
        with torch.enable_grad():
            held = hold(bridge, objective.encode(bridge, example), [])
            losses = objective.losses(bridge, held, [], objective.reference(bridge, held, example))
            gradients = torch.autograd.grad(losses.sum(), list(named.values()), allow_unused=True)
    finally:
        bridge.requires_grad_(False)
    return {
        name: value for (name, value), gradient in zip(named.items(), gradients, strict=True) if gradient is not None
    }
