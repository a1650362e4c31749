"""Compares methods on the model, task, tests, positions and budget in a run's settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace

from reftlens.paper.baselines.base import Method
from reftlens.paper.baselines.compare import compare
from reftlens.paper.baselines.edits import EditAt
from reftlens.paper.baselines.methods import METHODS
from reftlens.paper.baselines.problem import of_task
from reftlens.paper.runs.config import RunConfig
from reftlens.paper.runs.examples import eval_tasks, load, training_task
from reftlens.paper.runs.folder import load_base
from reftlens.paper.runs.parameters import method_named
from reftlens.results import Comparison
from reftlens.training.train import TrainConfig


def compare_configured(
    config: RunConfig, names: Sequence[str], *, seeds: Sequence[int] = (0, 1, 2), progress: bool = True
) -> Comparison:
    """Trains a run's own edit and named methods, and tests them on the run's tests.

    Methods that are edits use the run's layers, positions and rank.

    Args:
        config: the run's settings. Its seed is ignored. The final state is tested, not the best on validation.
        names: names from `METHODS`.
        seeds: one per run of a method.
        progress: show a progress bar.

    Raises:
        ValueError: If a method is unknown, there is no test, or `compare` refuses the settings.
        OSError: If data cannot be read.
    """
    unknown = [name for name in names if name not in METHODS]
    if unknown:
        raise ValueError(f"Unknown method {unknown[0]!r}. Choose from: {', '.join(METHODS)}")
    tests = [(test, load(test, config.eval_split, config, limit=config.n_eval)) for test in eval_tasks(config)]
    if not tests:
        raise ValueError("the run has no test data: set eval_tasks or eval_data")
    task = training_task(config)
    train = load(task, config.split, config, limit=config.n_train)
    config = config.for_examples(len(train))
    bridge = load_base(config)
    problem = of_task(bridge, task, train, tests, batch_size=config.eval_batch_size)
    return compare(bridge, problem, _methods(config, names), _settings(config, progress), seeds=seeds)


def _methods(config: RunConfig, names: Sequence[str]) -> dict[str, Method]:
    own = EditAt(intervention=method_named(config.method), rank=config.rank)
    chosen: dict[str, Method] = {f"{config.method} (of the run)": own, **{name: METHODS[name] for name in names}}
    return {name: _placed(method, config) if isinstance(method, EditAt) else method for name, method in chosen.items()}


def _placed(method: EditAt, config: RunConfig) -> EditAt:
    return replace(
        method,
        layers=config.layers,
        positions=config.positions,
        tied=config.tied,
        hook=config.hook,
        # None belongs to a class without a rank.
        rank=None if method.rank is None else config.rank or method.rank,
    )


def _settings(config: RunConfig, progress: bool) -> TrainConfig:
    """Copies the fields that both settings have, without checkpoints."""
    shared = {field.name for field in fields(TrainConfig)} & {field.name for field in fields(RunConfig)}
    return TrainConfig(
        **{name: getattr(config, name) for name in shared - {"save_every", "report_to"}}, progress=progress
    )
