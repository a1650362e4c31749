"""The loggers of `transformers` that training reports to (`TrainConfig.report_to`): whether they are installed, and where one writes."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from transformers import Trainer
from transformers.integrations import TensorBoardCallback, get_reporting_integration_callbacks


def require_logger(name: str) -> None:
    """Refuses a logger before anything is computed.

    Args:
        name: a logger of `transformers`, "all" (those that are installed) or "none".

    Raises:
        ValueError: If `transformers` does not have it, or its package is not installed.
    """
    try:
        for callback in get_reporting_integration_callbacks(name):
            callback()
    except ValueError as error:
        raise ValueError(f"report_to: {error}") from error
    except (RuntimeError, ImportError) as error:
        raise ValueError(
            f"report_to={name!r} needs a package that is not installed: pip install {name} ({error})"
        ) from error


def keep_tensorboard_events(trainer: Trainer) -> None:
    """Lets TensorBoard write into `runs/`, as it does outside of transformers, unless the user has named a folder.

    Transformers would write into the trainer's folder, which is gone after training unless it is
    the user's own.

    Args:
        trainer: not yet begun.
    """
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, TensorBoardCallback) and callback.logging_dir is None:
            callback.logging_dir = str(Path("runs") / datetime.now().strftime("%Y-%m-%d_%H-%M-%S-%f"))
