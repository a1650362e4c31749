"""Base class of objectives: how an example is tokenized, and the loss of a batch under given edits.

The trainer sums the losses of one optimiser step over accumulated batches and processes, and
divides by the summed weights of the examples. So the mean does not depend on how a step is divided
into batches.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, TypeAlias

import pandas as pd
import torch
from datasets import Dataset
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge

from reftlens.bridge import require_causal
from reftlens.cone.hold import Held
from reftlens.data import IGNORE, Batch
from reftlens.data.chat import split_conversation
from reftlens.data.layouts import example_of
from reftlens.data.texts import Message, is_conversation
from reftlens.edit.hooks import Edit
from reftlens.edit.reft import Reft

Example = tuple[Any, ...]
"""The fields of one example, in the order of the objective's `fields`."""


Examples: TypeAlias = Sequence[Example | Sequence[Message] | Mapping[str, Any]] | Dataset | pd.DataFrame
"""What `Objective.read` reads."""


class Objective(nn.Module, ABC):
    """A loss over examples. Parameters of its own, such as a classifier's head, are trained with the edit."""

    fields: ClassVar[dict[str, type]]
    """Field of an example -> its type. Field names are also the column names of a `datasets.Dataset`."""
    unit: ClassVar[str] = "per example"
    """Unit of the loss, shown in logs."""

    def read(
        self, examples: Sequence[Example | Sequence[Message] | Mapping[str, Any]] | Dataset | pd.DataFrame
    ) -> list[Example]:
        """Reads the examples as tuples.

        Args:
            examples: tuples with these fields in order, or a `Dataset` with these columns. If the
                fields are a prompt and a completion, conversations also work (the last turn is the
                completion), and so do dicts, a `Dataset` or a DataFrame in any of the layouts of
                `data.layouts`.

        Raises:
            ValueError: If there are no examples, a column is missing, or an example has other
                fields. The message names the first such example.
        """
        names, types = tuple(self.fields), tuple(self.fields.values())
        pairs = names == ("prompt", "completion")
        if pairs and isinstance(examples, Dataset):
            examples = examples.to_list()
        elif pairs and isinstance(examples, pd.DataFrame):
            examples = examples.to_dict("records")
        elif isinstance(examples, Dataset):
            if set(names) - set(examples.column_names):
                raise ValueError(
                    f"the dataset needs the columns {_listed(names)}, but has {examples.column_names}: rename them"
                )
            examples = list(zip(*(examples[name] for name in names), strict=True))
        found = [_pair(row, one) if pairs else one for row, one in enumerate(examples)]
        if not found:
            raise ValueError("there are no examples to train on")
        for row, example in enumerate(found):
            fits = isinstance(example, tuple | list) and len(example) == len(types)
            if not fits or not all(map(_is, example, types)):
                wanted = ", ".join(f"{name}: {kind.__name__}" for name, kind in self.fields.items())
                raise ValueError(f"example {row} must be a tuple ({wanted}), got {example!r}")
        return [tuple(example) for example in found]

    def check(self, bridge: TransformerBridge) -> None:
        """Raises if the objective does not support the model.

        Args:
            bridge: the base.

        Raises:
            ValueError: If the model is not causal (unless a subclass supports other models).
        """
        require_causal(bridge, "train")

    def bind(self, reft: Reft | None) -> None:
        """Called by `train` with the edit, before examples are read. Objectives that depend on its sites override this.

        Args:
            reft: the edit; None if only something else is trained.

        Raises:
            ValueError: If the objective cannot train this edit.
        """

    @abstractmethod
    def encode(self, bridge: TransformerBridge, example: Example) -> Batch:
        """Encodes one example as rows of tokens: one row, or two for a preference.

        Args:
            bridge: gives the tokenizer.
            example: the values of `fields`.

        Raises:
            ValueError: If the example cannot be encoded.
        """

    @abstractmethod
    def weights(self, batch: Batch) -> Int[Tensor, " examples"]:
        """Returns the weight of each example in the mean: its number of completion tokens, or 1.

        Args:
            batch: the rows of some examples.
        """

    @abstractmethod
    def losses(
        self, bridge: TransformerBridge, held: Held, edits: Sequence[Edit], reference: Tensor | None
    ) -> Float[Tensor, " examples"]:
        """Computes the loss of each example, summed over the units that `weights` counts, in at least float32.

        Args:
            bridge: the base, without edits attached.
            held: the base run of these examples, from `cone.hold`.
            edits: from `reft.edits(held.batch)`.
            reference: the results of `reference` for these examples, concatenated.
        """

    def read_at(self, batch: Batch) -> Bool[Tensor, "batch pos"]:
        """Returns the tokens at which the model's output is read. By default these predict a completion token.

        Args:
            batch: the rows of some examples.
        """
        return predictions(batch)

    def identity(self) -> str:
        """Describes the objective and its settings. A resumed run and cached base runs must have the same description."""
        return f"{type(self).__name__}({self.extra_repr()})"

    def reference(self, bridge: TransformerBridge, held: Held, example: Example) -> Tensor | None:
        """Computes reference values of one example that training does not change. They are computed once, without gradient.

        Args:
            bridge: the base, without edits attached.
            held: the base run of this example.
            example: the values of `fields`.
        """
        return None


def predictions(batch: Batch) -> Bool[Tensor, "batch pos"]:
    """Returns the tokens whose logits predict a completion token: each is one position before it.

    Args:
        batch: rows with completions.
    """
    # A prompt has a token, so column 0 is never a label and nothing rolls round to the end.
    return (batch.labels != IGNORE).roll(-1, dims=1)


def completion_logprobs(logits: Float[Tensor, "n d_vocab"], batch: Batch) -> Float[Tensor, " batch"]:
    """Computes the log-probability of each row's completion in nats, summed over its tokens, in at least float32.

    Args:
        logits: at `predictions(batch)`, in row order.
        batch: the rows.

    Raises:
        ValueError: If the number of logits differs from the number of predicted tokens.
    """
    rows = predictions(batch).nonzero()[:, 0].to(logits.device)
    targets = batch.labels[batch.labels != IGNORE].to(logits.device)
    if logits.shape[:-1] != targets.shape:
        raise ValueError(
            f"logits must have one row for each of the {len(targets)} tokens of predictions(batch), got "
            f"{list(logits.shape)}"
        )
    # Both in row order: prediction i in `rows` is that of label i in `targets`.
    costs = nn.functional.cross_entropy(widened(logits), targets, reduction="none")
    return torch.zeros(len(batch), dtype=costs.dtype, device=logits.device).index_add(0, rows, -costs)


def widened(values: Tensor) -> Tensor:
    """Casts to at least float32, in which losses of half-precision models are computed."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _pair(row: int, example: Any) -> Any:
    """Returns a conversation or a record as prompt and completion; other values as they are."""
    if is_conversation(example):
        return split_conversation(example)
    if not isinstance(example, Mapping):
        return example
    try:
        return example_of(example)
    except ValueError as error:
        raise ValueError(f"example {row}: {error}") from error


def _is(value: Any, kind: type) -> bool:
    """Checks the type of a field. Ints count as floats; bools do not count as numbers."""
    if kind is str and is_conversation(value):
        return True
    kinds = (int, float) if kind is float else (kind,)
    return isinstance(value, kinds) and not (kind in (int, float) and isinstance(value, bool))


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:-1])) + f" and {names[-1]!r}" if len(names) > 1 else repr(names[0])
