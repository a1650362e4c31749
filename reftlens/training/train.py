"""Trains an edit on a frozen base. Each step runs only the edit's light cone.

The loop is `transformers.Trainer` (see `trainer`). It provides schedules, accumulation, clipping,
mixed precision, multiple processes and callbacks. The parts of the base run that the cones need are
computed once and cached between epochs (`base_runs`). The results are exact, and training is
several times cheaper when the edit is late or at the last tokens. The objective defines the loss
(`objectives`); the default is cross-entropy on the completion tokens.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import random
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
import pandas as pd
import torch
from datasets import Dataset
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge
from transformers import (
    EarlyStoppingCallback,
    PrinterCallback,
    ProgressCallback,
    SchedulerType,
    TrainerCallback,
    TrainingArguments,
)

from reftlens.bridge import EXACT, base_identity, foreign_hooks, one_thread, require_bridge, sampled_fingerprint
from reftlens.cone.store import InMemory, OnDisk
from reftlens.display import as_html, progress_bar, settings_as_html
from reftlens.edit import checkpoint
from reftlens.edit.reft import Reft
from reftlens.numbers import require_number, require_whole_number
from reftlens.training.base_runs import BaseRuns
from reftlens.training.checkpoints import TrainingFolder
from reftlens.training.loggers import keep_tensorboard_events, require_logger
from reftlens.training.loss import require_frozen
from reftlens.training.objectives import Completion, Objective
from reftlens.training.objectives.base import Example, Examples
from reftlens.training.trainer import EditTrainer

logger = logging.getLogger(__name__)


@final
@dataclass(frozen=True)
class TrainConfig:
    """Settings of one training run. The defaults are the paper's (AdamW, linear schedule, clipping at 1)."""

    epochs: int = 3
    """Passes over the examples."""
    batch_size: int = 16
    """Examples in one forward pass, in each process."""
    lr: float = 9e-4
    """Peak learning rate."""
    weight_decay: float = 0.0
    """AdamW's decay. Biases and an orthonormal R are never decayed."""
    warmup_ratio: float = 0.0
    """Fraction of all steps over which the learning rate rises from zero."""
    schedule: str = "linear"
    """Name of a `transformers` schedule: "linear", "cosine", "constant_with_warmup", ..."""
    gradient_accumulation: int = 1
    """Forward passes per optimiser step. The loss is the mean over all of them."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm."""
    dropout: float = 0.0
    """Fraction of the coordinates of each edited state that a training step sets to zero (the rest
    is scaled up). As in the paper's code, it applies to the whole state, not to the edit's change.
    Validation and inference do not use it.
    """
    l1: float = 0.0
    """Factor of the edits' L1 terms (`Intervention.l1`: ReFT-r1 scores, LoFiT scales), added to
    each example's loss per weight and summed over sites. `TrainLog.loss` includes it; the
    validation loss does not.
    """
    precision: Literal["float32", "bfloat16"] = "float32"
    """"bfloat16" runs a float32 base under autocast. A base loaded in bfloat16 does not need this setting."""
    hold_bytes: int = 2**30
    """Memory for cached base runs in bytes, on the base's device and in each process. 0 disables
    the cache: training is slower, and the result is the same.
    """
    hold_dir: str | Path | None = None
    """Folder that caches base runs on disk. A later run on the same model, data and sites reuses
    it. It is not used while the model has other hooks, and writing stops once the disk is full. The
    log reports both.
    """
    hold_dir_bytes: int = 2**36
    """Maximum size of that folder in bytes."""
    output_dir: str | Path | None = None
    """Folder for checkpoints. None keeps no checkpoints."""
    save_every: int | None = None
    """Steps between checkpoints, and between validations. None: once per epoch."""
    keep_checkpoints: int = 2
    """Number of newest checkpoints to keep, besides the best one."""
    resume: bool = False
    """Resume from the newest undamaged checkpoint in `output_dir`. The log lists newer ones that are damaged."""
    keep_best: bool = True
    """With a validation set, keep the edit with the lowest loss on it. False keeps the last edit."""
    patience: int | None = None
    """Stop after this many validations without improvement. None trains to the end."""
    report_to: str = "none"
    """The `transformers` logger: "tensorboard", "wandb", ... TensorBoard's events are in `runs/` by default."""
    seed: int = 42
    """Order of the examples."""
    progress: bool = True
    """Show progress bars."""

    def _repr_html_(self) -> str:
        return settings_as_html(self)

    def __post_init__(self) -> None:
        for name, least in _COUNTS.items():
            if getattr(self, name) is not None or name not in ("save_every", "patience"):
                require_whole_number(name, getattr(self, name), least=least)
        for name, bounds in _NUMBERS.items():
            require_number(name, getattr(self, name), **bounds)
        for name in ("resume", "progress", "keep_best"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be True or False, got {getattr(self, name)!r}")
        schedules = [schedule.value for schedule in SchedulerType]
        if self.schedule not in schedules:
            raise ValueError(f"schedule must be one of {', '.join(schedules)}, got {self.schedule!r}")
        if self.precision not in ("float32", "bfloat16"):
            raise ValueError(f"precision must be 'float32' or 'bfloat16', got {self.precision!r}")
        if self.patience is not None and not self.keep_best:
            raise ValueError("patience stops at the best edit: leave it out, or set keep_best=True")
        if self.resume and self.output_dir is None:
            raise ValueError("resume=True needs the output_dir of the interrupted run")


_COUNTS = {
    "epochs": 1, "batch_size": 1, "gradient_accumulation": 1, "keep_checkpoints": 1, "save_every": 1, "patience": 1,
    "hold_bytes": 0, "hold_dir_bytes": 0, "seed": 0,
}  # fmt: skip
"""Whole numbers, and the least of each."""
_NUMBERS: dict[str, dict[str, float]] = {
    "lr": {"above": 0}, "max_grad_norm": {"above": 0}, "weight_decay": {"least": 0}, "l1": {"least": 0},
    "warmup_ratio": {"least": 0, "below": 1}, "dropout": {"least": 0, "below": 1},
}  # fmt: skip
_RESULT = (
    "epochs", "batch_size", "lr", "weight_decay", "warmup_ratio", "schedule", "gradient_accumulation", "max_grad_norm",
    "dropout", "l1", "precision", "save_every", "patience", "seed",
)  # fmt: skip
"""Settings that change the result. A resumed run must have the same values."""


@final
@dataclass(frozen=True)
class TrainLog:
    """The loss and learning rate of each step of a training run, and its validation losses."""

    loss: tuple[float, ...]
    """Mean loss at each step, in `unit`."""
    lr: tuple[float, ...]
    """Learning rate at each step."""
    config: TrainConfig
    validation: tuple[tuple[int, float], ...] = ()
    """(step, mean loss) of each validation."""
    best_step: int | None = None
    """The step whose edit was kept, if there was a validation set."""
    unit: str = "nats per token"
    """Unit of the losses, such as nats per token."""

    @property
    def fall(self) -> float:
        """The fraction by which the loss fell, from the first step to the mean of the last tenth of the steps."""
        last = self.loss[-max(1, len(self.loss) // 10) :]
        return 1 - sum(last) / len(last) / self.loss[0] if self.loss and self.loss[0] else 0.0

    def to_dataframe(self) -> pd.DataFrame:
        """Returns one row per step, with the validation loss at the steps that have one."""
        seen = dict(self.validation)
        steps = range(1, len(self.loss) + 1)
        validation = [seen.get(step, float("nan")) for step in steps]
        return pd.DataFrame({"step": steps, "loss": self.loss, "lr": self.lr, "validation": validation})

    def __repr__(self) -> str:
        best = "" if self.best_step is None else f", best on validation after step {self.best_step}"
        change = f", loss {self.loss[0]:.3f} -> {self.loss[-1]:.3f} {self.unit}" if self.loss else ""
        return f"TrainLog({len(self.loss)} steps{change}{best})"

    def _repr_html_(self) -> str:
        return as_html(repr(self), self.to_dataframe)


def train(
    bridge: TransformerBridge,
    reft: Reft | None,
    examples: Examples,
    config: TrainConfig = TrainConfig(),
    *,
    objective: Objective | None = None,
    validation: Sequence[Example] | Dataset | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    train_base: bool = False,
) -> TrainLog:
    """Trains an edit in place.

    Under `torchrun` or `accelerate launch`, each process trains on its part of every batch (with
    gloo on CPUs). Call `train` in each process, with a bridge on that process's device. The result
    equals that of one process whose batches have the combined size, if the number of examples is a
    multiple of that size.

    Args:
        bridge: the frozen base.
        reft: the edit; changed in place. None if only something else is trained: the objective's
            head or, with `train_base`, parameters of the base.
        examples: (prompt, completion) pairs, or a `datasets.Dataset` with these columns. Other
            objectives have other `fields`.
        config: settings.
        objective: the loss; `Completion()` by default. Its own parameters are trained as well.
        validation: held-out examples. `train` keeps the edit with the lowest loss on them, unless
            `keep_best` is False.
        callbacks: `transformers` callbacks, in addition to those of this package.
        train_base: also train the parameters of the base that require gradients, as the baselines
            do. If False, a base with such parameters raises `ValueError`.

    Returns:
        The losses and learning rates of all steps.

    Raises:
        ValueError: If the base is not frozen, there are no examples, an example is malformed or too
            long, no prompt has the edited positions, the saved edit could not be loaded again, the
            objective does not support the model, nothing would be trained, or the folder belongs to
            another run.
        FloatingPointError: If a loss or a gradient is not finite. The message names the step and
            the site. The optimiser has not used the value.
    """
    require_bridge(bridge, "train")
    require_logger(config.report_to)
    objective = Completion() if objective is None else objective
    objective.check(bridge)
    _require_trained(bridge, reft, objective, config, train_base=train_base)
    if config.patience is not None and validation is None:
        raise ValueError("patience needs a validation set: pass validation=...")
    read = objective.read(examples)
    n_train = len(read)
    # In one list with the training examples, so that a row number names an example of either.
    read += objective.read(validation) if validation is not None else []
    # Every example is encoded before any is run, so a bad one stops the run at once.
    weights, tokens = _weigh(bridge, reft, objective, read)
    # Trainer needs a folder even if it keeps nothing.
    with one_thread(bridge), tempfile.TemporaryDirectory() as unused, _random_state_kept():
        folder = TrainingFolder(config.output_dir if config.output_dir is not None else Path(unused) / "run")
        arguments = _arguments(config, bridge, n_train, folder, validates=validation is not None)
        if arguments.world_size > 1 and validation is not None and config.output_dir is None:
            raise ValueError(
                "with several processes, validation needs a shared folder for the best checkpoint: pass output_dir in TrainConfig"
            )
        identity = {**_identity(bridge, reft, objective, read), "tokens": tokens}
        identity, latest = _begin(folder, bridge, config, identity, arguments)
        runs = BaseRuns(bridge, reft, objective, read, store=_store(config, bridge, reft, identity))
        early = [EarlyStoppingCallback(config.patience)] if config.patience else []
        trainer = EditTrainer(
            runs,
            arguments,
            weights=weights,
            train_rows=range(n_train),
            validation_rows=range(n_train, len(read)),
            folder=folder,
            keep=config.keep_checkpoints,
            dropout=config.dropout,
            l1=config.l1,
            callbacks=[*early, *callbacks],
            train_base=train_base,
        )
        keep_tensorboard_events(trainer)
        _run(trainer, runs, latest=latest, progress=config.progress)
    _require_finite(reft, objective)
    return _log(trainer, config, objective)


def _begin(
    folder: TrainingFolder,
    bridge: TransformerBridge,
    config: TrainConfig,
    identity: dict[str, str],
    arguments: TrainingArguments,
) -> tuple[dict[str, str], Path | None]:
    """Begins the run in its folder, or goes on with it. Returns the identity it has there, and the checkpoint to resume from."""
    if not folder.identity().get("weights", EXACT).startswith(EXACT):
        # An earlier version, with a sampled fingerprint, began this run.
        identity = {**identity, "weights": sampled_fingerprint(bridge)}
    with arguments.main_process_first(desc="run folder"):
        settings = {name: str(getattr(config, name)) for name in _RESULT}
        if not config.keep_best:  # named only where it differs, so that runs of earlier versions can be resumed
            settings["keep_best"] = "False"
        # To the other processes, the folder that the main one has just begun is the run they join.
        latest = folder.begin({**identity, **settings}, resume=config.resume or arguments.process_index > 0)
    return identity, latest


def _run(trainer: EditTrainer, runs: BaseRuns, *, latest: Path | None, progress: bool) -> None:
    """Caches the base runs of this process's rows, then trains. Leaves the edit in the mode it was in."""
    # Trainer adds the printer where its own bar is off; both would write over ours.
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    bar = _Progress(progress)
    trainer.add_callback(bar)
    reft, arguments = runs.reft, trainer.args
    was_training = reft is not None and reft.training
    try:
        # In the precision of the steps: a cached run must equal the one that a step would compute.
        with trainer.accelerator.autocast():
            runs.build(
                range(arguments.process_index, len(runs.examples), arguments.world_size),
                progress=progress and arguments.process_index == 0,
            )
        trainer.accelerator.wait_for_everyone()
        trainer.train(resume_from_checkpoint=None if latest is None else str(latest))
        for _, intervention in runs.reft or ():
            intervention.anneal(1.0)
    finally:
        bar.close()
        if reft is not None:
            reft.train(was_training)


def _require_finite(reft: Reft | None, objective: Objective) -> None:
    """Raises if the last update left non-finite weights, which no later step would detect."""
    sites = [] if reft is None else [(f"the edit at {site.hook_name}", edit) for site, edit in reft]
    for what, module in [*sites, ("the objective's head", objective)]:
        if not all(bool(torch.isfinite(parameter).all()) for parameter in module.parameters()):
            raise FloatingPointError(
                f"the last update left {what} with NaN or infinite weights: lower lr and train again"
            )


def _require_trained(
    bridge: TransformerBridge, reft: Reft | None, objective: Objective, config: TrainConfig, *, train_base: bool
) -> None:
    objective.bind(reft)
    if not train_base:
        require_frozen(bridge)
    base = any(parameter.requires_grad for parameter in bridge.parameters())
    if base and config.hold_dir is not None:
        raise ValueError(
            "hold_dir stores runs of a frozen base, but parameters of this base require gradients: leave hold_dir out"
        )
    if reft is not None:
        checkpoint.require_savable(reft.sites, [edit for _, edit in reft])
    modules = [objective] if reft is None else [objective, reft]
    if not base and not any(parameter.requires_grad for module in modules for parameter in module.parameters()):
        raise ValueError("there is nothing to train: no edit, no head, and no parameter of the base requires gradients")
    if reft is None and (config.dropout or config.l1):
        raise ValueError("dropout and l1 apply to an edit, and there is none: leave them at 0")


def _weigh(
    bridge: TransformerBridge, reft: Reft | None, objective: Objective, examples: Sequence[Example]
) -> tuple[list[int], str]:
    """Returns each example's weight and a checksum of all tokens. Raises for a bad example, naming its row."""
    weights: list[int] = []
    digest = hashlib.sha256()
    for row, example in enumerate(examples):
        try:
            batch = objective.encode(bridge, example)
            if reft is not None:
                reft.edits(batch)
        except ValueError as error:
            raise ValueError(f"example {row}: {error}") from error
        weights += objective.weights(batch).tolist()
        # Two tokenizers with the same vocabulary may still split a text differently.
        for part in (batch.tokens, batch.attention_mask, batch.prompt_mask, batch.labels):
            digest.update(f"{tuple(part.shape)}".encode() + part.cpu().contiguous().numpy().tobytes())
    return weights, digest.hexdigest()[:32]


def _identity(
    bridge: TransformerBridge, reft: Reft | None, objective: Objective, examples: Sequence[Example]
) -> dict[str, str]:
    """Returns checksums and descriptions, by name, of everything that base runs and a resumed run depend on except settings."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(json.dumps(example).encode())
    stamp = {name: str(value) for name, value in checkpoint.stamp(bridge).items()}
    return {
        **stamp,
        "dtype": str(bridge.cfg.dtype),
        "examples": f"{len(examples)}, digest {digest.hexdigest()[:32]}",
        "objective": objective.identity(),
        # The layout, not the weights, which training changes.
        "edit": repr(reft),
    }


def _store(
    config: TrainConfig, bridge: TransformerBridge, reft: Reft | None, identity: Mapping[str, str]
) -> InMemory | OnDisk:
    if config.hold_dir is None:
        return InMemory(config.hold_bytes)
    attached = foreign_hooks(bridge)
    if attached:
        logger.warning(
            "hold_dir=%s is not used, because it stores runs of the plain base, and this model has hooks on %s. This "
            "training keeps its runs in memory; to use the folder, remove the hooks (bridge.reset_hooks())",
            config.hold_dir,
            ", ".join(attached[:3]) + (f" and {len(attached) - 3} more" if len(attached) > 3 else ""),
        )
        return InMemory(config.hold_bytes)
    # Base runs depend on where the edit acts, not on the edit itself.
    layout = (
        "; ".join(f"{site.hook_name} at {site.positions.spec()}" for site in reft.sites) if reft is not None else ""
    )
    made_for = {**identity, "edit": layout, "precision": config.precision, "base": base_identity(bridge)}
    return OnDisk(
        config.hold_dir,
        made_for=made_for,
        max_bytes=config.hold_dir_bytes,
        memory_bytes=config.hold_bytes,
        device=bridge.cfg.device,
    )


def _arguments(
    config: TrainConfig, bridge: TransformerBridge, n_examples: int, folder: TrainingFolder, *, validates: bool
) -> TrainingArguments:
    on_cpu = torch.device(bridge.cfg.device).type == "cpu"
    every = "epoch" if config.save_every is None else "steps"
    selects = validates and config.keep_best
    arguments = TrainingArguments(
        output_dir=str(folder.directory),
        num_train_epochs=config.epochs,
        per_device_train_batch_size=config.batch_size,
        per_device_eval_batch_size=config.batch_size,
        gradient_accumulation_steps=config.gradient_accumulation,
        learning_rate=config.lr,
        weight_decay=config.weight_decay,
        lr_scheduler_type=config.schedule,
        max_grad_norm=config.max_grad_norm,
        bf16=config.precision == "bfloat16",
        seed=config.seed,
        logging_steps=1,
        # By default, Trainer would log another loss in place of NaN.
        logging_nan_inf_filter=False,
        save_strategy=every if selects or config.output_dir is not None else "no",
        save_steps=config.save_every or 500,
        eval_strategy=every if validates else "no",
        eval_steps=config.save_every,
        load_best_model_at_end=selects,
        metric_for_best_model="loss" if selects else None,
        greater_is_better=False if selects else None,
        report_to=config.report_to,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        disable_tqdm=True,
        use_cpu=on_cpu,
        # Accelerate interprets any backend as a request for several processes.
        ddp_backend="gloo" if on_cpu and int(os.environ.get("WORLD_SIZE", "1")) > 1 else None,
    )
    if arguments.n_gpu > 1:
        # One process uses one device (or a base spread by device_map). This disables DataParallel,
        # which copies the module.
        arguments._n_gpu = 1
    place = torch.device(bridge.cfg.device)
    if arguments.world_size == 1 and place.index is not None:
        # A process by itself would get the first GPU.
        vars(arguments)["_setup_devices"] = place
    batches = math.ceil(n_examples / (config.batch_size * arguments.world_size))
    steps = math.ceil(batches / config.gradient_accumulation) * config.epochs
    arguments.warmup_steps = round(config.warmup_ratio * steps)
    return arguments


def _log(trainer: EditTrainer, config: TrainConfig, objective: Objective) -> TrainLog:
    history = trainer.state.log_history
    steps = [entry for entry in history if "loss" in entry]
    return TrainLog(
        loss=tuple(float(entry["loss"]) for entry in steps),
        lr=tuple(float(entry["learning_rate"]) for entry in steps),
        config=config,
        validation=tuple((int(entry["step"]), float(entry["eval_loss"])) for entry in history if "eval_loss" in entry),
        best_step=trainer.state.best_global_step,
        unit=objective.unit,
    )


class _Progress(TrainerCallback):
    """Progress bar that shows the loss of each step."""

    def __init__(self, shown: bool) -> None:
        self._shown = shown
        self._bar: tqdm[Any] | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        shown = self._shown and state.is_world_process_zero
        self._bar = progress_bar(
            total=state.max_steps, initial=state.global_step, desc="training the edit", unit="step", shown=shown
        )

    def on_log(
        self, args: Any, state: Any, control: Any, logs: Mapping[str, float] | None = None, **kwargs: Any
    ) -> None:
        if logs is None or "loss" not in logs or self._bar is None:
            return
        # Only `update` decides when to draw: a postfix that is drawn at each step would be a line
        # for each in a log file.
        self._bar.set_postfix(loss=f"{float(logs['loss']):.3f}", refresh=False)
        self._bar.update(1)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


@contextmanager
def _random_state_kept() -> Iterator[None]:
    """Restores the caller's random states on exit: `Trainer` seeds every global generator."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    # All devices, since Trainer seeds them all.
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)
