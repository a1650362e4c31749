"""Base class of tasks: loads records, makes training examples, collects the model's outputs and scores them.

A trained edit, the base model (`reft=None`) and any other modified bridge use the same records,
objective and scorer, so that the numbers in one table are comparable.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, final

from transformer_lens.model_bridge import TransformerBridge

from reftlens.arguments import warn
from reftlens.data import Prompt, completion_tokens, token_counts, written
from reftlens.data.tokens import shortened
from reftlens.edit.generate import Decoding, generate
from reftlens.edit.reft import Reft
from reftlens.numbers import require_whole_number
from reftlens.results import Evaluation
from reftlens.training.objectives import Completion, Objective
from reftlens.training.objectives.base import Example

GREEDY = Decoding()
Family = Literal["commonsense", "arithmetic", "instruct", "glue", "own"]


@final
@dataclass(frozen=True)
class Record:
    """One example of a task, in the form given to the model."""

    prompt: Prompt
    """The text before the model's output, or a conversation. In GLUE: the text to classify, or the first of a pair."""
    completion: str
    """The target text, without EOS; empty if the target is a label, or the file has none."""
    answer: str
    """The answer that the scorer compares with. In GLUE: the label, or the real number, as text."""
    second: str | None = None
    """The second text of a pair, which the model's tokenizer joins to the first; None if there is only one text."""


@dataclass(frozen=True)
class Task(ABC):
    """One benchmark, or one training set. Settings are fields: `dataclasses.replace(task, ...)` gives another one."""

    family: ClassVar[Family]
    name: str
    """The name in the paper's tables."""

    @property
    @abstractmethod
    def metric(self) -> str:
        """Name of the score: "accuracy", "Matthews correlation", ..."""

    @abstractmethod
    def load(self, split: str, *, source: str | Path | None = None, limit: int | None = None) -> list[Record]:
        """Loads the records of a split, in order.

        Args:
            split: such as "train" or "test"; the available splits depend on the task.
            source: a local file, or a folder of tasks with `<task>/<split>.json`. The default is
                the task's published data.
            limit: number of records to load, from the first; all by default.

        Raises:
            ValueError: If the task has no such split, or a record is malformed. The message names
                file, line and fault.
            FileNotFoundError: If a local source does not exist.
        """

    @abstractmethod
    def examples(self, bridge: TransformerBridge, records: Sequence[Record]) -> list[Example]:
        """Converts records to examples for `rl.train` with this task's objective.

        Raises:
            ValueError: If a record has no target.
        """

    @abstractmethod
    def objective(self, bridge: TransformerBridge) -> Objective:
        """Creates a new objective. If it has a head, that is trained with the edit, and `outputs` needs it."""

    @abstractmethod
    def outputs(
        self,
        bridge: TransformerBridge,
        reft: Reft | None,
        records: Sequence[Record],
        *,
        objective: Objective | None = None,
        batch_size: int = 16,
        progress: bool = True,
    ) -> list[str]:
        """Returns the model's output on each record, or the label it chooses, as text.

        Args:
            bridge: the model.
            reft: the edit; None for the base.
            records: records from `load`.
            objective: the trained objective, if it has a head.
            batch_size: number of records in one run, of similar length.
            progress: show a progress bar.
        """

    @abstractmethod
    def score(self, outputs: Sequence[str], records: Sequence[Record]) -> Evaluation:
        """Compares new or stored outputs with the records' answers.

        Raises:
            ValueError: If there are no records, or the number of outputs differs.
        """


@dataclass(frozen=True)
class TextTask(Task):
    """A task that is answered in text: trained on completions, evaluated by decoding.

    Prompt and target have the tokens of the joint text, as in the reference implementation, which
    splits them after the prompt's number of tokens. If the two merge into other tokens, the prompt
    keeps its own tokens here, so that training and decoding start from the same prompt. A target
    ends with the tokenizer's EOS, at which decoding stops; in a conversation it ends as the
    template ends it.
    """

    decoding: Decoding = GREEDY
    """Decoding of the answers; by default greedy with at most 32 tokens."""
    max_length: int | None = 512
    """Maximum number of prompt and target tokens in training. Longer records lose their end and
    EOS, as in the reference, and a warning counts them. None means no limit.
    """

    def __post_init__(self) -> None:
        if self.max_length is not None:
            require_whole_number("max_length", self.max_length, least=1)

    @final
    def examples(self, bridge: TransformerBridge, records: Sequence[Record]) -> list[Example]:
        for number, record in enumerate(records):
            if not record.completion:
                raise ValueError(
                    f"record {number} of {self.name} has no text to train on: {written(record.prompt)[:60]!r}"
                )
        prompts = [record.prompt for record in records]
        end = bridge.tokenizer.eos_token
        if end is None and any(isinstance(prompt, str) for prompt in prompts):
            raise ValueError(
                f"the targets of {self.name} end with EOS, but this tokenizer has no EOS token: set tokenizer.eos_token"
            )
        # A conversation's template ends the turn itself.
        targets = [record.completion + end * isinstance(record.prompt, str) for record in records]
        if self.max_length is not None and records:
            targets = self._cut(bridge, prompts, targets, self.max_length)
        return list(zip(prompts, targets, strict=True))

    @final
    def _cut(
        self, bridge: TransformerBridge, prompts: Sequence[Prompt], targets: Sequence[str], max_length: int
    ) -> list[str]:
        """Returns the targets, cut to the available length."""
        n_prompts = token_counts(bridge, prompts)
        tails = completion_tokens(bridge, prompts, targets)
        kept = list(targets)
        too_long = [row for row in range(len(kept)) if n_prompts[row] + len(tails[row]) > max_length]
        for row in too_long:
            room = max_length - n_prompts[row]
            if room < 1:
                raise ValueError(
                    f"record {row} of {self.name}: the prompt has {n_prompts[row]} tokens, so max_length={max_length} leaves no "
                    "target to train on: raise max_length, or leave the record out"
                )
            prompt = prompts[row]
            if not isinstance(prompt, str):
                raise ValueError(
                    f"record {row} of {self.name} is a conversation of more than {max_length} tokens, and conversations cannot "
                    "be cut: raise max_length, or leave the record out"
                )
            kept[row] = shortened(bridge, prompt, kept[row], room)
        if too_long:
            warn(
                f"{len(too_long)} of {len(kept)} records of {self.name} are longer than {max_length} tokens, so their targets "
                "lose their ends and EOS (max_length=None keeps them)"
            )
        return kept

    @final
    def objective(self, bridge: TransformerBridge) -> Objective:
        return Completion()

    @final
    def outputs(
        self,
        bridge: TransformerBridge,
        reft: Reft | None,
        records: Sequence[Record],
        *,
        objective: Objective | None = None,
        batch_size: int = 16,
        progress: bool = True,
    ) -> list[str]:
        prompts = [record.prompt for record in records]
        decoding = self.decoding_for(bridge, records)
        return generate(bridge, reft, prompts, decoding=decoding, batch_size=batch_size, progress=progress)

    def decoding_for(self, bridge: TransformerBridge, records: Sequence[Record]) -> Decoding:
        """Returns the decoding of these records' outputs.

        Args:
            bridge: gives the tokenizer.
            records: the records.
        """
        return self.decoding


def evaluate(
    bridge: TransformerBridge,
    reft: Reft | None,
    task: Task,
    records: Sequence[Record],
    *,
    objective: Objective | None = None,
    batch_size: int = 16,
    progress: bool = True,
) -> Evaluation:
    """Runs the model on the records of a task and scores its outputs; see `Task.outputs` and `Task.score`."""
    outputs = task.outputs(bridge, reft, records, objective=objective, batch_size=batch_size, progress=progress)
    return task.score(outputs, records)
