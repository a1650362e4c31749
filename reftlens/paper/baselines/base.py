"""Base class of baselines, which train a base and restore it afterwards.

A ReFT edit does not change the base. Other methods train parameters of the base or add some. Here
they do so in place, inside a context, so that all methods use the same examples, objective, trainer
and scorer, and start from a bit-identical base. Inside its context, a method trains the base
parameters that require gradients. If the method is an edit, the context returns it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from reftlens.edit.reft import Reft
from reftlens.numbers import require_number
from reftlens.training.objectives import Objective
from reftlens.training.objectives.base import Example


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """A training method. Its settings are fields."""

    lr: float | None = None
    """The method's own learning rate; None uses the common one. One rate does not suit all methods."""

    def __post_init__(self) -> None:
        if self.lr is not None:
            require_number("lr", self.lr, above=0)

    @abstractmethod
    def applied(
        self, bridge: TransformerBridge, objective: Objective, example: Example
    ) -> AbstractContextManager[Reft | None]:
        """Returns a context that prepares the base for training. On exit the base is restored and frozen.

        Initialisation uses torch's global generator.

        Args:
            bridge: the frozen base.
            objective: the objective, new for each run; a method may replace its head.
            example: one training example, for measurements.

        Returns:
            The context, whose value is the edit to train, or None if parameters of the base or the
            head are trained.

        Raises:
            ValueError: On entry, if the method does not apply to this model or objective.
        """

    def strength(self, bridge: TransformerBridge) -> list[Tensor] | None:
        """Returns the base parameters whose change gives this method a strength, in its context before training.

        With start + s (trained - start) in place of them, s = 0 is the base and s = 1 the trained
        method. An edit has a scale of its own and returns an empty list. None, if no parameters do
        this: the method cannot be scaled.

        Args:
            bridge: the base.
        """
        return None


@contextmanager
def unfrozen(parameters: Sequence[Tensor]) -> Iterator[None]:
    """Context in which these base parameters are trainable. On exit their values are restored and they are frozen."""
    # Copies, because undoing the steps by arithmetic would not give back the same bits.
    before = [parameter.detach().clone() for parameter in parameters]
    try:
        for parameter in parameters:
            parameter.requires_grad_(True)
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(parameters, before, strict=True):
                parameter.requires_grad_(False).copy_(value)
                parameter.grad = None
