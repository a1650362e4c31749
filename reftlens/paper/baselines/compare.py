"""Compares methods on one problem, with the same examples in the same order, number of steps and scorer.

Only the learning rate differs, if a method has its own. Nothing is tuned here: a table shows the results of these settings,
and a method that does poorly may do well with others. `configured` can tune each method first, on validation examples.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from transformer_lens.model_bridge import TransformerBridge

from reftlens.bridge import n_parameters
from reftlens.display import progress_bar
from reftlens.edit.reft import Reft
from reftlens.paper.baselines.base import Method
from reftlens.paper.baselines.memory import PeakMemory
from reftlens.paper.baselines.problem import Problem
from reftlens.results import Comparison
from reftlens.results.scores import ComparedRun
from reftlens.training.train import TrainConfig, TrainLog, train


def compare(
    bridge: TransformerBridge,
    problem: Problem,
    methods: Mapping[str, Method],
    config: TrainConfig = TrainConfig(),
    *,
    seeds: Sequence[int] = (0, 1, 2),
    memory: bool = True,
) -> Comparison:
    """Trains and scores each method with each seed, always from the same base, which is restored afterwards.

    Args:
        bridge: the frozen base.
        problem: from `completed`, `labelled` or `of_task`, on this bridge.
        methods: methods by name; `METHODS` has some to choose from.
        config: settings of all runs. Its seed is replaced, and its learning rate if a method has its own. Dropout and L1
            terms apply only to edits.
        seeds: one per run of a method, for its initialisation and the order of examples.
        memory: measure peak memory, in one extra step per method.

    Raises:
        ValueError: If there are no methods or seeds, the base is not frozen, the settings cannot share one folder, or a
            method does not apply to this model or problem. The message names the method.
    """
    _check(bridge, methods, config, seeds)
    runs, steps, peaks = [], 0, dict[str, int]()
    wanted = [(name, method, seed) for name, method in methods.items() for seed in seeds]
    bar = progress_bar(wanted, desc="training", unit="run", shown=config.progress)
    for name, method, seed in bar:
        bar.set_postfix_str(f"{name}, seed {seed}", refresh=False)
        settings = replace(config, seed=seed, lr=method.lr or config.lr, progress=False)
        try:
            # Once per method: shapes do not depend on the seed.
            if memory and name not in peaks:
                peaks[name] = _memory(bridge, problem, method, settings)
            run, log = _run(bridge, problem, name, method, settings)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        runs.append(replace(run, memory=peaks.get(name)))
        steps = len(log.loss)
    untrained = problem.objective()
    has_head = any(True for _ in untrained.parameters())
    return Comparison(
        metric=problem.metric,
        n_train=len(problem.examples),
        n_test=problem.n_test,
        steps=steps,
        batch_size=config.batch_size * config.gradient_accumulation,
        base_parameters=n_parameters(bridge),
        base_score=None if has_head else problem.score(None, untrained),
        runs=tuple(runs),
    )


def _check(bridge: TransformerBridge, methods: Mapping[str, Method], config: TrainConfig, seeds: Sequence[int]) -> None:
    if not methods or not seeds:
        raise ValueError(f"compare needs at least one method and one seed, got {list(methods)} and {list(seeds)}")
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"the seeds must differ, got {tuple(seeds)}: a repeated seed repeats the same run")
    if any(parameter.requires_grad for parameter in bridge.parameters()):
        raise ValueError("the base is not frozen: load it with load_bridge, or call bridge.requires_grad_(False)")
    if config.output_dir is not None or config.hold_dir is not None:
        raise ValueError(
            "compare trains several times, and output_dir and hold_dir are for a single run: leave them out"
        )


def _run(
    bridge: TransformerBridge, problem: Problem, name: str, method: Method, config: TrainConfig
) -> tuple[ComparedRun, TrainLog]:
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(config.seed)
        objective = problem.objective()
        with method.applied(bridge, objective, problem.examples[0]) as reft:
            # CPU time, in which other processes of the machine do not count.
            begin = time.process_time()
            log = train(bridge, reft, problem.examples, _settings(config, reft), objective=objective, train_base=True)
            seconds = time.process_time() - begin
            run = ComparedRun(
                method=name,
                seed=config.seed,
                score=problem.score(reft, objective),
                trained=_n_trained(bridge, reft),
                head=sum(parameter.numel() for parameter in objective.parameters()),
                lr=config.lr,
                loss=log.loss[-1],
                cpu_seconds=seconds,
                memory=None,
            )
    return run, log


def _memory(bridge: TransformerBridge, problem: Problem, method: Method, config: TrainConfig) -> int:
    """Measures the bytes of one separate step from the initialisation. It is not timed, because counting is slow."""
    first = problem.examples[: config.batch_size * config.gradient_accumulation]
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(config.seed)
        objective = problem.objective()
        with method.applied(bridge, objective, first[0]) as reft, PeakMemory() as memory:
            settings = replace(_settings(config, reft), epochs=1)
            train(bridge, reft, first, settings, objective=objective, train_base=True)
    return memory.peak


def _settings(config: TrainConfig, reft: Reft | None) -> TrainConfig:
    """Removes dropout and L1 terms if the method is not an edit."""
    return config if reft is not None else replace(config, dropout=0.0, l1=0.0)


def _n_trained(bridge: TransformerBridge, reft: Reft | None) -> int:
    """Counts the trained parameters of the edit and of the base."""
    modules: list[torch.nn.Module] = [bridge] if reft is None else [bridge, reft]
    return sum(value.numel() for module in modules for value in module.parameters() if value.requires_grad)
