"""A head on one token's last hidden state: W_o tanh(W_d h + b_d) + b_o (Wu et al. 2024, section 3).

In an encoder such as BERT or RoBERTa, h is the state of the first token, the classification token.
In a causal model, h is the state of the text's last token. Head and edit are trained together. The
paper's parameter percentages exclude the head.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge

from reftlens.bridge import is_causal, watch_last_hidden
from reftlens.cone.hold import Held, hold, run_cone
from reftlens.data import Batch, batches_by_length, encode, token_counts
from reftlens.display import progress_bar
from reftlens.edit.hooks import Edit
from reftlens.edit.reft import Reft
from reftlens.training.objectives.base import Objective


class Head(Objective):
    """Base class of losses on a head's outputs. Each text has weight 1. The subclass defines what the outputs mean."""

    def __init__(self, bridge: TransformerBridge, n_outputs: int) -> None:
        """Makes an untrained head.

        Args:
            bridge: the base; gives the width, the device, and which token is read.
            n_outputs: number of outputs.
        """
        super().__init__()
        self.reads_last = is_causal(bridge)
        d_model = bridge.cfg.d_model
        self.head = nn.Sequential(nn.Linear(d_model, d_model), nn.Tanh(), nn.Linear(d_model, n_outputs))
        self.to(bridge.cfg.device)

    def check(self, bridge: TransformerBridge) -> None:
        """Accepts any model."""

    def weights(self, batch: Batch) -> Int[Tensor, " examples"]:
        return torch.ones(len(batch), dtype=torch.long, device=batch.tokens.device)

    def read_at(self, batch: Batch) -> Bool[Tensor, "batch pos"]:
        """Returns the one token of each text that the head reads."""
        columns = torch.arange(batch.tokens.shape[1], device=batch.tokens.device)
        # The first of equal values: the first prompt token, whatever the padding side.
        first = batch.prompt_mask.int().argmax(dim=1)
        return columns == (batch.last_prompt_index if self.reads_last else first)[:, None]

    def outputs(self, bridge: TransformerBridge, held: Held, edits: Sequence[Edit]) -> Float[Tensor, "batch n_outputs"]:
        """Computes the head's outputs under edits. Gradients flow to the edits and the head."""
        batch, start = held.batch, held.start
        nothing = torch.zeros_like(batch.prompt_mask)
        with watch_last_hidden(bridge) as seen:
            # The head reads hidden states, so no token is unembedded.
            run_cone(bridge, held, edits, logits_at=nothing)
        (hidden,) = seen
        weight = next(self.head.parameters())
        # The cone holds columns from `start` on.
        outputs: Tensor = self.head(hidden[self.read_at(batch)[:, start:].to(hidden.device)].to(weight))
        return outputs

    @torch.no_grad()
    def outputs_of(
        self,
        bridge: TransformerBridge,
        reft: Reft | None,
        texts: Sequence[str],
        *,
        batch_size: int = 16,
        progress: bool = False,
    ) -> Float[Tensor, "text n_outputs"]:
        """Computes the head's outputs for texts, under an edit or on the unedited base. Texts of similar length share a batch.

        Raises:
            ValueError: If there are no texts, a text is empty or longer than the model's context,
                or no text has the edited positions.
        """
        if not len(texts):
            raise ValueError("the list of texts is empty")
        found: dict[int, Tensor] = {}
        with progress_bar(total=len(texts), desc="reading", unit="text", shown=progress) as bar:
            for rows in batches_by_length(token_counts(bridge, texts), batch_size):
                batch = encode(bridge, [texts[row] for row in rows])
                edits = [] if reft is None else reft.edits(batch)
                held = hold(bridge, batch, edits, wanted=self.read_at(batch))
                found |= zip(rows, self.outputs(bridge, held, edits), strict=True)
                bar.update(len(rows))
        return torch.stack([found[row] for row in range(len(texts))])
