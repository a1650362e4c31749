"""Does the model now answer as wanted, and what else moved? Accuracy and KL on a group of prompts, with a control."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from reftlens.analysis.controls.turned import Turned
from reftlens.data import Batch, Prompt, as_prompts, encode, first_tokens
from reftlens.edit.hooks import Edit, attach
from reftlens.edit.reft import Reft
from reftlens.results import Outcome


@torch.no_grad()
def outcome(
    bridge: TransformerBridge,
    reft: Reft,
    prompts: Iterable[Prompt],
    answers: Iterable[Prompt],
    *,
    group: str,
    wanted: str,
    batch_size: int = 64,
    seed: int = 0,
) -> Outcome:
    """How often the next token is the answer's first: base, edited, and under the edit turned to random directions.

    Args:
        bridge: the base.
        reft: the edit.
        prompts: texts or conversations.
        answers: what counts as right, one for each prompt, with its leading space.
        group: name of the group, for a reader.
        wanted: what the answers are: "new answer" or "old answer".
        batch_size: prompts in one forward pass.
        seed: draws the control's directions.

    Raises:
        ValueError: If there is not one answer for each prompt.
    """
    prompts = as_prompts(prompts)
    targets = first_tokens(bridge, prompts, answers).cpu()
    generator = torch.Generator().manual_seed(seed)
    turned = [Turned(intervention, generator) for _, intervention in reft]
    right = torch.zeros(3)
    kl = 0.0
    for start in range(0, len(prompts), batch_size):
        batch = encode(bridge, prompts[start : start + batch_size])
        target = targets[start : start + batch_size]
        edits = reft.edits(batch)
        control = [replace(edit, intervention=placebo) for edit, placebo in zip(edits, turned, strict=True)]
        runs = [next_token_logprobs(bridge, batch, chosen) for chosen in ((), edits, control)]
        right += torch.tensor([float((run.argmax(-1) == target).sum()) for run in runs])
        kl += float((runs[0].exp() * (runs[0] - runs[1])).sum())
    base, edited, placebo_right = (right / len(prompts)).tolist()
    return Outcome(group, wanted, len(prompts), base, edited, placebo_right, kl / len(prompts))


def next_token_logprobs(
    bridge: TransformerBridge, batch: Batch, edits: Sequence[Edit]
) -> Float[Tensor, "batch d_vocab"]:
    """Log-probabilities after each prompt, on the CPU in float32."""
    with attach(bridge, edits):
        logits = bridge(batch.tokens, attention_mask=batch.attention_mask, use_cache=False)
    return batch.at_last_prompt_token(logits).float().log_softmax(-1).cpu()
