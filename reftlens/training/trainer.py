"""`transformers.Trainer` for an edit: it trains the edit and the objective's own parameters.

A base with parameters that require gradients raises an error unless `train_base` is set, as the
baselines do. Three things differ from the defaults of `Trainer`. The loss of a step is a mean over
everything the step counts (such as completion tokens), however the step is divided into accumulated
batches and processes. R is never decayed. A non-finite loss or gradient stops the run before the
optimiser uses it, and the error names the step and the site.
"""

from __future__ import annotations

import errno
import pickle
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import EvalPrediction, Trainer, TrainerCallback, TrainingArguments

from reftlens.files.folder import named
from reftlens.interventions import Orthonormal
from reftlens.training.base_runs import BaseRuns
from reftlens.training.checkpoints import TrainingFolder
from reftlens.training.loss import EditLoss

EDIT_NAME = "edit"
"""Name of the folder inside a checkpoint that `Reft.from_pretrained` loads."""


@final
class EditTrainer(Trainer):
    """The training loop. Its data set consists of row indices into `BaseRuns`."""

    # `compute_loss` already divides by the count of the whole step.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        runs: BaseRuns,
        arguments: TrainingArguments,
        *,
        weights: Sequence[int],
        train_rows: Sequence[int],
        validation_rows: Sequence[int],
        folder: TrainingFolder,
        keep: int,
        dropout: float,
        l1: float,
        callbacks: Sequence[TrainerCallback],
        train_base: bool = False,
    ) -> None:
        """Args: weights: of each row's loss. folder: for checkpoints. keep: number of newest checkpoints, besides the best.

        train_base: whether parameters of the base that require gradients are trained too.
        """
        super().__init__(
            model=EditLoss(runs, dropout=dropout, l1=l1, train_base=train_base),
            args=arguments,
            train_dataset=list(train_rows),
            eval_dataset=list(validation_rows) or None,
            data_collator=lambda rows: {"rows": torch.tensor(rows)},
            compute_metrics=_mean_loss,
            callbacks=[_BestInPlace(folder), *callbacks],
        )
        self.runs, self.folder, self.keep = runs, folder, keep
        self.pairs = list(runs.reft or ())
        self.row_weights = torch.tensor(weights)

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        left = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, Orthonormal)}
        # Biases and norms of the base, which have only numbers as names in this module.
        left |= {name for name, value in model.named_parameters() if name.startswith("base.") and value.ndim < 2}
        return [name for name in super().get_decay_parameter_names(model) if name not in left]

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Tensor]], device: torch.device) -> Tensor:
        rows = torch.cat([batch["rows"].cpu() for batch in batch_samples])
        return self.accelerator.reduce(self.row_weights[rows].sum().to(device), reduction="sum")

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, Any]:
        losses = model(**inputs)
        assert num_items_in_batch is not None, "this class counts them"
        # Processes average their gradients, but the loss is a mean over the examples of all
        # processes.
        loss = losses.sum() * self.accelerator.num_processes / num_items_in_batch
        return (loss, losses) if return_outputs else loss

    def training_step(
        self, model: nn.Module, inputs: dict[str, Tensor], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        step = self.state.global_step + 1
        for _, intervention in self.pairs:
            intervention.anneal(self.state.global_step / max(self.state.max_steps, 1))
        try:
            loss = super().training_step(model, inputs, num_items_in_batch)
        except ValueError as error:
            # A non-finite R raises its own error, which names neither the step nor the site.
            if all(bool(p.isfinite().all()) for _, intervention in self.pairs for p in intervention.parameters()):
                raise
            raise self._diverged(f"weights of the edit are not finite at step {step}", inputs) from error
        if not bool(loss.isfinite()):
            raise self._diverged(f"the loss became {loss.item()} at step {step}", inputs)
        # Pairs usually go up the layers; reversed, the first one named is where the gradient broke.
        places = [(site.hook_name, intervention) for site, intervention in reversed(self.pairs)]
        for place, module in (*places, ("the base", self.accelerator.unwrap_model(self.model).base)):
            gradients = [p.grad for p in module.parameters() if p.grad is not None]
            if not all(bool(gradient.isfinite().all()) for gradient in gradients):
                raise FloatingPointError(
                    f"the gradient is not finite at step {step}; the backward pass first shows it at {place}: "
                    f"{self._advice()}"
                )
        return loss

    def _diverged(self, what: str, inputs: dict[str, Tensor]) -> FloatingPointError:
        site = self.accelerator.unwrap_model(self.model).first_site_not_finite(inputs["rows"])
        return FloatingPointError(f"{what}. The first non-finite activation is at {site}: {self._advice()}")

    def _advice(self) -> str:
        last = self.folder.last()
        kept = f"; the last good checkpoint is {last}" if last is not None else ""
        return f"lower the learning rate{kept}"

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[None, Tensor, Tensor]:
        with torch.no_grad():
            losses = model(**self._prepare_inputs(inputs))
        # As "predictions" and "labels", which Trainer gathers row by row, so the mean is exact.
        return None, losses.double(), self.row_weights[inputs["rows"].cpu()].to(losses.device)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        name = f"checkpoint-{self.state.global_step}"
        # Resuming from a checkpoint with NaN would never recover.
        for site, intervention in self.pairs:
            if not all(bool(parameter.isfinite().all()) for parameter in intervention.parameters()):
                raise FloatingPointError(
                    f"the edit at {site.hook_name} is not finite after step {self.state.global_step}: {self._advice()}"
                )
        written = self.folder.writing / name
        with _disk_named(self.folder.checkpoint(self.state.global_step), written):
            self._write_checkpoint(model, trial, written)

    def _write_checkpoint(self, model: nn.Module, trial: Any, written: Path) -> None:
        super()._save_checkpoint(model, trial)
        if self.state.best_global_step:
            # Trainer recorded the path in `writing`, from where the checkpoint moves.
            self.state.best_model_checkpoint = str(self.folder.checkpoint(self.state.best_global_step))
        if self.args.should_save:
            if self.runs.reft is not None:
                self.runs.reft.save_pretrained(written / EDIT_NAME, bridge=self.runs.bridge, card=False)
            # Again, now that the path of the best checkpoint is right.
            self.state.save_to_json(str(written / "trainer_state.json"))
        # All processes write their parts before the checkpoint is published, and continue only
        # after that.
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            self.folder.publish(written.name)
            best = self.state.best_model_checkpoint
            self.folder.prune(self.keep, best=None if best is None else Path(best))
        self.accelerator.wait_for_everyone()

    def _load_best_model(self) -> None:
        # It may have been damaged since it was written.
        self.folder.require_whole(Path(str(self.state.best_model_checkpoint)))
        super()._load_best_model()

    # Checksums do not rule out bad contents: the folder may come from elsewhere or from an earlier
    # version.
    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        with _said_clearly(resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with _said_clearly(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with _said_clearly(checkpoint):
            super()._load_rng_state(checkpoint)

    def _get_output_dir(self, trial: Any) -> str:
        return str(self.folder.writing)


class _BestInPlace(TrainerCallback):
    """Finds the best checkpoint of a resumed run after its folder has moved; `Trainer` records an absolute path."""

    def __init__(self, folder: TrainingFolder) -> None:
        self._folder = folder

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.best_global_step:
            state.best_model_checkpoint = str(self._folder.checkpoint(state.best_global_step))


@contextmanager
def _disk_named(place: Path, temporary: Path) -> Iterator[None]:
    """Converts a failure to write a checkpoint into an OSError that names the checkpoint."""
    try:
        yield
    except OSError as error:
        said = named(error, place, temporary)
        if said is error:
            raise
        raise said from error
    except (RuntimeError, SafetensorError) as error:
        # Messages of torch and safetensors when the disk is full.
        if not any(part in str(error) for part in ("PytorchStreamWriter", "unexpected pos", "I/O error")):
            raise
        raise OSError(errno.ENOSPC, f"it cannot be written ({str(error).splitlines()[0]:.200})", str(place)) from error


@contextmanager
def _said_clearly(checkpoint: str | None) -> Iterator[None]:
    """Converts a failure to load a checkpoint into a ValueError that names the checkpoint."""
    try:
        yield
    except (pickle.UnpicklingError, SafetensorError, RuntimeError, EOFError, KeyError, OSError, TypeError) as error:
        raise ValueError(
            f"the checkpoint {checkpoint} cannot be loaded ({str(error).splitlines()[0]:.200}): delete that folder to go on from an "
            "earlier one, or choose another output_dir"
        ) from error


def _mean_loss(prediction: EvalPrediction) -> dict[str, float]:
    losses, weights = prediction.predictions, prediction.label_ids
    return {"loss": float(losses.sum() / weights.sum())}
