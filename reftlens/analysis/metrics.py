"""What a patched run is measured by: any function of the logits after each prompt.

A metric takes logits `[n, d_vocab]` and the number of the pair that each line belongs to `[n]`, and returns one value for
each line. A lambda will do; those below are the usual ones. They read an answer by its first token behind its prompt, and
know how many pairs they were made for.
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
    """A metric of so many pairs, and of no other number."""

    n_pairs: int
    of: Metric
    name: str
    """Of what is measured, for a reader: "answer's probability"."""
    unit: str = ""

    def __call__(self, logits: Float[Tensor, "n d_vocab"], pair: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        return self.of(logits, pair)


def require_pairs_of(metric: Metric, n_pairs: int) -> None:
    """Refuses a metric that was made for another number of prompts.

    Args:
        metric: any function; a lambda is not asked.
        n_pairs: the prompts that are run.

    Raises:
        ValueError: If it has more answers than there are prompts, or fewer.
    """
    if isinstance(metric, Counted) and metric.n_pairs != n_pairs:
        raise ValueError(
            f"the metric was made for {metric.n_pairs} prompts and their answers, and {n_pairs} prompts are run: make it from "
            "the prompts that are run"
        )


def name_of(metric: Metric) -> str:
    """What a metric measures, for a reader.

    Args:
        metric: any function; a lambda is called "metric".
    """
    return metric.name if isinstance(metric, Counted) else "metric"


def unit_of(metric: Metric) -> str:
    """Its unit; empty for a probability, and for a lambda, which does not say.

    Args:
        metric: any function.
    """
    return metric.unit if isinstance(metric, Counted) else ""


def logit_difference_of(
    bridge: TransformerBridge, prompts: Iterable[Prompt], answers: Iterable[Prompt], foils: Iterable[Prompt]
) -> Metric:
    """logit(answer) - logit(foil), in nats; one answer and one foil for each prompt, by their first tokens behind it.

    Args:
        bridge: gives the tokenizer.
        prompts: after which the answers are read, in the order of the pairs.
        answers: with their leading space.
        foils: what they are held against, such as the old answers.

    Raises:
        ValueError: If the two of a pair begin with the same token, or there is not one of each for each prompt.
    """
    prompts, answers, foils = as_prompts(prompts), as_prompts(answers, "answers"), as_prompts(foils, "foils")
    target, foil = first_tokens(bridge, prompts, answers), first_tokens(bridge, prompts, foils, name="foils")
    for pair in (target == foil).nonzero().flatten().tolist():
        raise ValueError(
            f"answer and foil of pair {pair} begin with the same token, so their logits cannot differ: "
            f"{answers[pair]!r} and {foils[pair]!r}"
        )

    def metric(logits: Float[Tensor, "n d_vocab"], pair: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        return (_pick(logits, target[pair]) - _pick(logits, foil[pair])).float()

    return Counted(len(prompts), metric, "logit difference", "nats")


def probability_of(bridge: TransformerBridge, prompts: Iterable[Prompt], answers: Iterable[Prompt]) -> Metric:
    """The probability of each prompt's answer, by its first token behind the prompt.

    Args:
        bridge: gives the tokenizer.
        prompts: after which the answers are read, in the order of the pairs.
        answers: one for each prompt, with its leading space.
    """
    target = first_tokens(bridge, prompts, answers)

    def metric(logits: Float[Tensor, "n d_vocab"], pair: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        return _pick(logits.float().softmax(-1), target[pair])

    return Counted(len(target), metric, "answer's probability")


def loss_of(bridge: TransformerBridge, prompts: Iterable[Prompt], answers: Iterable[Prompt]) -> Metric:
    """The cross-entropy of each prompt's answer, by its first token behind the prompt, in nats.

    Args:
        bridge: gives the tokenizer.
        prompts: after which the answers are read, in the order of the pairs.
        answers: one for each prompt, with its leading space.
    """
    target = first_tokens(bridge, prompts, answers)

    def metric(logits: Float[Tensor, "n d_vocab"], pair: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        return -_pick(logits.float().log_softmax(-1), target[pair])

    return Counted(len(target), metric, "answer's loss", "nats")


def kl_from(reference: Float[Tensor, "pair d_vocab"]) -> Metric:
    """KL divergence from each pair's reference to the patched run, in nats; `reference` are logits.

    Args:
        reference: logits after each prompt, such as those of the base.
    """
    expected = reference.float().log_softmax(-1)

    def metric(logits: Float[Tensor, "n d_vocab"], pair: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        found = logits.float().log_softmax(-1)
        return kl_div(found, expected[pair], reduction="none", log_target=True).sum(-1)

    return Counted(len(expected), metric, "KL divergence", "nats")


def _pick(values: Float[Tensor, "n d_vocab"], token: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    return values.gather(1, token[:, None])[:, 0]
