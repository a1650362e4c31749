"""What a baseline is: a base with something trained on it, and put back afterwards.

A ReFT edit leaves the base alone. Other methods train parameters of the base or add some to it; here they do so in place,
inside a context, so that the same examples, objective, trainer and scorer serve all of them, and every method starts from
the same base, to the bit. What a method trains in the base is what requires gradients inside its context; where it is an
edit, the context gives that.
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
    """One way to train a model. Settings are fields."""

    lr: float | None = None
    """Its learning rate; None is the one that all are trained with. One rate does not suit all."""

    def __post_init__(self) -> None:
        if self.lr is not None:
            require_number("lr", self.lr, above=0)

    @abstractmethod
    def applied(
        self, bridge: TransformerBridge, objective: Objective, example: Example
    ) -> AbstractContextManager[Reft | None]:
        """A context in which the base is ready to be trained by this method; afterwards it is as it was, and frozen.

        First weights are drawn from torch's global generator.

        Args:
            bridge: the frozen base.
            objective: what is learned; a fresh one for each run, whose head a method may replace.
            example: one of those trained on, for what has to be measured.

        Returns:
            The context, which gives the edit to train, or None where parameters of the base or the head are trained.

        Raises:
            ValueError: on entry, if the method has no meaning for this model or objective.
        """


@contextmanager
def unfrozen(parameters: Sequence[Tensor]) -> Iterator[None]:
    """Inside, these parameters of the base are trained; afterwards they hold what they held, and are frozen again."""
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
