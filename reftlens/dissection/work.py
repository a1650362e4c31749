"""What the parts of a dissection share: examples sorted into wanted and kept, their batches, and the results so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, final

import torch
from jaxtyping import Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from reftlens.analysis.metrics import Metric, token_difference
from reftlens.bridge import each, side_for_ends
from reftlens.cone.answers import Answers, next_token_logprobs
from reftlens.data import Batch, as_batches, first_tokens, token_counts
from reftlens.dissection.config import DissectConfig
from reftlens.edit.reft import Reft
from reftlens.results import Operator

Examples = Sequence[tuple[str, str]]


@final
@dataclass
class Work:
    """One dissection while it runs."""

    bridge: TransformerBridge
    reft: Reft
    examples: Examples
    """Those that are measured."""
    training: Examples
    """All that were given, with which edits are retrained."""
    config: DissectConfig
    unaffected: Examples = ()
    """Further examples that the edit should leave alone, only for the part "else"."""
    left_out: list[tuple[str, str]] = field(default_factory=list)
    notes: list[tuple[str, str]] = field(default_factory=list)
    seconds: list[tuple[str, float]] = field(default_factory=list)
    found: dict[str, Any] = field(default_factory=dict)
    """Results of the parts that have run, by field of `Found`."""

    def __post_init__(self) -> None:
        prompts = [prompt for prompt, _ in self.examples]
        side = side_for_ends(self.bridge)
        self.batches = as_batches(self.bridge, prompts, batch_size=self.config.batch_size, padding_side=side)
        # With the edits, so that the shared base runs begin where the edits do.
        said = torch.cat(list(each(self.bridge, self._said, self.batches)))
        answers = self._answers(self.examples)
        self.right = (said == answers).tolist()
        """Whether the base answers each example as wanted."""
        self.wanted = [pair for pair, known in zip(self.examples, self.right, strict=True) if not known]
        self.kept = [pair for pair, known in zip(self.examples, self.right, strict=True) if known]
        # Only rows of `wanted`, in its order, because `mapped` takes them by place in it.
        self._tokens = torch.stack([answers, said], dim=1)[said != answers]

    def _said(self, batch: Batch) -> Int[Tensor, " n"]:
        """Returns the base's answers to a batch."""
        return Answers(self.bridge, batch, self.reft.edits(batch)).logprobs().argmax(-1)

    def _answers(self, examples: Examples) -> Int[Tensor, " n"]:
        """Returns the first token of each example's answer, on the CPU, as log-probabilities are."""
        return first_tokens(self.bridge, *zip(*examples, strict=True)).cpu()

    @cached_property
    def should_stay(self) -> list[tuple[str, str]]:
        """The examples that the edit should leave alone: those that the base answers as given."""
        if not self.unaffected:
            return self.kept
        prompts = [prompt for prompt, _ in self.unaffected]
        batches = as_batches(self.bridge, prompts, batch_size=self.config.batch_size)
        said = torch.cat(
            list(each(self.bridge, lambda batch: next_token_logprobs(self.bridge, batch).argmax(-1), batches))
        )
        right = (said == self._answers(self.unaffected)).tolist()
        return [*self.kept, *(pair for pair, known in zip(self.unaffected, right, strict=True) if known)]

    @property
    def operators(self) -> tuple[Operator, ...]:
        """The edit's directions, from the part of this name; none if it was left out."""
        return self.found.get("operators", ())

    @cached_property
    def mapped(self) -> tuple[list[str], Metric]:
        """Prompts of one length that the edit should change, and the metric of its effect on them.

        The metric is the logit of the wanted answer minus that of the base's answer.

        Raises:
            ValueError: If the base already answers every example as wanted.
        """
        if not self.wanted:
            raise ValueError("the base already answers every example as wanted, so there is no effect to locate")
        prompts = [prompt for prompt, _ in self.wanted]
        lengths = token_counts(self.bridge, prompts)
        # The shorter of two that are equally common.
        commonest = max(lengths, key=lambda length: (lengths.count(length), -length))
        rows = [row for row, length in enumerate(lengths) if length == commonest][: self.config.n_mapped]
        self.notes.append(
            (
                "maps over tokens",
                f"{len(rows)} of {len(prompts)} prompts that the edit should change, of {commonest} tokens each",
            )
        )
        tokens: Int[Tensor, "row 2"] = self._tokens[rows]
        return [prompts[row] for row in rows], token_difference(tokens[:, 0], tokens[:, 1])

    def rank(self, operator: Operator) -> int:
        """Counts the directions that an edit actually uses."""
        return max(1, min(round(operator.effective_rank), len(operator.write)))
