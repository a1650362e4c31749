"""Runs an experiment from its settings to its folder: trains an edit, tests it, and writes all results."""

from __future__ import annotations

import json
import os
import platform
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, final

import pandas as pd
import torch
from safetensors.torch import save
from transformer_lens.model_bridge import TransformerBridge

from reftlens.edit import checkpoint
from reftlens.edit.reft import Reft
from reftlens.files.folder import Replacement
from reftlens.files.seal import seal
from reftlens.paper.runs.config import CONFIG_NAME, RunConfig
from reftlens.paper.runs.examples import eval_tasks, records_of_test, training_records, training_task
from reftlens.paper.runs.folder import EDIT_NAME, HEAD_NAME, OUTPUTS_NAME, RESULT_NAME, load_base
from reftlens.paper.runs.parameters import method_named
from reftlens.paper.runs.testing import scores, write_outputs
from reftlens.paper.tasks import Record, Task, evaluate
from reftlens.positions import parse
from reftlens.results import Evaluation
from reftlens.training.checkpoints import IDENTITY_NAME, TrainingFolder
from reftlens.training.loggers import require_logger
from reftlens.training.objectives import Objective
from reftlens.training.objectives.base import Example
from reftlens.training.train import TrainConfig, TrainLog, train


@final
@dataclass(frozen=True, repr=False)
class RunResult:
    """The result of a run."""

    evaluations: tuple[Evaluation, ...]
    log: TrainLog
    n_parameters: int
    """Trained parameters of the edit, without a head."""
    n_head: int
    """Trained parameters of the head, if the task has one."""
    n_examples: int
    """Number of training examples."""
    seconds: Mapping[str, float]
    """Wall-clock time of each part; for a resumed run, since it was resumed."""

    def to_dataframe(self) -> pd.DataFrame:
        """Returns one row per tested task."""
        return scores(self.evaluations)

    def __repr__(self) -> str:
        losses = f"loss {self.log.loss[0]:.3f} -> {self.log.loss[-1]:.3f}"
        steps = f"{len(self.log.loss)} steps on {self.n_examples:,} examples"
        return f"RunResult({self.n_parameters:,} parameters, {steps}, {losses})"

    def to_dict(self) -> dict[str, Any]:
        """Returns the contents of `result.json`."""
        return {
            "scores": scores(self.evaluations).to_dict("records"),
            "parameters": {"edit": self.n_parameters, "head": self.n_head},
            "training": {
                "examples": self.n_examples,
                "steps": len(self.log.loss),
                "first_loss": self.log.loss[0],
                "last_loss": self.log.loss[-1],
                "best_step": self.log.best_step,
            },
            "seconds": {name: round(value, 3) for name, value in self.seconds.items()},
        }


def checkpoints_of(directory: Path) -> Path:
    """Returns the folder of the checkpoints of an unfinished run whose target is `directory`."""
    return directory.with_name(f"{directory.name}.checkpoints")


def train_run(
    config: RunConfig, directory: Path, *, resume: bool = False, overwrite: bool = False, progress: bool = True
) -> RunResult:
    """Trains and tests an edit, and writes the run's folder atomically. Until then checkpoints are kept next to it.

    Args:
        config: the settings.
        directory: the folder.
        resume: resume an interrupted run with these settings.
        overwrite: replace a finished run in the folder.
        progress: show progress bars.

    Raises:
        ValueError: If the settings do not fit each other or the model, data are malformed, or the
            folder is not free.
        OSError: If a file cannot be read or written.
        FloatingPointError: If training diverges.
    """
    directory = directory.absolute()
    checkpoints = _free(directory, resume=resume, overwrite=overwrite)
    config = with_whole_paths(config)
    # Wrong settings are refused before anything is loaded; the number of examples is not known yet.
    settings = _train_config(config.for_examples(1), checkpoints, resume=resume, progress=progress)
    require_logger(config.report_to)
    with Replacement(directory, marker=RESULT_NAME) as folder:
        began = time.perf_counter()
        ready = _prepare(config)
        config = config.for_examples(len(ready.examples))
        settings = _train_config(config, checkpoints, resume=resume, progress=progress)
        loaded = time.perf_counter()
        log = _train(ready, settings, checkpoints, resume=resume)
        trained = time.perf_counter()
        evaluations = [
            evaluate(
                ready.bridge,
                ready.reft,
                task,
                records,
                objective=ready.objective,
                batch_size=config.eval_batch_size,
                progress=progress,
            )
            for task, records in ready.tests
        ]
        result = RunResult(
            evaluations=tuple(evaluations),
            log=log,
            n_parameters=ready.reft.n_parameters(),
            n_head=sum(parameter.numel() for parameter in ready.objective.parameters()),
            n_examples=len(ready.examples),
            seconds={"load": loaded - began, "train": trained - loaded, "test": time.perf_counter() - trained},
        )
        _write(folder, config, ready, result)
    # Only now: until the run's folder is in place, the checkpoints are all there is.
    shutil.rmtree(checkpoints, ignore_errors=True)
    return result


def _free(directory: Path, *, resume: bool, overwrite: bool) -> Path:
    """Returns the folder for checkpoints. Refuses a target folder that is not free."""
    checkpoints = checkpoints_of(directory)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("a run must be a single process: under torchrun, call reftlens.train in a script instead")
    if (directory / RESULT_NAME).is_file() and not overwrite:
        raise ValueError(f"{directory} holds a finished run: choose another folder, or pass --overwrite to replace it")
    if not resume and TrainingFolder(checkpoints).last() is not None:
        raise ValueError(
            f"{checkpoints} holds checkpoints of an interrupted run: pass --resume to continue it, or delete that folder"
        )
    if resume and not checkpoints.exists():
        raise ValueError(f"there is nothing to resume: {checkpoints} does not exist")
    return checkpoints


def _train_config(config: RunConfig, checkpoints: Path, *, resume: bool, progress: bool) -> TrainConfig:
    """Selects the trainer's settings: the fields that both configs have."""
    shared = {field.name for field in fields(TrainConfig)} & {field.name for field in fields(RunConfig)}
    values = {name: getattr(config, name) for name in shared}
    return TrainConfig(**values, output_dir=checkpoints, resume=resume, progress=progress)


def with_whole_paths(config: RunConfig) -> RunConfig:
    """Makes paths absolute, so that the run's saved config works from any directory.

    Args:
        config: the settings.
    """
    named = {name: getattr(config, name) for name in ("model", "data", "eval_data", "source")}
    found = {
        name: str(Path(value).resolve()) for name, value in named.items() if value is not None and Path(value).exists()
    }
    return config.with_values(found)


@final
@dataclass(frozen=True)
class _Ready:
    """All inputs of a run, loaded and checked before the first step."""

    bridge: TransformerBridge
    reft: Reft
    objective: Objective
    examples: list[Example]
    validation: list[Example] | None
    tests: list[tuple[Task, list[Record]]]


def _prepare(config: RunConfig) -> _Ready:
    # Data before the model, and tests before training: what is missing shows at once.
    tests = [(task, records_of_test(task, config)) for task in eval_tasks(config)]
    task = training_task(config)
    kind, positions = method_named(config.method), parse(config.positions)
    records, held_out = training_records(config)
    bridge = load_base(config)
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(config.seed)
        reft = Reft.at_layers(
            bridge,
            layers=config.layers,
            positions=positions,
            intervention=kind,
            rank=config.rank,
            tied=config.tied,
            hook=config.hook,
        )
        objective = task.objective(bridge)
    validation = task.examples(bridge, held_out) if held_out else None
    return _Ready(bridge, reft, objective, task.examples(bridge, records), validation, tests)


def _train(ready: _Ready, settings: TrainConfig, checkpoints: Path, *, resume: bool) -> TrainLog:
    if not resume:
        _remove_if_empty(checkpoints)
    try:
        return train(
            ready.bridge,
            ready.reft,
            ready.examples,
            settings,
            objective=ready.objective,
            validation=ready.validation,
        )
    # An interrupt too: an empty folder would refuse the next run without anything to resume.
    except BaseException:
        _remove_if_empty(checkpoints)
        raise


def _remove_if_empty(checkpoints: Path) -> None:
    """Removes a training folder without checkpoints. An unrelated folder of that name is kept."""
    if (checkpoints / IDENTITY_NAME).is_file() and TrainingFolder(checkpoints).last() is None:
        shutil.rmtree(checkpoints)


def _write(folder: Path, config: RunConfig, ready: _Ready, result: RunResult) -> None:
    versions = {
        **checkpoint.stamp(ready.bridge)["versions"],
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": str(ready.bridge.cfg.device),
    }
    texts = {
        CONFIG_NAME: config.to_toml(),
        "versions.json": json.dumps(versions, indent=2) + "\n",
        "log.jsonl": "".join(f"{json.dumps(line)}\n" for line in _log_lines(result.log)),
        RESULT_NAME: json.dumps(result.to_dict(), indent=2) + "\n",
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    ready.reft.save_pretrained(folder / EDIT_NAME, bridge=ready.bridge)
    head = {name: tensor.detach().cpu().contiguous() for name, tensor in ready.objective.state_dict().items()}
    if head:
        (folder / HEAD_NAME).write_bytes(save(head))
    write_outputs(folder / OUTPUTS_NAME, result.evaluations)
    # Last, because it has the digests of all files.
    seal(folder)


def _log_lines(log: TrainLog) -> list[dict[str, int | float]]:
    """Returns training steps and validation results in chronological order."""
    steps = [
        {"step": step, "loss": loss, "lr": lr} for step, (loss, lr) in enumerate(zip(log.loss, log.lr, strict=True), 1)
    ]
    looks = [{"step": step, "validation_loss": loss} for step, loss in log.validation]
    return sorted([*steps, *looks], key=lambda line: line["step"])
