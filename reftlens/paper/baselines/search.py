"""Searches the settings of a method on validation examples, with optuna.

Proposals come from a tree-structured Parzen estimator (Bergstra et al. 2011). The first trial has
the method's own settings. A trial whose lowest validation loss is above the median of the finished
trials at the same step is stopped early. Proposal n depends only on the seed, n and the trials
before it, so a search that is continued proposes what it would have proposed anyway.

The search sees training and validation examples alone: it has no access to test data.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import ModuleType
from typing import Any

import torch
from transformer_lens.model_bridge import TransformerBridge
from transformers import TrainerCallback

from reftlens.display import progress_bar
from reftlens.numbers import require_whole_number
from reftlens.paper.baselines.base import Method
from reftlens.paper.baselines.problem import Problem
from reftlens.paper.baselines.space import Choice, Range, Space
from reftlens.results import Search
from reftlens.results.search import Trial
from reftlens.training.objectives.base import Example
from reftlens.training.train import TrainConfig, train

Build = Callable[[Mapping[str, Any]], tuple[Method, TrainConfig]]
"""Settings of a trial -> the method and the settings of its training."""

_LOOKS = 8
"""Validations per trial. A trial can be stopped at each but the first."""
_RANDOM = 8
"""Trials that are drawn at random before proposals begin."""
_FREE = 4
"""Finished trials before any trial is stopped early."""


def search(
    bridge: TransformerBridge,
    problem: Problem,
    validation: Sequence[Example],
    build: Build,
    space: Space,
    *,
    name: str,
    n_trials: int = 20,
    seed: int = 0,
    own: Mapping[str, Any] | None = None,
    about: Mapping[str, str] | None = None,
    so_far: Search | None = None,
    keep: Callable[[Search], object] = lambda found: None,
    progress: bool = True,
) -> Search:
    """Trains a method with many settings, and scores each on validation examples.

    Args:
        bridge: the frozen base, which is restored after each trial.
        problem: the training examples, and a score on the validation examples.
        validation: the same validation examples in the form that `train` takes, for the loss.
        build: makes the method and the training settings from the settings of a trial.
        space: the settings that are searched.
        name: of the method.
        n_trials: number of trials in all, those of `so_far` included.
        seed: of the proposals; each trial has the seed of its own training settings.
        own: settings of the first trial, if they are in the space.
        about: what the trials depend on besides; a search is continued only under the same.
        so_far: an earlier search, to be continued.
        keep: called after each trial with the search so far, to save it.
        progress: show a progress bar.

    Returns:
        All trials.

    Raises:
        ValueError: If optuna is missing, the space is empty, there are no validation examples,
            `so_far` is of another search, or a trial cannot run. The message names its settings.
    """
    optuna = _optuna()
    require_whole_number("n_trials", n_trials, least=1)
    if not space or not validation:
        raise ValueError("a search needs at least one setting to try and one validation example")
    config = build({})[1]
    found = Search(
        method=name,
        metric=problem.metric,
        n_train=len(problem.examples),
        n_validation=len(validation),
        steps=_steps(config, len(problem.examples)),
        space={key: str(part) for key, part in space.items()},
        about=dict(about or {}),
        seed=seed,
        trials=(),
    )
    if so_far is not None:
        _require_same(so_far, found)
        found = so_far
    first = {key: value for key, value in (own or {}).items() if key in space}
    bar = progress_bar(
        total=n_trials, initial=len(found.trials), desc=f"searching: {name}", unit="trial", shown=progress
    )
    with bar:
        while len(found.trials) < n_trials:
            study = _study(optuna, found, space, first)
            trial = _run(optuna, study.ask(_distributions(optuna, space)), bridge, problem, validation, build, space)
            found = replace(found, trials=(*found.trials, trial))
            keep(found)
            bar.set_postfix_str("" if found.best is None else f"best {found.best.score:.3f}", refresh=False)
            bar.update()
    return found


def _optuna() -> ModuleType:
    try:
        import optuna
    except ImportError as error:
        raise ValueError(f"a search needs optuna ({error}): pip install 'reftlens[search]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _steps(config: TrainConfig, n_examples: int) -> int:
    batches = math.ceil(n_examples / config.batch_size)
    return math.ceil(batches / config.gradient_accumulation) * config.epochs


def _require_same(before: Search, now: Search) -> None:
    if replace(before, trials=()) == now:
        return
    names = [name for name in now.about | before.about if now.about.get(name) != before.about.get(name)]
    others = ("method", "metric", "n_train", "n_validation", "steps", "space", "seed")
    names += [name for name in others if getattr(before, name) != getattr(now, name)]
    raise ValueError(f"the search there was made with other settings: {', '.join(names)}. Use these, or another folder")


def _distributions(optuna: ModuleType, space: Space) -> dict[str, Any]:
    """The space in optuna's words. A choice is by number, because optuna keeps only plain values."""
    kinds = optuna.distributions
    return {
        name: kinds.FloatDistribution(part.low, part.high, log=True)
        if isinstance(part, Range)
        else kinds.CategoricalDistribution(tuple(range(len(part.values))))
        for name, part in space.items()
    }


def _study(optuna: ModuleType, found: Search, space: Space, first: Mapping[str, Any]) -> Any:
    """A study that holds the trials so far, and samples the next one."""
    number = len(found.trials)
    study = optuna.create_study(
        direction="minimize",
        # A sampler of its own for each trial: what was drawn before an interruption does not
        # matter.
        sampler=optuna.samplers.TPESampler(n_startup_trials=_RANDOM, seed=found.seed * 10_000 + number),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=_FREE, n_warmup_steps=1),
    )
    for trial in found.trials:
        finished = trial.ended == "finished"
        study.add_trial(
            optuna.trial.create_trial(
                state=optuna.trial.TrialState.COMPLETE if finished else optuna.trial.TrialState.PRUNED,
                params={name: _number_of(part, trial.settings[name]) for name, part in space.items()},
                distributions=_distributions(optuna, space),
                # Scores are often equal on few examples. The loss, which is at most a tenth of one
                # example here, decides.
                value=-float(trial.score or 0) + _tie(trial.loss, found.n_validation) if finished else None,
                intermediate_values={look: loss for look, (_, loss) in enumerate(trial.losses) if math.isfinite(loss)},
            )
        )
    # Optuna would draw whatever the method does not set, and the trial would not be its own.
    if not found.trials and set(first) == set(space) and all(first[name] in part for name, part in space.items()):
        study.enqueue_trial({name: _number_of(part, first[name]) for name, part in space.items()})
    return study


def _tie(loss: float, n_examples: int) -> float:
    return 0.1 / n_examples * (1 - 1 / (1 + max(loss, 0.0)))


def _number_of(part: Range | Choice, value: Any) -> Any:
    return value if isinstance(part, Range) else part.values.index(value)


def _run(
    optuna: ModuleType,
    asked: Any,
    bridge: TransformerBridge,
    problem: Problem,
    validation: Sequence[Example],
    build: Build,
    space: Space,
) -> Trial:
    """Runs one trial."""
    settings = {
        name: asked.params[name] if isinstance(part, Range) else part.values[asked.params[name]]
        for name, part in space.items()
    }
    method, config = build(settings)
    looks = _Looks(asked, optuna.TrialPruned)
    every = max(1, _steps(config, len(problem.examples)) // _LOOKS)
    config = replace(config, save_every=every, lr=method.lr or config.lr, progress=False)
    try:
        # First weights come from torch's global generator; every trial starts from the same ones.
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.manual_seed(config.seed)
            objective = problem.objective()
            with method.applied(bridge, objective, problem.examples[0]) as reft:
                # `train` refuses these of a base without an edit.
                plain = config if reft is not None else replace(config, dropout=0.0, l1=0.0)
                train(
                    bridge,
                    reft,
                    problem.examples,
                    plain,
                    objective=objective,
                    validation=validation,
                    callbacks=[looks],
                    train_base=True,
                )
                return Trial(settings, tuple(looks.losses), float(problem.score(reft, objective)), "finished")
    except optuna.TrialPruned:
        return Trial(settings, tuple(looks.losses), None, "pruned")
    # A high rate may diverge: this is an answer about the rate, and no reason to stop the search.
    except FloatingPointError:
        return Trial(settings, tuple(looks.losses), None, "diverged")
    except ValueError as error:
        shown = ", ".join(f"{name}={value}" for name, value in settings.items())
        raise ValueError(f"the trial with {shown} cannot run: {error}") from error


class _Looks(TrainerCallback):
    """Reports each validation loss to optuna, and stops the trial if optuna says so."""

    def __init__(self, asked: Any, stop: type[Exception]) -> None:
        self.asked, self.stop = asked, stop
        self.losses: list[tuple[int, float]] = []

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: Mapping[str, float] | None = None, **kwargs: Any
    ) -> None:
        loss = float((metrics or {})["eval_loss"])
        self.losses.append((int(state.global_step), loss))
        # At the last validation, stopping saves nothing.
        if state.global_step < state.max_steps:
            self.asked.report(loss, len(self.losses) - 1)
            if self.asked.should_prune():
                raise self.stop
