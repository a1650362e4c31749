"""Regression: (W_o tanh(W_d h + b_d) + b_o - target)^2 with one target per text, as in STS-B of GLUE."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from reftlens.cone.hold import Held
from reftlens.data import Batch, encode
from reftlens.edit.hooks import Edit
from reftlens.edit.reft import Reft
from reftlens.training.objectives.base import Example, widened
from reftlens.training.objectives.head import Head


@final
class Regression(Head):
    """Squared error of a head's single output, averaged over texts, in squared units of the target."""

    unit: ClassVar[str] = "squared units per example"
    fields: ClassVar[dict[str, type]] = {"text": str, "target": float}

    def __init__(self, bridge: TransformerBridge) -> None:
        """Args: bridge: the base; gives the width, the device, and which token is read."""
        super().__init__(bridge, n_outputs=1)

    def encode(self, bridge: TransformerBridge, example: Example) -> Batch:
        text, target = example
        if not math.isfinite(target):
            raise ValueError(f"the target of {text[:60]!r} must be a finite number, got {target}")
        return encode(bridge, [text])

    def reference(self, bridge: TransformerBridge, held: Held, example: Example) -> Float[Tensor, " batch"]:
        # A batch has no place for targets, so they travel as reference values.
        return torch.tensor([example[1]], dtype=torch.float32, device=held.batch.tokens.device)

    def losses(
        self, bridge: TransformerBridge, held: Held, edits: Sequence[Edit], reference: Tensor | None
    ) -> Float[Tensor, " examples"]:
        assert reference is not None, "the trainer passes what reference() gave"
        return (widened(self.outputs(bridge, held, edits))[:, 0] - reference).square()

    def predict(
        self,
        bridge: TransformerBridge,
        reft: Reft | None,
        texts: Sequence[str],
        *,
        batch_size: int = 16,
        progress: bool = False,
    ) -> list[float]:
        """Predicts a number for each text, under an edit or on the unedited base.

        Args:
            bridge: the base.
            reft: the trained edit; None for the base alone.
            texts: one or more.
            batch_size: texts in one forward pass.
            progress: show a progress bar.
        """
        values: list[float] = self.outputs_of(bridge, reft, texts, batch_size=batch_size, progress=progress)[
            :, 0
        ].tolist()
        return values
