"""Training an edit on prompts and completions: the base stays frozen, the loss counts completion tokens alone.

The loop is `transformers.Trainer`. The module it trains is the edit; the bridge stays outside of that module's tree, so
it is never saved, put in train mode or given to the optimiser. Each step runs the edit's light cone alone (`cone`), on
base runs that are held between epochs: exact, and several times cheaper when the edit is late or at the last tokens.
"""

from __future__ import annotations

import math
import random
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from datasets import Dataset
from jaxtyping import Float, Int
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback, TrainingArguments

from reftlens.base_runs import BaseRuns
from reftlens.bridge import require_causal
from reftlens.cone import run_cone
from reftlens.data import IGNORE, encode
from reftlens.reft import Reft


@final
@dataclass(frozen=True)
class TrainConfig:
    """Settings of one training run. The defaults are the paper's (AdamW, linear schedule, clipping at 1)."""

    epochs: int = 3
    """Passes over the examples."""
    batch_size: int = 16
    """Examples in one forward pass."""
    lr: float = 9e-4
    """Peak learning rate."""
    weight_decay: float = 0.0
    """AdamW's decay; an orthonormal R is not shortened by it."""
    warmup_ratio: float = 0.0
    """Part of all steps over which the rate rises from zero."""
    schedule: str = "linear"
    """Name of a `transformers` schedule: "linear", "cosine", "constant_with_warmup", ..."""
    gradient_accumulation: int = 1
    """Forward passes for each step of the optimiser."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm."""
    hold_bytes: int = 2**30
    """Memory for the base runs that are held between epochs (see `base_runs`). 0 holds none: slower, the same result."""
    seed: int = 42
    """Order of the examples."""
    progress: bool = True
    """Show a progress bar."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "gradient_accumulation"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not self.lr > 0:
            raise ValueError(f"lr must be above 0, got {self.lr}")
        if self.hold_bytes < 0:
            raise ValueError(f"hold_bytes must not be negative, got {self.hold_bytes}")
        if self.weight_decay < 0:
            raise ValueError(f"weight_decay must not be negative, got {self.weight_decay}")
        if not 0 <= self.warmup_ratio < 1:
            raise ValueError(f"warmup_ratio must be in [0, 1), got {self.warmup_ratio}")


@final
@dataclass(frozen=True)
class TrainLog:
    """What happened in a training run."""

    loss: tuple[float, ...]
    """Mean loss over completion tokens at each step, in nats."""
    lr: tuple[float, ...]
    """Learning rate at each step."""
    config: TrainConfig

    def __repr__(self) -> str:
        return f"TrainLog({len(self.loss)} steps, loss {self.loss[0]:.3f} -> {self.loss[-1]:.3f} nats per token)"


def completion_loss(logits: Float[Tensor, "batch pos d_vocab"], labels: Int[Tensor, "batch pos"]) -> Float[Tensor, ""]:
    """Cross-entropy over completion tokens, in nats per token, in float32.

    Args:
        logits: of a batch, or of its columns from some place on.
        labels: `batch.labels` in the same columns.

    Raises:
        ValueError: if there are no completion tokens.
    """
    predicted = labels[:, 1:] != IGNORE
    if not bool(predicted.any()):
        raise ValueError("the batch has no completion tokens: pass completions to encode")
    return nn.functional.cross_entropy(logits[:, :-1][predicted].float(), labels[:, 1:][predicted])


def read_examples(examples: Sequence[tuple[str, str]] | Dataset) -> list[tuple[str, str]]:
    """Pairs of (prompt, completion) from a list of pairs or a `Dataset` with these two columns.

    Raises:
        ValueError: if there are none, or one is not a pair of strings.
    """
    if isinstance(examples, Dataset):
        missing = {"prompt", "completion"} - set(examples.column_names)
        if missing:
            raise ValueError(
                f"the dataset needs the columns 'prompt' and 'completion', and has {examples.column_names}: rename them"
            )
        pairs = list(zip(examples["prompt"], examples["completion"], strict=True))
    else:
        pairs = list(examples)
    if not pairs:
        raise ValueError("there are no examples to train on")
    for row, pair in enumerate(pairs):
        match pair:
            case (str(), str()):
                pass
            case _:
                raise ValueError(f"example {row} must be a (prompt, completion) pair of strings, got {pair!r}")
    return [(prompt, completion) for prompt, completion in pairs]


def train(
    bridge: TransformerBridge,
    reft: Reft,
    examples: Sequence[tuple[str, str]] | Dataset,
    config: TrainConfig = TrainConfig(),
) -> TrainLog:
    """Trains an edit in place so that the edited model gives each completion after its prompt.

    Args:
        bridge: the frozen base.
        reft: the edit; changed in place.
        examples: (prompt, completion) pairs, or a `datasets.Dataset` with the columns `prompt` and `completion`.
        config: settings.

    Raises:
        ValueError: for no examples, a malformed or too long one, positions that no prompt has, or a masked language
            model.
        FloatingPointError: if the loss becomes NaN or infinite; it names the step.
    """
    require_causal(bridge, "train")
    pairs = read_examples(examples)
    batch = encode(bridge, *map(list, zip(*pairs, strict=True)))
    reft.edits(batch)
    progress = _Progress(config)
    with tempfile.TemporaryDirectory() as unused, _random_state_kept():
        trainer = Trainer(
            model=_EditLoss(BaseRuns(bridge, reft, pairs, max_bytes=config.hold_bytes)),
            args=_arguments(config, bridge, len(pairs), unused),
            train_dataset=list(range(len(pairs))),
            data_collator=lambda rows: {"rows": torch.tensor(rows)},
            callbacks=[progress],
        )
        trainer.remove_callback(ProgressCallback)
        trainer.remove_callback(PrinterCallback)
        was_training = reft.training
        try:
            trainer.train()
        finally:
            progress.close()
            reft.train(was_training)
    return TrainLog(loss=tuple(progress.loss), lr=tuple(progress.lr), config=config)


class _EditLoss(nn.Module):
    """The edit as a module with a loss, which is what `Trainer` trains."""

    def __init__(self, runs: BaseRuns) -> None:
        super().__init__()
        self.reft = runs.reft
        # A tuple, so that nothing of the base could become part of this module.
        self._runs = (runs,)

    def forward(self, rows: Tensor) -> dict[str, Tensor]:
        held = self._runs[0].batch(rows.tolist())
        logits = run_cone(self._runs[0].bridge, held, self.reft.edits(held.batch))
        return {"loss": completion_loss(logits, held.batch.labels[:, held.start :])}


def _arguments(config: TrainConfig, bridge: TransformerBridge, n_examples: int, directory: str) -> TrainingArguments:
    batches = math.ceil(n_examples / config.batch_size)
    steps = math.ceil(batches / config.gradient_accumulation) * config.epochs
    return TrainingArguments(
        output_dir=directory,
        num_train_epochs=config.epochs,
        per_device_train_batch_size=config.batch_size,
        gradient_accumulation_steps=config.gradient_accumulation,
        learning_rate=config.lr,
        weight_decay=config.weight_decay,
        warmup_steps=round(config.warmup_ratio * steps),
        lr_scheduler_type=config.schedule,
        max_grad_norm=config.max_grad_norm,
        seed=config.seed,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to="none",
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        disable_tqdm=True,
        use_cpu=torch.device(bridge.cfg.device).type == "cpu",
    )


class _Progress(TrainerCallback):
    """Keeps loss and rate of each step, shows them on a bar, and stops at the first loss that is not a number."""

    def __init__(self, config: TrainConfig) -> None:
        self.loss: list[float] = []
        self.lr: list[float] = []
        self._shown = config.progress
        self._bar: tqdm[Any] | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._bar = tqdm(total=state.max_steps, desc="training the edit", unit="step", disable=not self._shown)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: Mapping[str, float] | None = None, **kwargs: Any
    ) -> None:
        if logs is None or "loss" not in logs or self._bar is None:
            return
        loss = float(logs["loss"])
        if not math.isfinite(loss):
            raise FloatingPointError(f"the loss became {loss} at step {state.global_step}: lower the learning rate")
        self.loss.append(loss)
        self.lr.append(float(logs["learning_rate"]))
        self._bar.update(1)
        self._bar.set_postfix(loss=f"{loss:.3f}")

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


@contextmanager
def _random_state_kept() -> Iterator[None]:
    """`Trainer` seeds every global generator; the caller's are put back."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)
