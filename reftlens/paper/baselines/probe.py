"""Linear probe: trains a linear map on the last hidden state of the frozen base."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import final

from torch import nn
from transformer_lens.model_bridge import TransformerBridge

from reftlens.paper.baselines.base import Method
from reftlens.training.objectives import Objective
from reftlens.training.objectives.base import Example
from reftlens.training.objectives.head import Head


@final
@dataclass(frozen=True, kw_only=True)
class LinearProbe(Method):
    """Trains only W h + b, in place of a classifier's head.

    It applies only to heads (labels, real numbers). For completions the linear map would be the
    unembedding, which is not a probe if embeddings are tied.
    """

    @contextmanager
    def applied(self, bridge: TransformerBridge, objective: Objective, example: Example) -> Iterator[None]:
        if not isinstance(objective, Head):
            raise ValueError(
                f"a linear probe needs an objective with a head, and {type(objective).__name__} has none: leave this method out"
            )
        # The last layer knows the number of classes; a probe leaves out the hidden ones before it.
        n_outputs = [layer for layer in objective.head if isinstance(layer, nn.Linear)][-1].out_features
        objective.head = nn.Sequential(nn.Linear(bridge.cfg.d_model, n_outputs)).to(bridge.cfg.device)
        yield
