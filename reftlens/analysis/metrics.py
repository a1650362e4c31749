"""Metrics of patched runs: functions of the logits after each prompt.

A metric takes logits `[n, d_vocab]` and the index of the pair that each row belongs to `[n]`, and
returns one value per row. Any function works, including a lambda. The functions below make the
usual metrics. They score an answer by its first token after the prompt, and raise an error if the
number of pairs differs from the number they were made for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import final

from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import kl_div
from transformer_lens.model_bridge import TransformerBridge

from reftlens.data import Prompt, as_prompts, first_tokens

Metric = Callable[[Float[Tensor, "n d_vocab"], Int[Tensor, " n"]], Float[Tensor, " n"]]


@final
@dataclass(frozen=True, eq=False)
class Counted:
    """A metric for a fixed number of pairs."""

    n_pairs: int
    of: Metric
    name: str
    """Name of the quantity for display, such as "answer's probability"."""
    unit: str = ""

    def __call__(self, logits: Float[Tensor, "n d_vocab"], pair: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        return self.of(logits, pair)


def require_pairs_of(metric: Metric, n_pairs: int) -> None:
    """Raises if a metric was made for another number of prompts.

    Args:
        metric: any function; a lambda is not checked.
        n_pairs: number of prompts that are run.

    Raises:
        ValueError: If the number of answers differs from the number of prompts.
    """
    if isinstance(metric, Counted) and metric.n_pairs != n_pairs:
        raise ValueError(
            f"the metric was made for the answers of {metric.n_pairs} prompts, but {n_pairs} prompts are run: make the metric "
            "from the answers of these prompts"
        )


def name_of(metric: Metric) -> str:
    """Returns the name of the quantity that a metric measures, for display.

    Args:
        metric: any function; a lambda is called "metric".
    """
    return metric.name if isinstance(metric, Counted) else "metric"


def unit_of(metric: Metric) -> str:
    """Returns the unit of a metric; empty for a probability and for a lambda.

    Args:
        metric: any function.
    """
    return metric.unit if isinstance(metric, Counted) else ""


def logit_difference_of(
    bridge: TransformerBridge, prompts: Iterable[Prompt], answers: Iterable[Prompt], foils: Iterable[Prompt]
) -> Metric:
    """Makes the metric logit(answer) - logit(foil) in nats, for the first tokens of one answer and one foil per prompt.

    Args:
        bridge: gives the tokenizer.
        prompts: the prompts before the answers, in the order of the pairs.
        answers: with their leading space.
        foils: the answers to compare with, such as the old answers.

    Raises:
        ValueError: If answer and foil begin with the same token, or their number differs from the
            number of prompts.
    """
    prompts, answers, foils = as_prompts(prompts), as_prompts(answers, "answers"), as_prompts(foils, "foils")
    target, foil = first_tokens(bridge, prompts, answers), first_tokens(bridge, prompts, foils, name="foils")
    for pair in (target == foil).nonzero().flatten().tolist():
        raise ValueError(
            f"the answer and the foil of pair {pair} begin with the same token, so their logits cannot differ: "
            f"{answers[pair]!r} and {foils[pair]!r}"
        )

    return token_difference(target, foil)


def token_difference(answers: Int[Tensor, " pair"], foils: Int[Tensor, " pair"]) -> Metric:
    """Makes the metric logit(answer) - logit(foil) in nats from one answer token and one foil token per prompt.

    Args:
        answers: token ids, in the order of the pairs.
        foils: the tokens to compare with, such as those that the base gives.
    """

    def metric(logits: Float[Tensor, "n d_vocab"], pair: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        target, foil = (tokens.to(logits.device)[pair] for tokens in (answers, foils))
        # Of logits: the normalising constant would cancel.
        return (_pick(logits, target) - _pick(logits, foil)).float()

    return Counted(len(answers), metric, "logit difference", "nats")


def probability_of(bridge: TransformerBridge, prompts: Iterable[Prompt], answers: Iterable[Prompt]) -> Metric:
    """Makes the metric probability of each prompt's answer, by its first token after the prompt.

    Args:
        bridge: gives the tokenizer.
        prompts: the prompts before the answers, in the order of the pairs.
        answers: one for each prompt, with its leading space.
    """
    target = first_tokens(bridge, prompts, answers)

    def metric(logits: Float[Tensor, "n d_vocab"], pair: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        # By pair: a run has the pairs in any order, and some of them several times.
        return _pick(logits.float().softmax(-1), target.to(logits.device)[pair])

    return Counted(len(target), metric, "answer's probability")


def loss_of(bridge: TransformerBridge, prompts: Iterable[Prompt], answers: Iterable[Prompt]) -> Metric:
    """Makes the metric cross-entropy of each prompt's answer in nats, by its first token after the prompt.

    Args:
        bridge: gives the tokenizer.
        prompts: the prompts before the answers, in the order of the pairs.
        answers: one for each prompt, with its leading space.
    """
    target = first_tokens(bridge, prompts, answers)

    def metric(logits: Float[Tensor, "n d_vocab"], pair: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        return -_pick(logits.float().log_softmax(-1), target.to(logits.device)[pair])

    return Counted(len(target), metric, "answer's loss", "nats")


def kl_from(reference: Float[Tensor, "pair d_vocab"]) -> Metric:
    """Makes the metric KL divergence from each pair's reference to the patched run, in nats.

    Args:
        reference: logits after each prompt, such as those of the base.
    """
    expected = reference.float().log_softmax(-1)

    def metric(logits: Float[Tensor, "n d_vocab"], pair: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        found = logits.float().log_softmax(-1)
        # In torch's order: kl_div(q, p) is KL(p || q).
        # A reference may be on the CPU, as `next_token_logprobs` gives it.
        return kl_div(found, expected.to(logits.device)[pair], reduction="none", log_target=True).sum(-1)

    return Counted(len(expected), metric, "KL divergence", "nats")


def _pick(values: Float[Tensor, "n d_vocab"], token: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    return values.gather(1, token[:, None])[:, 0]
