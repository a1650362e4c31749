"""What edits of a frozen base say: the base is run once, then each edit on its light cone.

answers = Answers(bridge, batch, reft.edits(batch))
base, edited = answers.logits(), answers.logits(reft.edits(batch))      # [prompt, d_vocab] each
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from reftlens.cone.hold import hold
from reftlens.cone.light_cone import run_cone
from reftlens.data import Batch
from reftlens.edit.hooks import Edit


@final
class Answers:
    """The logits of one batch under any edits of one layout."""

    def __init__(
        self,
        bridge: TransformerBridge,
        batch: Batch,
        edits: Sequence[Edit],
        *,
        at: Bool[Tensor, "batch pos"] | None = None,
    ) -> None:
        """Runs the base once.

        Args:
            bridge: the base, without edits attached.
            batch: the prompts.
            edits: of this batch; what is run later acts at no earlier layer and token. Their weights do not matter.
            at: the tokens whose logits are wanted; the last of each prompt if not given.
        """
        self.bridge, self.batch, self.at = bridge, batch, batch.last_prompt_mask if at is None else at
        self.held = hold(bridge, batch, _acting(edits), wanted=self.at)

    def logits(self, edits: Sequence[Edit] = ()) -> Float[Tensor, "n d_vocab"]:
        """The logits at the wanted tokens, row after row; gradients flow to the edits.

        Args:
            edits: those that act; the base's own logits without them.

        Raises:
            ValueError: If one of them acts at an earlier layer or token than those that this was made for.
        """
        return run_cone(self.bridge, self.held, _acting(edits), logits_at=self.at)

    @torch.no_grad()
    def logprobs(self, edits: Sequence[Edit] = ()) -> Float[Tensor, "n d_vocab"]:
        """Log-probabilities at the wanted tokens, on the CPU in float32.

        Args:
            edits: as of `logits`.
        """
        return self.logits(edits).float().log_softmax(-1).cpu()


def _acting(edits: Sequence[Edit]) -> list[Edit]:
    return [edit for edit in edits if bool(edit.changed.any())]
