"""What every objective is: how an example becomes tokens, and what a batch of them costs under some edits.

The trainer divides the losses of one step of the optimiser, summed over accumulated batches and processes, by the
weights of its examples. So the mean does not depend on how a step was cut into batches.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from datasets import Dataset
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge

from reftlens.bridge import require_causal
from reftlens.cone.hold import Held
from reftlens.data import IGNORE, Batch
from reftlens.data.chat import split_conversation
from reftlens.data.texts import Message, is_conversation
from reftlens.edit.hooks import Edit

Example = tuple[Any, ...]
"""The fields of one example, in the order of the objective's `fields`."""


class Objective(nn.Module, ABC):
    """A loss over examples. Parameters of its own, such as a classifier's head, are trained with the edit."""

    fields: ClassVar[dict[str, type]]
    """Field of an example, which is also the column of a `datasets.Dataset`, -> its type."""
    unit: ClassVar[str] = "per example"
    """Of the loss, for readers of a log."""

    def read(self, examples: Sequence[Example | Sequence[Message]] | Dataset) -> list[Example]:
        """The examples as tuples.

        Args:
            examples: tuples with these fields in order, or a `Dataset` with these columns. Where the fields are a prompt and
                a completion, also conversations, or a `Dataset` of them in "messages": the last turn is the completion.

        Raises:
            ValueError: if there are none, a column is missing, or an example has other fields; it names the first.
        """
        names, types = tuple(self.fields), tuple(self.fields.values())
        pairs = names == ("prompt", "completion")
        if pairs and isinstance(examples, Dataset) and "messages" in examples.column_names:
            examples = list(examples["messages"])
        if isinstance(examples, Dataset):
            if set(names) - set(examples.column_names):
                raise ValueError(
                    f"the dataset needs the columns {_listed(names)}, and has {examples.column_names}: rename them"
                )
            examples = list(zip(*(examples[name] for name in names), strict=True))
        found = [split_conversation(one) if pairs and is_conversation(one) else one for one in examples]
        if not found:
            raise ValueError("there are no examples to train on")
        for row, example in enumerate(found):
            fits = isinstance(example, tuple | list) and len(example) == len(types)
            if not fits or not all(map(_is, example, types)):
                wanted = ", ".join(f"{name}: {kind.__name__}" for name, kind in self.fields.items())
                raise ValueError(f"example {row} must be a tuple ({wanted}), got {example!r}")
        return [tuple(example) for example in found]

    def check(self, bridge: TransformerBridge) -> None:
        """Refuses a model that the objective cannot be computed on.

        Args:
            bridge: the base.

        Raises:
            ValueError: if it is one.
        """
        require_causal(bridge, "train")

    @abstractmethod
    def encode(self, bridge: TransformerBridge, example: Example) -> Batch:
        """The rows that one example consists of: one, or two for a preference.

        Args:
            bridge: gives the tokenizer.
            example: the values of `fields`.

        Raises:
            ValueError: if it cannot be encoded.
        """

    @abstractmethod
    def weights(self, batch: Batch) -> Int[Tensor, " examples"]:
        """What each example's loss counts: its tokens, or 1.

        Args:
            batch: the rows of some examples.
        """

    @abstractmethod
    def losses(
        self, bridge: TransformerBridge, held: Held, edits: Sequence[Edit], reference: Tensor | None
    ) -> Float[Tensor, " examples"]:
        """The loss of each example, summed over what it is weighed by, in float32 at least.

        Args:
            bridge: the base, without edits attached.
            held: the base run of these examples, from `cone.hold`.
            edits: from `reft.edits(held.batch)`.
            reference: what `reference` gave for each example, one after the other.
        """

    def read_at(self, batch: Batch) -> Bool[Tensor, "batch pos"]:
        """Where the model's output is read: tokens that predict a completion token, if not overridden.

        Args:
            batch: the rows of some examples.
        """
        return predictions(batch)

    def identity(self) -> str:
        """The objective and its settings in words: what a resumed run and held base runs must share."""
        return f"{type(self).__name__}({self.extra_repr()})"

    def reference(self, bridge: TransformerBridge, held: Held, example: Example) -> Tensor | None:
        """What one example is compared with and training does not change; made once, without gradient.

        Args:
            bridge: the base, without edits attached.
            held: the base run of this example.
            example: the values of `fields`.
        """
        return None


def predictions(batch: Batch) -> Bool[Tensor, "batch pos"]:
    """The tokens whose logits predict a completion token: each lies one before it.

    Args:
        batch: rows with completions.
    """
    return (batch.labels != IGNORE).roll(-1, dims=1)


def completion_logprobs(logits: Float[Tensor, "n d_vocab"], batch: Batch) -> Float[Tensor, " batch"]:
    """The log-probability of each row's completion, in nats, summed over its tokens, in float32 at least.

    Args:
        logits: at `predictions(batch)`, row after row.
        batch: the rows.

    Raises:
        ValueError: for logits of another number of tokens.
    """
    rows = predictions(batch).nonzero()[:, 0].to(logits.device)
    targets = batch.labels[batch.labels != IGNORE].to(logits.device)
    if logits.shape[:-1] != targets.shape:
        raise ValueError(f"wanted logits of the {len(targets)} tokens of predictions(batch), got {list(logits.shape)}")
    costs = nn.functional.cross_entropy(widened(logits), targets, reduction="none")
    return torch.zeros(len(batch), dtype=costs.dtype, device=logits.device).index_add(0, rows, -costs)


def widened(values: Tensor) -> Tensor:
    """In float32 at least: losses of a model in half precision are computed in it."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _is(value: Any, kind: type) -> bool:
    """Whether it is of a kind: a whole number is a real one, and a truth value is no number."""
    if kind is str and is_conversation(value):
        return True
    kinds = (int, float) if kind is float else (kind,)
    return isinstance(value, kinds) and not (kind in (int, float) and isinstance(value, bool))


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:-1])) + f" and {names[-1]!r}" if len(names) > 1 else repr(names[0])
