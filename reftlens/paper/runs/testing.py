"""Tests a trained edit on a task, your own examples, or prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from reftlens.data import Prompt
from reftlens.edit.generate import generate
from reftlens.paper.runs.config import RunConfig
from reftlens.paper.runs.examples import eval_tasks, records_of_test, training_records, training_task
from reftlens.paper.runs.folder import config_of, is_run, open_run
from reftlens.paper.tasks import TASKS, Task, TextTask, evaluate
from reftlens.paper.tasks.own import Pairs
from reftlens.results import Evaluation


def score_run(
    directory: Path,
    settings: Mapping[str, Any],
    *,
    base: bool = False,
    model: str | None = None,
    progress: bool = True,
) -> list[Evaluation]:
    """Tests the edit of a run, or a saved edit.

    Args:
        directory: the folder of the run or of the edit.
        settings: values by name that replace the run's, such as tasks, split and decoding.
        base: test the base without the edit.
        model: the base, if its location has changed.
        progress: show progress bars.

    Raises:
        ValueError: If there is nothing to test on, or the settings do not fit.
    """
    config = config_of(directory, model=model).with_values(settings)
    tests = eval_tasks(config)
    if not tests:
        raise ValueError(f"{directory} has no test data: pass --task or --data")
    _require_head(directory, config, tests)
    # Load these before the model, so that missing data shows at once.
    loaded = [(task, records_of_test(task, config)) for task in tests]
    opened = open_run(directory, settings, model=model)
    return [
        evaluate(
            opened.bridge,
            None if base else opened.reft,
            task,
            records,
            objective=opened.objective,
            batch_size=config.eval_batch_size,
            progress=progress,
        )
        for task, records in loaded
    ]


def _require_head(directory: Path, config: RunConfig, tests: Sequence[Task]) -> None:
    """Refuses tests that the head was not trained for, and tasks with labels if there is no head."""
    trained = training_task(config).name if is_run(directory) else None
    for task in tests:
        if not isinstance(task, TextTask) and trained != task.name:
            has = "has no head" if trained is None else f"has a head for {trained}"
            raise ValueError(f"{task.name} needs a head that was trained on it, but {directory} {has}")


def answer(
    directory: Path,
    prompts: Sequence[Prompt],
    settings: Mapping[str, Any],
    *,
    base: bool = False,
    model: str | None = None,
    progress: bool = True,
) -> list[dict[str, Any]]:
    """Continues prompts under an edit.

    Args:
        directory: the folder of the run or of the edit.
        prompts: texts, exactly as given to the model, or conversations.
        settings: values by name that replace the run's.
        base: also generate with the base.
        model: the base, if its location has changed.
        progress: show a progress bar.

    Returns:
        For each prompt: "prompt", "completion", and "base" if requested.
    """
    config = config_of(directory, model=model).with_values(settings)
    if not is_run(directory):
        # The task of a bare edit is unknown here, so only the decoding settings apply.
        config = config.with_values({"data": str(directory)})
    task = training_task(config)
    if not isinstance(task, TextTask):
        raise ValueError(
            f"{directory} was trained on {task.name}, whose answers come from a head and not from text: use `reftlens eval`"
        )
    opened = open_run(directory, settings, model=model)
    columns: dict[str, list[Any]] = {"prompt": list(prompts)}
    for name, reft in {"completion": opened.reft, **({"base": None} if base else {})}.items():
        columns[name] = generate(
            opened.bridge,
            reft,
            prompts,
            decoding=task.decoding,
            batch_size=config.eval_batch_size,
            progress=progress,
        )
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def training_pairs(config: RunConfig) -> list[tuple[Prompt, str]]:
    """Returns the training data of a run as prompts and completions.

    Raises:
        ValueError: If it was trained on labels.
    """
    task = training_task(config)
    if not isinstance(task, TextTask):
        raise ValueError(
            f"the run was trained on {task.name}, which has labels instead of completions: pass --examples"
        )
    records, _ = training_records(config)
    return [(record.prompt, record.completion) for record in records]


def pairs_in(file: Path, config: RunConfig | None = None) -> list[tuple[Prompt, str]]:
    """Returns prompts and completions from a file of your own, in any of the layouts of `data.layouts`.

    Args:
        file: JSON, JSON Lines, CSV, Parquet, or a folder of `datasets`.
        config: the settings of the run, which may name the fields.

    Raises:
        ValueError: If a record is malformed. The message names it.
        OSError: If the file cannot be read.
    """
    own = Pairs(str(file))
    if config is not None:
        own = replace(own, prompt_field=config.prompt_field, completion_field=config.completion_field)
    return [(record.prompt, record.completion) for record in own.load("train")]


def scores(evaluations: Sequence[Evaluation]) -> pd.DataFrame:
    """Returns one row per tested task."""
    lines = [(found.task, found.metric, found.score, found.n) for found in evaluations]
    return pd.DataFrame(lines, columns=["task", "metric", "score", "n"])


def write_outputs(folder: Path, evaluations: Sequence[Evaluation]) -> None:
    """Writes one JSON Lines file per task, with the output on each example."""
    for found in evaluations:
        # Own data are named by their path, which is no file name.
        found.save(folder / f"{found.task if found.task in TASKS else 'own'}.jsonl")
