"""What a patched run is measured by: any function of the logits after each prompt.

A metric takes logits `[n, d_vocab]` and the number of the pair that each line belongs to `[n]`, and returns one value for
each line. A lambda will do; those below are the usual ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import kl_div
from transformer_lens.model_bridge import TransformerBridge

from reftlens.analysis.tokens import first_tokens

Metric = Callable[[Float[Tensor, "n d_vocab"], Int[Tensor, " n"]], Float[Tensor, " n"]]


def logit_difference_of(bridge: TransformerBridge, answers: Sequence[str], foils: Sequence[str]) -> Metric:
    """logit(answer) - logit(foil), in nats; one answer and one foil for each pair, by their first tokens.

    Args:
        bridge: gives the tokenizer.
        answers: with their leading space.
        foils: what they are held against, such as the old answers.

    Raises:
        ValueError: if the two of a pair begin with the same token.
    """
    target, foil = first_tokens(bridge, answers), first_tokens(bridge, foils)
    for pair in (target == foil).nonzero().flatten().tolist():
        raise ValueError(
            f"answer and foil of pair {pair} begin with the same token, so their logits cannot differ: "
            f"{answers[pair]!r} and {foils[pair]!r}"
        )

    def metric(logits: Float[Tensor, "n d_vocab"], pair: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        return (_pick(logits, target[pair]) - _pick(logits, foil[pair])).float()

    return metric


def probability_of(bridge: TransformerBridge, answers: Sequence[str]) -> Metric:
    """The probability of each pair's answer, by its first token.

    Args:
        bridge: gives the tokenizer.
        answers: one for each pair, with its leading space.
    """
    target = first_tokens(bridge, answers)

    def metric(logits: Float[Tensor, "n d_vocab"], pair: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        return _pick(logits.float().softmax(-1), target[pair])

    return metric


def loss_of(bridge: TransformerBridge, answers: Sequence[str]) -> Metric:
    """The cross-entropy of each pair's answer, by its first token, in nats.

    Args:
        bridge: gives the tokenizer.
        answers: one for each pair, with its leading space.
    """
    target = first_tokens(bridge, answers)

    def metric(logits: Float[Tensor, "n d_vocab"], pair: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        return -_pick(logits.float().log_softmax(-1), target[pair])

    return metric


def kl_from(reference: Float[Tensor, "pair d_vocab"]) -> Metric:
    """KL divergence from each pair's reference to the patched run, in nats; `reference` are logits.

    Args:
        reference: logits after each prompt, such as those of the base.
    """
    expected = reference.float().log_softmax(-1)

    def metric(logits: Float[Tensor, "n d_vocab"], pair: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        found = logits.float().log_softmax(-1)
        return kl_div(found, expected[pair], reduction="none", log_target=True).sum(-1)

    return metric


def _pick(values: Float[Tensor, "n d_vocab"], token: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    return values.gather(1, token[:, None])[:, 0]
