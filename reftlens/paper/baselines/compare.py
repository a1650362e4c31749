"""Compares methods on one problem, with the same examples in the same order, number of steps and scorer.

Only the learning rate differs, if a method has its own. Nothing is tuned here: a table shows the
results of these settings, and a method that does poorly may do well with others. `configured` can
tune each method first, on validation examples. With `kept` and `kl`, each trained method is scaled
to one side effect before it is scored.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from transformer_lens.model_bridge import TransformerBridge

from reftlens.bridge import n_parameters
from reftlens.data import Given
from reftlens.display import progress_bar
from reftlens.edit.reft import Reft
from reftlens.paper.baselines.base import Method
from reftlens.paper.baselines.memory import PeakMemory
from reftlens.paper.baselines.problem import Problem
from reftlens.paper.baselines.side_effect import Change, SideEffect
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
    kept: Given | None = None,
    kl: float | None = None,
) -> Comparison:
    """Trains and scores each method with each seed, always from the same base, which is restored afterwards.

    Args:
        bridge: the frozen base.
        problem: from `completed`, `labelled` or `of_task`, on this bridge.
        methods: methods by name; `METHODS` has some to choose from.
        config: settings of all runs. Its seed is replaced, and its learning rate if a method has
            its own. Dropout and L1 terms apply only to edits.
        seeds: one per run of a method, for its initialisation and the order of examples.
        memory: measure peak memory, in one extra step per method.
        kept: prompts whose answers should not change. Needs `kl`.
        kl: mean KL(base, method) on `kept`, in nats. Each trained method is scaled until it has
            this side effect, and scored at this scale: an edit by `Reft.scaled`, others by the
            change of their parameters (of LoRA, by B). A method that has a smaller KL even at eight
            times its strength is scored there, and the result says so.

    Raises:
        ValueError: If there are no methods or seeds, the base is not frozen, the settings cannot
            share one folder, a method does not apply to this model or problem, or cannot be scaled
            to a side effect. The message names the method.
    """
    _check(bridge, methods, config, seeds)
    budget = _budget(bridge, problem, methods, kept, kl)
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
            run, log = _run(bridge, problem, name, method, settings, budget)
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
        budget=kl,
        n_kept=0 if budget is None else budget.n,
    )


def _budget(
    bridge: TransformerBridge, problem: Problem, methods: Mapping[str, Method], kept: Given | None, kl: float | None
) -> SideEffect | None:
    """Refuses what cannot be scaled before anything is trained."""
    if (kept is None) != (kl is None):
        raise ValueError("equal side effects need both: kept, prompts that should not change, and kl, their mean KL")
    if kept is None or kl is None:
        return None
    fixed = [name for name, method in methods.items() if method.strength(bridge) is None]
    if fixed:
        raise ValueError(
            f"{fixed[0]}: {type(methods[fixed[0]]).__name__} has no strength that could be scaled to a side effect: leave this "
            "method out, or compare without kept and kl"
        )
    if any(True for _ in problem.objective().parameters()):
        raise ValueError("a trained head fits its method at full strength alone: compare without kept and kl")
    return SideEffect(bridge, kept, kl)


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
    bridge: TransformerBridge,
    problem: Problem,
    name: str,
    method: Method,
    config: TrainConfig,
    budget: SideEffect | None,
) -> tuple[ComparedRun, TrainLog]:
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(config.seed)
        objective = problem.objective()
        with method.applied(bridge, objective, problem.examples[0]) as reft:
            change = Change(method.strength(bridge) or ()) if budget is not None else None
            # CPU time, in which other processes of the machine do not count.
            begin = time.process_time()
            log = train(bridge, reft, problem.examples, _settings(config, reft), objective=objective, train_base=True)
            seconds = time.process_time() - begin
            scored, at = (reft, None) if budget is None or change is None else budget.met(reft, change)
            run = ComparedRun(
                method=name,
                seed=config.seed,
                score=problem.score(scored, objective),
                trained=_n_trained(bridge, reft),
                head=sum(parameter.numel() for parameter in objective.parameters()),
                lr=config.lr,
                loss=log.loss[-1],
                cpu_seconds=seconds,
                memory=None,
                scale=None if at is None else at.scale,
                kl=None if at is None else at.kl,
                unscaled_kl=None if at is None else at.unscaled,
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
