"""What a run trains and tests on: tasks by name with the run's own decoding, and examples cut to a length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

from transformer_lens.model_bridge import TransformerBridge

from reftlens.data import token_counts
from reftlens.objectives.base import Example
from reftlens.runs.config import RunConfig
from reftlens.tasks import Record, Task, TextTask, task_named
from reftlens.tasks.glue import Glue
from reftlens.tasks.own import Pairs

_DECODING = (
    "max_new_tokens",
    "num_beams",
    "temperature",
    "top_p",
    "top_k",
    "no_repeat_ngram_size",
    "repetition_penalty",
)
"""Settings of a run that a task has as well."""


def training_task(config: RunConfig) -> Task:
    """What a run learns.

    Raises:
        ValueError: if the settings name nothing, or a task that does not exist.
    """
    if config.task is None and config.data is None:
        raise ValueError("there is nothing to train on: name a task, or data of your own")
    return _as_configured(task_named(config.task) if config.task is not None else Pairs(str(config.data)), config)


def eval_tasks(config: RunConfig) -> list[Task]:
    """What a run is tested on."""
    own = [] if config.eval_data is None else [Pairs(config.eval_data)]
    return [_as_configured(task, config) for task in (*map(task_named, config.eval_tasks), *own)]


def _as_configured(task: Task, config: RunConfig) -> Task:
    """A task with what the run says of decoding, or of the length of classified texts."""
    if isinstance(task, Glue):
        return task if config.max_length is None else replace(task, max_length=config.max_length)
    if isinstance(task, TextTask):
        given = {name: getattr(config, name) for name in _DECODING if getattr(config, name) is not None}
        return replace(task, decoding=replace(task.decoding, **given))
    return task


def load(task: Task, split: str, config: RunConfig, *, limit: int | None) -> list[Record]:
    """The records of a task; your own come from their file, the others from the run's source."""
    source = None if isinstance(task, Pairs) else _place(config.source)
    return task.load(split, source=source, limit=limit)


def _place(source: str | None) -> str | Path | None:
    return Path(source) if source is not None and Path(source).exists() else source


@final
@dataclass(frozen=True)
class Cut:
    """Examples of which none is too long."""

    examples: list[Example]
    shortened: int
    """Examples that lost their end."""
    dropped: int
    """Examples of which nothing to learn was left."""


def cut(bridge: TransformerBridge, examples: Sequence[Example], max_length: int | None) -> Cut:
    """Cuts completions so that prompt and completion have so many tokens, as the reference's tokenizer does.

    Args:
        bridge: counts tokens, BOS among them.
        examples: (prompt, completion); what has a label instead was cut by its task, and stays.
        max_length: tokens, at most; None leaves everything as it is.

    Raises:
        ValueError: if nothing is left.
    """
    if max_length is None or not isinstance(examples[0][-1], str):
        return Cut(list(examples), 0, 0)
    kept: list[Example] = []
    shortened = 0
    counts = token_counts(bridge, [prompt for prompt, _ in examples])
    for (prompt, completion), count in zip(examples, counts, strict=True):
        started = _start(bridge, completion, max_length - count)
        if started:
            kept.append((prompt, started))
            shortened += started != completion
    if not kept:
        raise ValueError(f"no prompt has less than {max_length} tokens, and nothing to learn is left: raise max_length")
    return Cut(kept, shortened, len(examples) - len(kept))


def _start(bridge: TransformerBridge, text: str, limit: int) -> str:
    """As much of a text as has `limit` tokens, at most."""
    while text and token_counts(bridge, [text], prepend_bos=False)[0] > limit:
        if limit < 1:
            return ""
        if not bridge.tokenizer.is_fast:
            raise ValueError("max_length wants a tokenizer that says where its tokens are (a fast one): leave it out")
        tokens = bridge.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        text = text[: tokens["offset_mapping"][limit - 1][1]]
    return text
