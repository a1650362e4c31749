"""Classification: softmax(W_o tanh(W_d h + b_d) + b_o) of one token's last hidden state (Wu et al. 2024, section 3).

h is the first token of an encoder such as BERT or RoBERTa, whose texts begin with their classification token, and the
last token of the text in a causal model. Head and edit are trained together; the paper's percentages leave the head out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge

from reftlens.bridge import is_causal, watch_last_hidden
from reftlens.cone import Held, hold, run_cone
from reftlens.data import Batch, encode
from reftlens.edit import Edit
from reftlens.objectives.base import Example, Objective, widened
from reftlens.reft import Reft


@final
class Classification(Objective):
    """-log p(label | text) by a head on one token, the mean over texts."""

    fields: ClassVar[dict[str, type]] = {"text": str, "label": int}

    def __init__(self, bridge: TransformerBridge, n_classes: int) -> None:
        """Makes an untrained head.

        Args:
            bridge: the base; gives the width, the device, and which token is read.
            n_classes: labels are 0 to n_classes - 1.

        Raises:
            ValueError: if there are fewer than two classes.
        """
        super().__init__()
        if n_classes < 2:
            raise ValueError(f"n_classes must be at least 2, got {n_classes}")
        self.n_classes = n_classes
        self.reads_last = is_causal(bridge)
        d_model = bridge.cfg.d_model
        self.head = nn.Sequential(nn.Linear(d_model, d_model), nn.Tanh(), nn.Linear(d_model, n_classes))
        self.to(bridge.cfg.device)

    def extra_repr(self) -> str:
        return f"n_classes={self.n_classes}"

    def check(self, bridge: TransformerBridge) -> None:
        """Takes any model."""

    def encode(self, bridge: TransformerBridge, example: Example) -> Batch:
        text, label = example
        if not 0 <= label < self.n_classes:
            raise ValueError(f"label {label} of {text[:60]!r} is not in [0, {self.n_classes - 1}]")
        return encode(bridge, [text])

    def weights(self, batch: Batch) -> Int[Tensor, " examples"]:
        return torch.ones(len(batch), dtype=torch.long, device=batch.tokens.device)

    def read_at(self, batch: Batch) -> Bool[Tensor, "batch pos"]:
        """The one token of each text that the head reads."""
        columns = torch.arange(batch.tokens.shape[1], device=batch.tokens.device)
        first = batch.prompt_mask.int().argmax(dim=1)
        return columns == (batch.last_prompt_index if self.reads_last else first)[:, None]

    def reference(self, bridge: TransformerBridge, held: Held, example: Example) -> Int[Tensor, " batch"]:
        return torch.tensor([example[1]], device=held.batch.tokens.device)

    def logits(self, bridge: TransformerBridge, held: Held, edits: Sequence[Edit]) -> Float[Tensor, "batch n_classes"]:
        """Of each class, under edits; gradients flow to edits and head."""
        batch, start = held.batch, held.start
        nothing = torch.zeros_like(batch.prompt_mask)
        with watch_last_hidden(bridge) as seen:
            run_cone(bridge, held, edits, logits_at=nothing)
        (hidden,) = seen
        weight = next(self.head.parameters())
        logits: Tensor = self.head(hidden[self.read_at(batch)[:, start:].to(hidden.device)].to(weight))
        return logits

    def losses(
        self, bridge: TransformerBridge, held: Held, edits: Sequence[Edit], reference: Tensor | None
    ) -> Float[Tensor, " examples"]:
        assert reference is not None, "the trainer passes what reference() gave"
        return nn.functional.cross_entropy(widened(self.logits(bridge, held, edits)), reference, reduction="none")

    @torch.no_grad()
    def predict(
        self, bridge: TransformerBridge, reft: Reft | None, texts: Sequence[str], *, batch_size: int = 16
    ) -> list[int]:
        """The most likely class of each text, under an edit or on the base alone."""
        labels: list[int] = []
        for place in range(0, len(texts), batch_size):
            batch = encode(bridge, texts[place : place + batch_size])
            edits = [] if reft is None else reft.edits(batch)
            held = hold(bridge, batch, edits, wanted=self.read_at(batch))
            labels += self.logits(bridge, held, edits).argmax(dim=-1).tolist()
        return labels
