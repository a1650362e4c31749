"""Classification: -log softmax(W_o tanh(W_d h + b_d) + b_o) of a text's label (Wu et al. 2024, section 3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge

from reftlens.cone.hold import Held
from reftlens.data import Batch, encode
from reftlens.edit.hooks import Edit
from reftlens.edit.reft import Reft
from reftlens.numbers import require_whole_number
from reftlens.training.objectives.base import Example, widened
from reftlens.training.objectives.head import Head


@final
class Classification(Head):
    """-log p(label | text) from a head on one token, averaged over texts."""

    fields: ClassVar[dict[str, type]] = {"text": str, "label": int}
    unit: ClassVar[str] = "nats per example"

    def __init__(self, bridge: TransformerBridge, n_classes: int) -> None:
        """Makes an untrained head.

        Args:
            bridge: the base; gives the width, the device, and which token is read.
            n_classes: labels are 0 to n_classes - 1.

        Raises:
            ValueError: If there are fewer than two classes.
        """
        require_whole_number("n_classes", n_classes, least=2)
        super().__init__(bridge, n_classes)
        self.n_classes = n_classes

    def extra_repr(self) -> str:
        return f"n_classes={self.n_classes}"

    def encode(self, bridge: TransformerBridge, example: Example) -> Batch:
        text, label = example
        if not 0 <= label < self.n_classes:
            raise ValueError(f"label {label} of {text[:60]!r} is not in [0, {self.n_classes - 1}]")
        return encode(bridge, [text])

    def reference(self, bridge: TransformerBridge, held: Held, example: Example) -> Int[Tensor, " batch"]:
        # A batch has no place for labels, so they travel as reference values.
        return torch.tensor([example[1]], device=held.batch.tokens.device)

    def losses(
        self, bridge: TransformerBridge, held: Held, edits: Sequence[Edit], reference: Tensor | None
    ) -> Float[Tensor, " examples"]:
        assert reference is not None, "the trainer passes what reference() gave"
        return nn.functional.cross_entropy(widened(self.outputs(bridge, held, edits)), reference, reduction="none")

    def predict(
        self,
        bridge: TransformerBridge,
        reft: Reft | None,
        texts: Sequence[str],
        *,
        batch_size: int = 16,
        progress: bool = False,
    ) -> list[int]:
        """Predicts the most likely class of each text.

        Args:
            bridge: the base.
            reft: the trained edit; None for the base alone.
            texts: one or more.
            batch_size: texts in one forward pass.
            progress: show a progress bar.
        """
        labels: list[int] = (
            self.outputs_of(bridge, reft, texts, batch_size=batch_size, progress=progress).argmax(dim=-1).tolist()
        )
        return labels
