"""The folder of a finished run, and what can be opened to be tested, asked and taken apart: it, or a saved edit.

config.toml      every setting: `reftlens train RUN/config.toml` is the same run again
versions.json    libraries, Python, device
log.jsonl        a line for each step, and for each look at the validation set
edit/            the edit, as `Reft.save_pretrained` writes it
head.safetensors what was trained beside the edit, where the objective has a head
outputs/         one file a task: what the edited model said to each example, and whether that is right
result.json      scores, sizes, times
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformer_lens.model_bridge import TransformerBridge

from reftlens.bridge import load_bridge
from reftlens.edit.checkpoint import CONFIG_NAME as EDIT_CONFIG_NAME
from reftlens.edit.checkpoint import base_named
from reftlens.edit.reft import Reft
from reftlens.files.reading import read_bytes
from reftlens.files.seal import digests_in, warn_unchecked
from reftlens.paper.runs.config import CONFIG_NAME, RunConfig, read_config
from reftlens.paper.runs.examples import training_task
from reftlens.training.objectives import Objective

RESULT_NAME = "result.json"
EDIT_NAME = "edit"
HEAD_NAME = "head.safetensors"
OUTPUTS_NAME = "outputs"
_MOST_BYTES = 2**30
"""Of each file."""


@final
@dataclass(frozen=True)
class Opened:
    """A model and an edit of it, ready to use."""

    bridge: TransformerBridge
    reft: Reft
    config: RunConfig
    """Of the run; of a bare edit, the model and the defaults."""
    objective: Objective | None
    """With its trained head; None of a bare edit."""


def is_run(directory: Path) -> bool:
    """Whether a folder is that of a finished run.

    Raises:
        ValueError: if it is one that lacks a part; its edit alone would be run with other settings.
    """
    missing = [name for name in (CONFIG_NAME, RESULT_NAME) if not (directory / name).is_file()]
    if not missing:
        return True
    try:
        sealed = digests_in(directory) or {}
    except ValueError:
        # Whatever else it is, its reader will say so.
        sealed = {}
    if (len(missing) == 1 and (directory / EDIT_NAME).is_dir()) or sealed.keys() & set(missing):
        raise ValueError(f"the run in {directory} is damaged: {missing[0]} is missing, or no file")
    return False


def require_whole(directory: Path) -> None:
    """Compares the settings, the result and the head of a run with its seal. The edit has a seal of its own.

    Raises:
        ValueError: if one of them is not what the run wrote.
    """
    try:
        digests = digests_in(directory)
        if digests is None:
            warn_unchecked(directory)
            return
        for name in (CONFIG_NAME, RESULT_NAME, HEAD_NAME):
            if name in digests or (directory / name).exists():
                read_bytes(directory / name, most=_MOST_BYTES, digests=digests)
    except ValueError as error:
        raise ValueError(f"the run in {directory} is damaged: {error}") from error


def edit_in(directory: Path) -> Path:
    """Where in a run's folder, or a folder that is an edit itself, the edit lies.

    Raises:
        ValueError: if there is none.
    """
    for place in (directory / EDIT_NAME, directory):
        if (place / EDIT_CONFIG_NAME).is_file():
            return place
    what = (
        "no such folder"
        if not directory.exists()
        else f"neither a run ({RESULT_NAME}) nor an edit ({EDIT_CONFIG_NAME})"
    )
    raise ValueError(f"{directory}: there is {what}")


def config_of(directory: Path, *, model: str | None = None) -> RunConfig:
    """The settings of a run; of a bare edit, its base model and the defaults.

    Raises:
        ValueError: if the folder is neither, or damaged.
    """
    if is_run(directory):
        require_whole(directory)
        config = RunConfig.from_values(read_config(directory / CONFIG_NAME))
        return config if model is None else config.with_values({"model": model})
    place = edit_in(directory)
    return RunConfig(model=model or base_named(place))


def load_base(config: RunConfig) -> TransformerBridge:
    """The base model of a run, where and as its settings say.

    Raises:
        ValueError: for an unknown model, device or dtype.
    """
    device = config.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    dtypes = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if config.dtype != "auto" and config.dtype not in dtypes:
        raise ValueError(f"dtype must be 'auto' or one of {', '.join(dtypes)}, got {config.dtype!r}")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"the device {device!r} cannot be used here: {str(error).splitlines()[0]}") from error
    return load_bridge(config.model, device=device, dtype=dtypes.get(config.dtype))


def open_run(
    directory: Path, settings: Mapping[str, Any] = MappingProxyType({}), *, model: str | None = None
) -> Opened:
    """Loads the base of a run or of a saved edit, and the edit.

    Args:
        directory: of a run, or of an edit.
        settings: name -> value, in place of the run's.
        model: the base, where it is now somewhere else than it was.

    Raises:
        ValueError: if the folder is neither, is damaged, or does not fit the model.
    """
    config = config_of(directory, model=model).with_values(settings)
    bridge = load_base(config)
    reft = Reft.from_pretrained(edit_in(directory), bridge=bridge)
    objective = training_task(config).objective(bridge) if is_run(directory) else None
    if objective is not None and list(objective.parameters()):
        if not (directory / HEAD_NAME).is_file():
            raise ValueError(f"{directory} is damaged: {HEAD_NAME}, the head that answers its task, is missing")
        try:
            objective.load_state_dict(load_file(directory / HEAD_NAME))
        except (RuntimeError, SafetensorError) as error:
            raise ValueError(f"{directory / HEAD_NAME} is damaged, or does not fit the run's task: {error}") from error
    return Opened(bridge, reft, config, objective)
