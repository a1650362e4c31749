"""Judges of steered text, as in AxBench: concept, instruct and fluency, each 0 to 2, and their harmonic mean.

(Wu et al. 2025, arXiv:2501.17148.) Is the concept in the text, does the text do what the prompt
asks, is it readable? In the harmonic mean one 0 makes the whole 0: a text that only repeats the
concept's word is no success. AxBench asks a large language model for each score. Here a judge is
any function of prompts and texts, so yours may ask one too; those in this file run on this machine.
A judge measures what it counts: keywords are not understanding, and a low perplexity is not sense.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from reftlens.cone.hold import hold, run_cone
from reftlens.data import IGNORE, encode
from reftlens.results import Steered
from reftlens.training.objectives.base import predictions

Judge = Callable[[Sequence[str], Sequence[str]], Sequence[float]]
"""(prompts, texts) -> one score from 0 to 2 per text."""


@final
@dataclass(frozen=True)
class Judges:
    """The three judges."""

    concept: Judge
    instruct: Judge
    fluency: Judge

    def __call__(self, prompts: Sequence[str], texts: Sequence[str]) -> Steered:
        """Judges texts.

        Args:
            prompts: the prompts.
            texts: what was generated after each.

        Raises:
            ValueError: If a judge returns another number of scores, or one outside 0 to 2. The
                message names the judge.
        """
        scores = {
            name: _asked(name, getattr(self, name), prompts, texts) for name in ("concept", "instruct", "fluency")
        }
        return Steered(tuple(prompts), tuple(texts), **scores)


def _asked(name: str, judge: Judge, prompts: Sequence[str], texts: Sequence[str]) -> tuple[float, ...]:
    scores = tuple(float(score) for score in judge(prompts, texts))
    if len(scores) != len(texts):
        raise ValueError(f"the {name} judge must return one score per text, {len(texts)} here, got {len(scores)}")
    # `not 0 <= NaN` is True: NaN is refused as well.
    wrong = [score for score in scores if not 0 <= score <= 2]
    if wrong:
        raise ValueError(f"the {name} judge must return scores from 0 to 2, got {wrong[0]}")
    return scores


@final
@dataclass(frozen=True)
class Keywords:
    """Counts the concept's words, without regard to case: 2 for `enough` different ones, 1 for fewer, 0 for none."""

    words: tuple[str, ...]
    enough: int = 1

    def __post_init__(self) -> None:
        if isinstance(self.words, str) or not self.words or not 1 <= self.enough <= len(self.words):
            raise ValueError(
                f"Keywords needs a tuple of words and 1 <= enough <= their number, got {self.words!r}, {self.enough}"
            )

    def __call__(self, prompts: Sequence[str], texts: Sequence[str]) -> list[float]:
        return [self._score(text) for text in texts]

    def _score(self, text: str) -> float:
        # Not \b, which finds no boundary after a word that ends in a sign, such as "C++".
        n = sum(bool(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE)) for word in self.words)
        return 2.0 if n >= self.enough else 1.0 if n else 0.0


@final
class Fluency:
    """Perplexity under the base: 2 up to what is usual for the base's own texts, 1 up to the square of that, 0 beyond.

    In nats per token: usual is the 95th percentile over natural texts. An empty text scores 0.
    """

    def __init__(self, bridge: TransformerBridge, natural: Sequence[tuple[str, str]]) -> None:
        """Measures what is usual.

        Args:
            bridge: the base.
            natural: (prompt, text) pairs that read as they should, such as texts sampled from the
                base.

        Raises:
            ValueError: If there are fewer than two natural texts that are not empty.
        """
        kept = [(prompt, text) for prompt, text in natural if text]
        if len(kept) < 2:
            raise ValueError(f"Fluency needs at least two natural texts that are not empty, got {len(kept)}")
        self.bridge = bridge
        self.usual = float(nats_per_token(bridge, kept).quantile(0.95))

    def __call__(self, prompts: Sequence[str], texts: Sequence[str]) -> list[float]:
        scores = [0.0] * len(texts)
        rows = [row for row, text in enumerate(texts) if text]
        if rows:
            nats = nats_per_token(self.bridge, [(prompts[row], texts[row]) for row in rows]).tolist()
            for row, value in zip(rows, nats, strict=True):
                # Twice the nats are the square of the perplexity.
                scores[row] = 2.0 if value <= self.usual else 1.0 if value <= 2 * self.usual else 0.0
        return scores


@torch.no_grad()
def nats_per_token(
    bridge: TransformerBridge, texts: Sequence[tuple[str, str]], *, batch_size: int = 64
) -> Float[Tensor, " n"]:
    """Computes the log of the perplexity of each completion under the unedited model.

    Args:
        bridge: the model.
        texts: (prompt, completion) pairs.
        batch_size: texts in one run.

    Raises:
        ValueError: If there are no texts.
    """
    if not texts:
        raise ValueError("nats_per_token needs at least one (prompt, completion) pair, got none")
    found = []
    for start in range(0, len(texts), batch_size):
        prompts, completions = zip(*texts[start : start + batch_size], strict=True)
        batch = encode(bridge, prompts, completions)
        where = predictions(batch)
        logits = run_cone(bridge, hold(bridge, batch, [], wanted=where), [], logits_at=where)
        labels = batch.labels[batch.labels != IGNORE]
        loss = torch.nn.functional.cross_entropy(logits.float(), labels, reduction="none")
        total = loss.new_zeros(len(prompts)).index_add(0, where.nonzero()[:, 0], loss)
        found.append((total / where.sum(1)).cpu())
    return torch.cat(found)
