"""Opens the folder of a finished run, or a saved edit, for tests, generation and analysis.

config.toml      every setting: `reftlens train RUN/config.toml` is the same run again
versions.json    libraries, Python, device
log.jsonl        a line for each step, and for each look at the validation set
edit/            the edit, as `Reft.save_pretrained` writes it
head.safetensors what was trained beside the edit, where the objective has a head
outputs/ one file a task: what the edited model said to each example, and whether that is right
result.json scores, sizes, times
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, final

from safetensors import SafetensorError
from safetensors.torch import load_file
from transformer_lens.model_bridge import TransformerBridge

from reftlens.bridge import load_bridge, own_device
from reftlens.edit.checkpoint import CONFIG_NAME as EDIT_CONFIG_NAME
from reftlens.edit.checkpoint import base_named, refuse_pyreft
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
"""Maximum size in bytes of each file."""


@final
@dataclass(frozen=True)
class Opened:
    """A model and an edit of it, ready to use."""

    bridge: TransformerBridge
    reft: Reft
    config: RunConfig
    """Settings of the run. For a bare edit: its model, and the defaults."""
    objective: Objective | None
    """The objective with its trained head; None for a bare edit."""


def is_run(directory: Path) -> bool:
    """Whether a folder holds a finished run.

    Raises:
        ValueError: If it is a run that lacks a part. Its edit alone would run with other settings.
    """
    missing = [name for name in (CONFIG_NAME, RESULT_NAME) if not (directory / name).is_file()]
    if not missing:
        return True
    try:
        sealed = digests_in(directory) or {}
    except ValueError:
        # Any other fault is reported by the function that reads it.
        sealed = {}
    # A seal that names the missing file shows that it was there.
    if (len(missing) == 1 and (directory / EDIT_NAME).is_dir()) or sealed.keys() & set(missing):
        raise ValueError(f"the run in {directory} is damaged: {missing[0]} is missing or not a regular file")
    return False


def require_whole(directory: Path) -> None:
    """Compares the settings, the result and the head of a run with its seal. The edit has a separate seal.

    Raises:
        ValueError: If one of them is not what the run wrote.
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
    """Returns the folder of the edit in a run's folder, or the folder itself if it is an edit.

    Raises:
        ValueError: If there is no edit.
    """
    for place in (directory / EDIT_NAME, directory):
        if (place / EDIT_CONFIG_NAME).is_file():
            return place
    refuse_pyreft(directory)
    what = (
        "does not exist"
        if not directory.exists()
        else f"holds neither a run ({RESULT_NAME}) nor an edit ({EDIT_CONFIG_NAME})"
    )
    raise ValueError(f"{directory} {what}")


def config_of(directory: Path, *, model: str | None = None) -> RunConfig:
    """Returns the settings of a run. For a bare edit: its base model, and the defaults.

    Raises:
        ValueError: If the folder is neither, or damaged.
    """
    if is_run(directory):
        require_whole(directory)
        config = RunConfig.from_values(read_config(directory / CONFIG_NAME))
        return config if model is None else config.with_values({"model": model})
    place = edit_in(directory)
    return RunConfig(model=model or base_named(place))


def load_base(config: RunConfig) -> TransformerBridge:
    """Loads the base model of a run, with the device and dtype in its settings.

    Raises:
        ValueError: If the model, device or dtype is unknown.
    """
    return load_bridge(config.model, device=own_device(config.device), dtype=config.dtype)


def open_run(
    directory: Path, settings: Mapping[str, Any] = MappingProxyType({}), *, model: str | None = None
) -> Opened:
    """Loads the base of a run or of a saved edit, and the edit.

    Args:
        directory: the folder of a run or of an edit.
        settings: values by name that replace the run's.
        model: the base, if its location has changed.

    Raises:
        ValueError: If the folder is neither, is damaged, or does not fit the model.
    """
    config = config_of(directory, model=model).with_values(settings)
    bridge = load_base(config)
    reft = Reft.from_pretrained(edit_in(directory), bridge=bridge)
    objective = training_task(config).objective(bridge) if is_run(directory) else None
    if objective is not None and list(objective.parameters()):
        if not (directory / HEAD_NAME).is_file():
            raise ValueError(f"{directory} is damaged: {HEAD_NAME}, the trained head of its task, is missing")
        try:
            objective.load_state_dict(load_file(directory / HEAD_NAME))
        except (RuntimeError, SafetensorError) as error:
            raise ValueError(f"{directory / HEAD_NAME} is damaged or does not fit the run's task: {error}") from error
    return Opened(bridge, reft, config, objective)
