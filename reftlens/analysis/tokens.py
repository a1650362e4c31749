"""Tokens as a reader should see them, and where a subject stands in a prompt."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from reftlens.data import Batch, encode
from reftlens.positions import Span


def str_tokens(bridge: TransformerBridge, tokens: Int[Tensor, " pos"]) -> tuple[str, ...]:
    """Each token as text, spaces kept."""
    return tuple(bridge.tokenizer.decode([token]) for token in tokens.tolist())


def subject_places(bridge: TransformerBridge, prompt: str, subject: str) -> tuple[bool, ...]:
    """For each token of `encode(bridge, [prompt])`, whether it belongs to the first occurrence of `subject`.

    Raises:
        ValueError: if the prompt does not contain the subject.
    """
    batch = encode(bridge, [prompt])
    if not subject:
        return (False,) * batch.tokens.shape[1]
    return tuple(Span(subject, 0).mask(batch.prompts)[0].tolist())


def first_token(bridge: TransformerBridge, answer: str) -> int:
    """The first token of an answer as it stands in a text, so `answer` usually begins with a space."""
    ids = bridge.tokenizer(answer, add_special_tokens=False)["input_ids"]
    if not ids:
        raise ValueError(f"the answer {answer!r} has no tokens")
    return int(ids[0])


def logit_difference(
    logits: Float[Tensor, "batch pos d_vocab"],
    batch: Batch,
    target: Int[Tensor, " batch"],
    foil: Int[Tensor, " batch"],
) -> Float[Tensor, " batch"]:
    """logit(target) - logit(foil) after each prompt, in nats."""
    rows = torch.arange(len(batch), device=logits.device)
    last = logits[rows, batch.last_prompt_index]
    return (last[rows, target] - last[rows, foil]).float()


def answer_probability(
    logits: Float[Tensor, "batch pos d_vocab"], batch: Batch, target: Int[Tensor, " batch"]
) -> Float[Tensor, " batch"]:
    """Probability of the target as the first token after each prompt."""
    rows = torch.arange(len(batch), device=logits.device)
    return logits[rows, batch.last_prompt_index].float().softmax(-1)[rows, target]


def require_aligned(batch: Batch) -> None:
    """Raises a ValueError unless all prompts have the same number of tokens, so that columns can be compared."""
    lengths = batch.prompt_mask.sum(dim=1)
    if bool((lengths != lengths[0]).any()) or batch.tokens.shape[1] != int(lengths[0]):
        raise ValueError(
            f"a map over positions needs prompts of one length and no completions, got lengths {lengths.tolist()}: "
            "group the prompts by length"
        )
