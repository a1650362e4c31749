"""Computes logits under many edits of one batch. The base runs once, then each edit runs on its light cone.

answers = Answers(bridge, batch, reft.edits(batch))
base, edited = answers.logits(), answers.logits(reft.edits(batch))      # [prompt, d_vocab] each
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import final

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from reftlens.cone.hold import hold, hold_for_one_run
from reftlens.cone.light_cone import run_cone
from reftlens.cone.variants import MEMORY_BYTES, side_by_side, together, variants_at_once
from reftlens.data import Batch
from reftlens.edit.hooks import Edit


@final
class Answers:
    """Logits of one batch under any edits of one layout."""

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
            edits: of this batch. Edits that run later may not act at an earlier layer or token.
                Their weights do not matter.
            at: the tokens whose logits are returned; the last token of each prompt by default.
        """
        self.bridge, self.batch, self.at = bridge, batch, batch.last_prompt_mask if at is None else at
        self.held = hold(bridge, batch, _acting(edits), wanted=self.at)

    def logits(self, edits: Sequence[Edit] = ()) -> Float[Tensor, "n d_vocab"]:
        """Computes the logits at the chosen tokens, in row order. Gradients flow to the edits.

        Args:
            edits: the edits to apply; none gives the base's logits.

        Raises:
            ValueError: If an edit acts at an earlier layer or token than the edits given to the
                constructor.
        """
        return run_cone(self.bridge, self.held, _acting(edits), logits_at=self.at)

    def many(
        self, variants: Sequence[Sequence[Edit]], *, memory_bytes: int = MEMORY_BYTES
    ) -> Iterator[Float[Tensor, "n d_vocab"]]:
        """Computes `logits` under each of several sets of edits, as many side by side as fit.

        Args:
            variants: sets of edits, each as for `logits`.
            memory_bytes: approximate limit for the activations of one run.

        Yields:
            The logits of one set after another.

        Raises:
            ValueError: As `logits`.
        """
        n = variants_at_once(self.bridge, self.held, memory_bytes=memory_bytes)
        for start in range(0, len(variants), n):
            some = [_acting(edits) for edits in variants[start : start + n]]
            held = side_by_side(self.held, len(some))
            logits = run_cone(self.bridge, held, together(some), logits_at=self.at.repeat(len(some), 1))
            yield from logits.chunk(len(some))

    @torch.no_grad()
    def logprobs(self, edits: Sequence[Edit] = ()) -> Float[Tensor, "n d_vocab"]:
        """Computes log-probabilities at the chosen tokens, on the CPU in float32.

        Args:
            edits: as for `logits`.
        """
        return self.logits(edits).float().log_softmax(-1).cpu()


@torch.no_grad()
def next_token_logprobs(
    bridge: TransformerBridge, batch: Batch, edits: Sequence[Edit] = ()
) -> Float[Tensor, "prompt d_vocab"]:
    """Log-probabilities after each prompt from one run, on the CPU in float32. For several edits, use `Answers`.

    Args:
        bridge: the base, without edits attached.
        batch: the prompts.
        edits: those that act; none for the base.
    """
    acting = _acting(edits)
    # The cone must hold every token that an edit reads, and the tokens whose logits are wanted.
    masks = torch.stack([batch.last_prompt_mask, *(edit.read for edit in acting)])
    held = hold_for_one_run(bridge, batch, [edit.hook_name for edit in acting], masks.any(dim=0))
    logits = run_cone(bridge, held, acting, logits_at=batch.last_prompt_mask)
    return logits.float().log_softmax(-1).cpu()


def _acting(edits: Sequence[Edit]) -> list[Edit]:
    # One without a token in this batch would only make the cone begin earlier.
    return [edit for edit in edits if bool(edit.changed.any())]
