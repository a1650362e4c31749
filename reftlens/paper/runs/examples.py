"""Training and test tasks of a run by name, with the run's own lengths and decoding, and their records."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from reftlens.paper.runs.config import RunConfig
from reftlens.paper.tasks import Record, Task, TextTask, task_named
from reftlens.paper.tasks.glue import Glue
from reftlens.paper.tasks.own import Pairs

_DECODING = (
    "max_new_tokens",
    "num_beams",
    "temperature",
    "top_p",
    "top_k",
    "no_repeat_ngram_size",
    "repetition_penalty",
)
"""Settings that a run and a task share."""


def training_task(config: RunConfig) -> Task:
    """Returns the training task of a run.

    Raises:
        ValueError: If the settings name no task, or one that does not exist.
    """
    if config.task is None and config.data is None:
        raise ValueError("the run has no training data: set task or data")
    return _as_configured(
        task_named(config.task) if config.task is not None else _own(str(config.data), config), config
    )


def eval_tasks(config: RunConfig) -> list[Task]:
    """Returns the test tasks of a run."""
    mine = config.data if config.eval_fraction else config.eval_data
    own = [] if mine is None else [_own(mine, config)]
    return [_as_configured(task, config) for task in (*map(task_named, config.eval_tasks), *own)]


def _own(name: str, config: RunConfig) -> Pairs:
    return Pairs(
        name,
        prompt_field=config.prompt_field,
        completion_field=config.completion_field,
        measure=config.metric,
        whole=config.max_new_tokens is None,
    )


def _as_configured(task: Task, config: RunConfig) -> Task:
    """Returns a task with the run's settings of lengths and decoding."""
    decoding = {name: getattr(config, name) for name in _DECODING if getattr(config, name) is not None}
    if isinstance(task, TextTask):
        length = task.max_length if config.max_length is None else config.max_length
        return replace(task, max_length=length, decoding=replace(task.decoding, **decoding))
    if isinstance(task, Glue) and config.max_length is not None:
        return replace(task, max_length=config.max_length)
    return task


def load(task: Task, split: str, config: RunConfig, *, limit: int | None) -> list[Record]:
    """Loads the records of a task: your own from their file, the others from the run's source."""
    # Your own data name their place themselves.
    source = None if isinstance(task, Pairs) else _place(config.source)
    return task.load(split, source=source, limit=limit)


def training_records(config: RunConfig) -> tuple[list[Record], list[Record]]:
    """Loads the records that a run trains on, and those that select its best edit (none by default).

    Raises:
        ValueError: If there are too few to divide.
    """
    task = training_task(config)
    if config.eval_fraction:
        # Divided before the limit, so that the test records are the same for every n_train.
        train = divided(load(task, config.split, config, limit=None), config.eval_fraction)[0][: config.n_train]
    else:
        train = load(task, config.split, config, limit=config.n_train)
    if config.validation_fraction:
        return divided(train, config.validation_fraction)
    if config.validation_split is not None:
        return train, load(task, config.validation_split, config, limit=config.n_eval)
    return train, []


def records_of_test(task: Task, config: RunConfig) -> list[Record]:
    """Loads the records of one of the tests of a run."""
    if config.eval_fraction and isinstance(task, Pairs):
        return divided(load(task, config.split, config, limit=None), config.eval_fraction)[1][: config.n_eval]
    return load(task, config.eval_split, config, limit=config.n_eval)


def divided(records: Sequence[Record], fraction: float) -> tuple[list[Record], list[Record]]:
    """Divides records at random, always in the same way. Records with one prompt stay together, so that no answer leaks.

    Args:
        records: the records.
        fraction: of the prompts, for the second part.

    Returns:
        The rest and the second part, each in the order of the records.

    Raises:
        ValueError: If there are fewer than two prompts.
    """
    names = [(str(record.prompt), record.second) for record in records]
    prompts = list(dict.fromkeys(names))
    if len(prompts) < 2:
        raise ValueError(f"at least 2 different prompts are needed to hold some out, got {len(prompts)}")
    n_out = min(max(round(fraction * len(prompts)), 1), len(prompts) - 1)
    # Not the run's seed: seeds could not be compared on different test records.
    out = set(random.Random(0).sample(prompts, n_out))
    kept: list[Record] = []
    held: list[Record] = []
    for name, record in zip(names, records, strict=True):
        (held if name in out else kept).append(record)
    return kept, held


def _place(source: str | None) -> str | Path | None:
    return Path(source) if source is not None and Path(source).exists() else source
