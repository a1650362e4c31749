"""Finds the subject's tokens in a prompt, and computes logit differences of answers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from reftlens.data import Batch, Prompt, encode
from reftlens.positions import Span


def subject_places(bridge: TransformerBridge, prompt: Prompt, subject: str) -> tuple[bool, ...]:
    """Returns, for each token of `encode(bridge, [prompt])`, whether it belongs to the first occurrence of `subject`.

    Args:
        bridge: gives the tokenizer.
        prompt: one text or conversation.
        subject: a part of it; empty for none.

    Raises:
        ValueError: If the prompt does not contain the subject.
    """
    batch = encode(bridge, [prompt])
    if not subject:
        return (False,) * batch.tokens.shape[1]
    return tuple(Span(subject, 0).mask(batch.prompts)[0].tolist())


def starred(bridge: TransformerBridge, prompt: Prompt, subjects: Sequence[str] | None) -> tuple[bool, ...]:
    """Returns the tokens of a prompt that plots star: those of the first subject, or none without subjects.

    Args:
        bridge: gives the tokenizer.
        prompt: the first prompt.
        subjects: a part of each prompt.
    """
    return subject_places(bridge, prompt, subjects[0] if subjects else "")


def logit_difference(
    logits: Float[Tensor, "batch pos d_vocab"],
    batch: Batch,
    target: Int[Tensor, " batch"],
    foil: Int[Tensor, " batch"],
) -> Float[Tensor, " batch"]:
    """Computes logit(target) - logit(foil) after each prompt, in nats."""
    pair = batch.at_last_prompt_token(logits).gather(1, torch.stack([target, foil], dim=1))
    return (pair[:, 0] - pair[:, 1]).float()


def require_aligned(batch: Batch) -> None:
    """Raises ValueError unless all prompts have the same number of tokens, so that columns can be compared."""
    lengths = batch.prompt_mask.sum(dim=1)
    if bool((lengths != lengths[0]).any()) or batch.tokens.shape[1] != int(lengths[0]):
        raise ValueError(
            f"a map over positions needs prompts of equal length without completions, got lengths {lengths.tolist()}: "
            "group the prompts by length"
        )
