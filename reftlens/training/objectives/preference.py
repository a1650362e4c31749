"""Preference losses: each prompt has a chosen completion c and a rejected completion r.

DPO (Rafailov et al. 2023, arXiv:2305.18290, eq. 7), with the unedited base as reference:
    -log sigmoid(beta [(log p(c) - log p_base(c)) - (log p(r) - log p_base(r))])
RePS (Wu et al. 2025, arXiv:2505.20809), SimPO's length-normalised difference with a factor for each
example:
    -log sigmoid(f / |c| log p(c) - 1 / |r| log p(r)),   f = max(log p_base(r) - log p_base(c), 1)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, final

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import logsigmoid
from transformer_lens.model_bridge import TransformerBridge

from reftlens.cone.hold import Held, run_cone
from reftlens.data import IGNORE, Batch, encode
from reftlens.edit.hooks import Edit
from reftlens.numbers import require_number
from reftlens.training.objectives.base import Example, Objective, completion_logprobs, predictions


class Preference(Objective):
    """A loss over pairs of completions, each with weight 1. The base's log-probabilities of both are computed once."""

    fields: ClassVar[dict[str, type]] = {"prompt": str, "chosen": str, "rejected": str}
    unit: ClassVar[str] = "nats per pair"

    def encode(self, bridge: TransformerBridge, example: Example) -> Batch:
        prompt, chosen, rejected = example
        return encode(bridge, [prompt, prompt], [chosen, rejected])

    def weights(self, batch: Batch) -> Int[Tensor, " examples"]:
        return torch.ones(len(batch) // 2, dtype=torch.long, device=batch.tokens.device)

    @torch.no_grad()
    def reference(self, bridge: TransformerBridge, held: Held, example: Example) -> Float[Tensor, " batch"]:
        return _logprobs(bridge, held, [])


@final
class DPO(Preference):
    """Direct preference optimization of an edit, averaged over pairs."""

    def __init__(self, beta: float = 0.1) -> None:
        """Args: beta: strength of the regularisation towards the base. A larger beta keeps the edit closer to it.

        Raises:
            ValueError: If beta is not above 0.
        """
        super().__init__()
        require_number("beta", beta, above=0)
        self.beta = beta

    def extra_repr(self) -> str:
        return f"beta={self.beta}"

    def losses(
        self, bridge: TransformerBridge, held: Held, edits: Sequence[Edit], reference: Tensor | None
    ) -> Float[Tensor, " examples"]:
        assert reference is not None, "the trainer passes what reference() gave"
        # Rows alternate, chosen and rejected, as encode made them.
        rewards = (_logprobs(bridge, held, edits) - reference).view(-1, 2)
        return -logsigmoid(self.beta * (rewards[:, 0] - rewards[:, 1]))


@final
class RePS(Preference):
    """Reference-free preference steering in both directions, averaged over pairs.

    The edit is trained to make the chosen completion more likely. The edit with its changes
    multiplied by `suppress` is trained to make the rejected completion more likely. (The paper
    suppresses by projecting out the direction of its rank-1 vector. Negating the edit's changes
    instead works for every intervention class.)
    """

    def __init__(self, suppress: float | None = -1.0) -> None:
        """Args: suppress: factor on the edit's changes in the second direction; None leaves that direction out.

        Raises:
            ValueError: If it is neither None nor a finite number.
        """
        super().__init__()
        if suppress is not None:
            require_number("suppress", suppress)
        self.suppress = suppress

    def extra_repr(self) -> str:
        return f"suppress={self.suppress}"

    def losses(
        self, bridge: TransformerBridge, held: Held, edits: Sequence[Edit], reference: Tensor | None
    ) -> Float[Tensor, " examples"]:
        assert reference is not None, "the trainer passes what reference() gave"
        lengths = (held.batch.labels != IGNORE).sum(dim=1).to(reference.device)
        losses = _preferred(_logprobs(bridge, held, edits), reference, lengths)
        if self.suppress is None:
            return losses
        turned = [replace(edit, scale=edit.scale * self.suppress) for edit in edits]
        # With the pairs turned round, the rejected completion is the preferred one.
        swapped = [
            pairs.view(-1, 2).flip(1).flatten() for pairs in (_logprobs(bridge, held, turned), reference, lengths)
        ]
        return losses + _preferred(*swapped)


def _preferred(
    logprobs: Float[Tensor, " batch"], reference: Float[Tensor, " batch"], lengths: Int[Tensor, " batch"]
) -> Float[Tensor, " examples"]:
    """RePS in one direction: the first row of each pair is the preferred one."""
    (win, lose), (base_win, base_lose) = logprobs.view(-1, 2).T, reference.view(-1, 2).T
    n_win, n_lose = lengths.view(-1, 2).T
    factor = (base_lose - base_win).clamp(min=1.0)
    return -logsigmoid(factor / n_win * win - lose / n_lose)


def _logprobs(bridge: TransformerBridge, held: Held, edits: Sequence[Edit]) -> Float[Tensor, " batch"]:
    return completion_logprobs(run_cone(bridge, held, edits, logits_at=predictions(held.batch)), held.batch)
