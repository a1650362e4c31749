"""The settings of one run. Each key of a TOML file, flag or `--set key=value` is a field here.

A run's folder holds all of them, so that `reftlens train RUN/config.toml` repeats the run.
"""

from __future__ import annotations

import difflib
import json
import sys
import types
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, Union, final, get_args, get_origin, get_type_hints

from reftlens.numbers import require_number

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib
CONFIG_NAME = "config.toml"
"""File name in a run's folder."""
STEPS = 300
"""Least number of steps on your own data, unless the settings say how many epochs."""


@final
@dataclass(frozen=True)
class RunConfig:
    """Settings of one run: model, edit, training and test data, and hyperparameters."""

    model: str
    """An embedded organism ("facts-small"), a local directory or a hub name."""
    task: str | None = None
    """Training task or training set, such as "commonsense_170k". Required unless `data` is given."""
    data: str | None = None
    """Your own examples instead of a task: JSON, JSON lines, CSV, Parquet, a `datasets` folder or a hub id."""
    prompt_field: str | None = None
    """Field of `data` and `eval_data` with the prompt. By default common layouts are recognised (`data.layouts`)."""
    completion_field: str | None = None
    """Field with the completion."""
    eval_tasks: tuple[str, ...] = ()
    """Tasks tested after training."""
    eval_data: str | None = None
    """Your own examples to test on after training, in the form of `data`."""
    eval_fraction: float = 0.0
    """Fraction of `data` to test on instead, such as 0.2. These examples are never trained on; every seed has the same ones."""
    source: str | None = None
    """Folder with the tasks' files; their published location by default."""
    split: str = "train"
    """Split of `task` for training."""
    validation_split: str | None = None
    """Split of `task` that selects the best epoch's edit; the last epoch's is kept by default."""
    validation_fraction: float = 0.0
    """Fraction of the training examples for this selection instead, such as 0.1. They are not trained on."""
    eval_split: str = "test"
    """Split of `eval_tasks` for testing."""
    n_train: int | None = None
    """Number of training examples, from the first; all by default."""
    n_eval: int | None = None
    """Number of test examples per task, from the first; all by default."""
    max_length: int | None = None
    """Maximum tokens of an example; longer ones are cut. The task's own value by default."""

    metric: str = "prefix"
    """How outputs on `eval_data` are compared: prefix (up to the target's end), exact, first word,
    rouge-l, chrf, or module:function.
    """

    method: str = "LoReFT"
    """Class of the edit: LoReFT, DiReFT, NoReFT, ConsReFT, LobiReFT, AdditiveLoReFT, RED, ..."""
    layers: tuple[int, ...] | Literal["all"] = "all"
    """Edited blocks."""
    rank: int | None = 4
    """Rank of each edit; None for a class without a rank."""
    positions: str = "f5+l5"
    """Edited prompt tokens, such as "f7+l7" or "l1"."""
    tied: bool = True
    """Whether the prefix and suffix of a layer share one edit."""
    hook: str = "hook_resid_post"
    """Activation point in a block."""

    epochs: int | None = None
    """Passes over the training examples. Default: 3 for a task; for `data` as many as make 300 steps, and 3 at least."""
    batch_size: int = 16
    """Examples in one forward pass."""
    gradient_accumulation: int = 1
    """Forward passes per step."""
    lr: float = 9e-4
    """Peak learning rate of AdamW."""
    schedule: str = "linear"
    """Name of a `transformers` schedule."""
    warmup_ratio: float = 0.0
    """Fraction of all steps over which the rate rises from zero."""
    weight_decay: float = 0.0
    """Weight decay of AdamW; not applied to biases and to an orthonormal R."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm."""
    dropout: float = 0.0
    """Fraction of each edited state, not only of the change, that a training step sets to zero."""
    l1: float = 0.0
    """Factor of the edits' L1 terms, for the classes that have one."""
    seed: int = 42
    """Seed of the edit's initialisation and of the order of examples."""

    eval_batch_size: int = 16
    """Test examples in one run of the model."""
    max_new_tokens: int | None = None
    """Maximum length of an answer in tokens. For this and the next six the task's own value is the
    default; on your own data, answers may be as long as the longest target.
    """
    num_beams: int | None = None
    """Number of beams in beam search."""
    temperature: float | None = None
    """Sampling temperature."""
    top_p: float | None = None
    """Sampling is limited to the most likely tokens with this total probability."""
    top_k: int | None = None
    """Sampling is limited to this number of most likely tokens."""
    no_repeat_ngram_size: int | None = None
    """No n-gram of this length is repeated."""
    repetition_penalty: float | None = None
    """Divides the scores of earlier tokens."""

    device: str = "auto"
    """"cpu", "cuda", ...; "auto" uses a GPU if there is one."""
    dtype: str = "auto"
    """Dtype of the base's weights: "float32", "bfloat16", ...; "auto" keeps the stored one."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """"bfloat16" trains a float32 base under autocast."""
    report_to: str = "none"
    """Logger of `transformers` during training: "wandb", "tensorboard", "trackio", "mlflow", ..."""
    save_every: int | None = None
    """Steps between checkpoints; one epoch by default."""

    def __post_init__(self) -> None:
        if self.task is not None and self.data is not None:
            raise ValueError(f"set task or data, not both: got task={self.task} and data={self.data}")
        for name in ("n_train", "n_eval", "max_length", "eval_batch_size", "rank"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        for name in ("eval_fraction", "validation_fraction"):
            require_number(name, getattr(self, name), least=0, below=1)
        if self.eval_fraction and self.data is None:
            raise ValueError("eval_fraction divides your own data: set data, or leave it out")
        if self.eval_fraction and self.eval_data is not None:
            raise ValueError("set eval_data or eval_fraction, not both")
        if self.validation_fraction and self.validation_split is not None:
            raise ValueError("set validation_split or validation_fraction, not both")

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> RunConfig:
        """Creates settings from values by name, as in a TOML file.

        Raises:
            ValueError: If a name is unknown (the message suggests the nearest), a value has the
                wrong type, or there is no model.
        """
        read = _read_all(values)
        if "model" not in read:
            raise ValueError('the settings have no model: set one, such as model = "facts-small"')
        return cls(**read)

    def with_values(self, values: Mapping[str, Any]) -> RunConfig:
        """Returns the settings with some values replaced; None clears an optional one."""
        return replace(self, **_read_all(values))

    def for_examples(self, n_examples: int) -> RunConfig:
        """Returns the settings with the number of epochs filled in.

        Args:
            n_examples: number of training examples.
        """
        if self.epochs is not None:
            return self
        steps = -(-n_examples // (self.batch_size * self.gradient_accumulation))
        return replace(self, epochs=3 if self.data is None else max(3, -(-STEPS // steps)))

    def to_toml(self) -> str:
        """Returns every setting that is not None, in a form that `read_config` reads back."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        # JSON and TOML write strings, numbers, true, false and lists in the same way.
        lines = [
            f"{name} = {json.dumps(value, ensure_ascii=False)}" for name, value in values.items() if value is not None
        ]
        # A rank that a class does not have is nothing, but not the default.
        missing = [name for name, value in values.items() if value is None and _DEFAULTS[name] is not None]
        text = "\n".join([*lines, *(f'{name} = ""' for name in missing)]) + "\n"
        # A run whose settings cannot be read back could not be repeated.
        assert RunConfig.from_values(tomllib.loads(text)) == self
        return text


_HINTS = get_type_hints(RunConfig)
_DEFAULTS = {field.name: field.default for field in fields(RunConfig)}


def read_config(path: Path) -> dict[str, Any]:
    """Reads the values in a TOML file, unchecked, for `RunConfig.from_values`.

    Raises:
        ValueError: If it is not TOML.
        OSError: If it cannot be read.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a TOML file: {error}") from error


def parse_settings(settings: Iterable[str]) -> dict[str, Any]:
    """Parses `key=value` texts. Values are TOML if valid (`lr=1e-3`, `layers=[1, 4]`), else strings; empty means None.

    Raises:
        ValueError: If a text lacks a name or an equals sign.
    """
    values: dict[str, Any] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals or not name.strip():
            raise ValueError(f"a setting must have the form key=value, got {setting!r}")
        try:
            values[name.strip()] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            values[name.strip()] = text.strip()
    return values


def _read_all(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: read_setting(name, value) for name, value in values.items()}


def read_setting(name: str, value: Any) -> Any:
    """Checks and converts one value: lists to tuples, integers to floats if required, "" to None."""
    if name not in _HINTS:
        near = difflib.get_close_matches(name, _HINTS, n=1)
        hint = f"Did you mean {near[0]}?" if near else f"Choose from: {', '.join(_HINTS)}"
        raise ValueError(f"Unknown setting {name!r}. {hint}")
    wanted = get_args(_HINTS[name]) if get_origin(_HINTS[name]) in _UNIONS else (_HINTS[name],)
    if value is None or value == "":
        value = None if type(None) in wanted else value
    for kind in wanted:
        if get_origin(kind) is tuple:
            member = get_args(kind)[0]
            # On the command line, lists are written as `eval_tasks=boolq,piqa` and `layers=3;9`.
            listed = _split(value, member) if isinstance(value, str | int) else value
            if isinstance(listed, list | tuple) and all(_is(part, member) for part in listed):
                return tuple(listed)
        elif get_origin(kind) is Literal:
            if value in get_args(kind):
                return value
        elif _is(value, kind):
            return float(value) if kind is float else value
    raise ValueError(f"{name} must be {' or '.join(map(_spoken, wanted))}, got {value!r}")


# `int | None` and `Optional[int]` have different origins.
_UNIONS = (types.UnionType, Union)


def _split(text: str | int, member: type) -> list[Any]:
    parts = [part.strip() for part in str(text).replace(";", ",").split(",")]
    if member is int and all(part.lstrip("-").isdigit() for part in parts):
        return [int(part) for part in parts]
    return parts


def _is(value: Any, kind: type) -> bool:
    # In Python a bool is an int, and rank = true would count as 1.
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, int | float) if kind is float else isinstance(value, kind)


def _spoken(kind: Any) -> str:
    if get_origin(kind) is tuple:
        return f"a list of {'integers' if get_args(kind)[0] is int else 'strings'}"
    if get_origin(kind) is Literal:
        return " or ".join(map(repr, get_args(kind)))
    names = {str: "a string", int: "an integer", float: "a number", bool: "true or false", type(None): "empty"}
    return names[kind]
