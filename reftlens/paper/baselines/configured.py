"""Compares methods on the model, task, tests, positions and budget in a run's settings, and searches its settings.

A search sees the training records alone: part of them is held out for validation, and the tests are
not even loaded for it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, final

from transformer_lens.model_bridge import TransformerBridge

from reftlens.data import Given
from reftlens.files.folder import write_whole
from reftlens.paper.baselines.base import Method
from reftlens.paper.baselines.compare import compare
from reftlens.paper.baselines.edits import EditAt
from reftlens.paper.baselines.methods import METHODS
from reftlens.paper.baselines.problem import Problem, of_task
from reftlens.paper.baselines.search import search
from reftlens.paper.baselines.space import Space, default_space, within
from reftlens.paper.runs.config import CONFIG_NAME, RunConfig
from reftlens.paper.runs.examples import eval_tasks, records_of_test, training_records, training_task
from reftlens.paper.runs.folder import load_base
from reftlens.paper.runs.parameters import method_named
from reftlens.results import Comparison, Search
from reftlens.training.objectives.base import Example
from reftlens.training.train import TrainConfig

HELD_OUT = 0.2
"""Fraction of the training prompts for validation, if the settings name none."""
SEARCH_NAME = "search"
"""Folder of the trials in the folder of a search."""


@final
@dataclass(frozen=True)
class Tuning:
    """How the settings of each method are searched."""

    n_trials: int = 20
    """Trials of each method."""
    space: Space | None = None
    """What is searched; rate, rank, layers and positions by default, as far as a method has them."""
    seed: int = 0
    """Of the proposals."""
    folder: Path | None = None
    """Where the trials are kept. None keeps none."""
    resume: bool = False
    """Whether to continue the trials in that folder."""


def compare_configured(
    config: RunConfig,
    names: Sequence[str],
    *,
    seeds: Sequence[int] = (0, 1, 2),
    tuning: Tuning | None = None,
    kept: Given | None = None,
    kl: float | None = None,
    progress: bool = True,
) -> Comparison:
    """Trains a run's own edit and named methods, and tests them on the run's tests.

    Methods that are edits use the run's layers, positions and rank.

    Args:
        config: the run's settings. Its seed is ignored. The final state is tested, not the best on
            validation.
        names: names from `METHODS`.
        seeds: one per run of a method.
        tuning: first search the settings of each method on validation records, with the same number
            of trials. The chosen settings are then trained on all training records. None uses the
            settings as they are.
        kept: prompts whose answers should not change, to compare at equal side effect. Trials of a
            search are not scaled.
        kl: nats of mean KL on them, as for `compare`.
        progress: show a progress bar.

    Raises:
        ValueError: If a method is unknown, there is no test, or `compare` or the search refuses the
            settings.
        OSError: If data cannot be read.
    """
    methods = _methods(config, names)
    if not eval_tasks(config):
        raise ValueError("the run has no test data: set eval_tasks, eval_data or eval_fraction")
    task = training_task(config)
    train, _ = training_records(config)
    config = config.for_examples(len(train))
    bridge = load_base(config)
    settings = _settings(config, progress)
    chosen: dict[str, dict[str, Any]] = {}
    if tuning is not None:
        chosen = _tune(bridge, config, methods, settings, tuning, progress)
    tests = [(test, records_of_test(test, config)) for test in eval_tasks(config)]
    problem = of_task(bridge, task, train, tests, batch_size=config.eval_batch_size)
    tuned = {name: replace(method, **chosen.get(name, {})) for name, method in methods.items()}
    found = compare(bridge, problem, tuned, settings, seeds=seeds, kept=kept, kl=kl)
    return replace(found, trials=0 if tuning is None else tuning.n_trials, tuned=chosen)


def sweep(config: RunConfig, tuning: Tuning = Tuning(), *, progress: bool = True) -> tuple[Search, RunConfig]:
    """Searches the settings of a run.

    Each trial is the run itself, trained without the validation records and scored on them by the
    run's metric.

    Args:
        config: the run's settings. Its tests are not used.
        tuning: what is searched, for how long, and where the trials are kept. The folder also gets
            the best settings.
        progress: show a progress bar.

    Returns:
        All trials, and the run's settings with those of the best trial. They train on all records
        again.

    Raises:
        ValueError: If the settings do not fit, no trial finished, or the folder is not free.
        OSError: If a file cannot be read or written.
    """
    # Before the model is loaded, so that an occupied folder is refused at once.
    so_far = _so_far(tuning)
    train, held_out = _divided(config)
    bridge = load_base(config)
    problem, validation = _of_validation(bridge, config, train, held_out)
    if "length" in (tuning.space or {}):
        raise ValueError("length is a setting of prefix tuning, and a run trains an edit: leave it out")
    own = {field.name: getattr(config, field.name) for field in fields(config)}
    space = within(tuning.space or default_space(bridge.cfg.n_layers, bridge.cfg.d_model), own)

    def build(settings: Mapping[str, Any]) -> tuple[Method, TrainConfig]:
        of_trial = config.with_values(settings).for_examples(len(train))
        # A run without validation keeps its last edit, so that is what its trials are scored on.
        return _own(of_trial), replace(_settings(of_trial, progress), keep_best=_selects(config))

    def keep(found: Search) -> None:
        if tuning.folder is not None:
            found.save(tuning.folder / SEARCH_NAME)
            if found.best is not None:
                write_whole(tuning.folder / CONFIG_NAME, config.with_values(found.best.settings).to_toml().encode())

    found = search(
        bridge,
        problem,
        validation,
        build,
        space,
        name=config.method,
        n_trials=tuning.n_trials,
        seed=tuning.seed,
        own=own,
        about={"settings": config.to_toml(), "data": _digest([*train, *held_out])},
        so_far=so_far,
        keep=keep,
        progress=progress,
    )
    return found, config.with_values(_best(found))


def _tune(
    bridge: TransformerBridge,
    config: RunConfig,
    methods: Mapping[str, Method],
    settings: TrainConfig,
    tuning: Tuning,
    progress: bool,
) -> dict[str, dict[str, Any]]:
    """Searches the settings of each method, with the same number of trials on the same examples."""
    train, held_out = _divided(config)
    problem, validation = _of_validation(bridge, config, train, held_out)
    space = tuning.space or default_space(bridge.cfg.n_layers, bridge.cfg.d_model)
    known = {field.name for method in methods.values() for field in fields(method)}
    # The default space has settings of methods that may not be compared here.
    unknown = set(tuning.space or ()) - known
    if unknown:
        raise ValueError(f"no method here has the setting {min(unknown)}: choose from {', '.join(sorted(known))}")
    about = {"settings": config.to_toml(), "data": _digest([*train, *held_out])}
    chosen = {}
    for name, method in methods.items():
        folder = None if tuning.folder is None else tuning.folder / re.sub(r"\W+", "-", name).strip("-")
        place = replace(tuning, folder=folder, resume=tuning.resume and folder is not None and folder.exists())

        own = {**_plain(method), "lr": method.lr or settings.lr}

        def build(values: Mapping[str, Any], method: Method = method) -> tuple[Method, TrainConfig]:
            return replace(method, **values), settings

        def keep(found: Search, folder: Path | None = folder) -> None:
            if folder is not None:
                found.save(folder / SEARCH_NAME)

        found = search(
            bridge,
            problem,
            validation,
            build,
            within(space, own),
            name=name,
            n_trials=tuning.n_trials,
            seed=tuning.seed,
            own=own,
            about=about,
            so_far=_so_far(place),
            keep=keep,
            progress=progress,
        )
        chosen[name] = _best(found)
    return chosen


def _plain(method: Method) -> dict[str, Any]:
    """The settings of a method as a space writes them."""
    values = {field.name: getattr(method, field.name) for field in fields(method)}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def _so_far(tuning: Tuning) -> Search | None:
    """The trials in a folder, which must be there or not be there."""
    if tuning.folder is None:
        return None
    folder, there = tuning.folder, (tuning.folder / SEARCH_NAME).is_dir()
    if there and not tuning.resume:
        raise ValueError(f"{folder} holds a search: pass --resume to continue it, or choose another folder")
    if not there and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is not empty and holds no search: choose another folder")
    if tuning.resume and not there:
        raise ValueError(f"there is no search to continue in {folder}")
    if not there:
        folder.mkdir(parents=True, exist_ok=True)
        return None
    return Search.load(folder / SEARCH_NAME)


def _selects(config: RunConfig) -> bool:
    """Whether a run itself keeps the best edit on validation records."""
    return bool(config.validation_fraction or config.validation_split)


def _divided(config: RunConfig) -> tuple[list[Any], list[Any]]:
    """Training and validation records, never those of the tests."""
    return training_records(config if _selects(config) else config.with_values({"validation_fraction": HELD_OUT}))


def _of_validation(
    bridge: TransformerBridge, config: RunConfig, train: list[Any], held_out: list[Any]
) -> tuple[Problem, list[Example]]:
    task = training_task(config)
    problem = of_task(bridge, task, train, [(task, held_out)], batch_size=config.eval_batch_size)
    return problem, task.examples(bridge, held_out)


def _digest(records: Sequence[object]) -> str:
    return hashlib.sha256("\n".join(map(repr, records)).encode()).hexdigest()


def _best(found: Search) -> dict[str, Any]:
    if found.best is None:
        raise ValueError(
            f"{found.method}: no trial finished. Search lower learning rates, such as --space lr=1e-6..1e-3"
        )
    return dict(found.best.settings)


def _own(config: RunConfig) -> EditAt:
    """The edit of a run."""
    return _placed(EditAt(intervention=method_named(config.method), rank=config.rank), config)


def _methods(config: RunConfig, names: Sequence[str]) -> dict[str, Method]:
    by_name = {name.lower(): name for name in METHODS}
    unknown = [name for name in names if name.lower() not in by_name]
    if unknown:
        raise ValueError(f"Unknown method {unknown[0]!r}. Choose from: {', '.join(METHODS)}")
    chosen: dict[str, Method] = {f"{config.method} (of the run)": _own(config)}
    for name in names:
        method = METHODS[by_name[name.lower()]]
        chosen[by_name[name.lower()]] = _placed(method, config) if isinstance(method, EditAt) else method
    return chosen


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
