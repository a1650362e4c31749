"""The settings of one run, flat: what a TOML file, a flag and `--set key=value` name is a field here.

A run's folder holds them all, so that `reftlens train RUN/config.toml` is the same run again.
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

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib
CONFIG_NAME = "config.toml"
"""In a run's folder."""


@final
@dataclass(frozen=True)
class RunConfig:
    """One run: a model, an edit, what it is trained and tested on, and how."""

    model: str
    """An embedded organism ("facts-small"), a local directory or a hub name."""
    task: str | None = None
    """What is learned: a task or a training set, such as "commonsense_170k". Wanted unless `data` is given."""
    data: str | None = None
    """Your own examples instead of a task: JSON lines with "prompt" and "completion"."""
    eval_tasks: tuple[str, ...] = ()
    """Tasks tested after training."""
    eval_data: str | None = None
    """Your own examples to test on after training, in the form of `data`."""
    source: str | None = None
    """Folder with the tasks' files; where they are published if not given."""
    split: str = "train"
    """Part of `task` that is trained on."""
    validation_split: str | None = None
    """Part of `task` by which the edit that is kept is chosen, among those after each epoch; the last if not given."""
    eval_split: str = "test"
    """Part of `eval_tasks` that is tested on."""
    n_train: int | None = None
    """Only so many training examples, the first ones."""
    n_eval: int | None = None
    """Only so many test examples of each task, the first ones."""
    max_length: int | None = None
    """Tokens of an example, at most; what is longer is cut. The task's own if not given."""

    method: str = "LoReFT"
    """Class of the edit: LoReFT, DiReFT, NoReFT, ConsReFT, LobiReFT, AdditiveLoReFT, RED, ..."""
    layers: tuple[int, ...] | Literal["all"] = "all"
    """Blocks that are edited."""
    rank: int | None = 4
    """Of each edit; without one for a class that has none."""
    positions: str = "f5+l5"
    """Edited prompt tokens, such as "f7+l7" or "l1"."""
    tied: bool = True
    """One edit for prefix and suffix of a layer, or one for each."""
    hook: str = "hook_resid_post"
    """Activation point in a block."""

    epochs: int = 3
    """Passes over the training examples."""
    batch_size: int = 16
    """Examples in one forward pass."""
    gradient_accumulation: int = 1
    """Forward passes for each step."""
    lr: float = 9e-4
    """Peak learning rate of AdamW."""
    schedule: str = "linear"
    """Name of a `transformers` schedule."""
    warmup_ratio: float = 0.0
    """Part of all steps over which the rate rises from zero."""
    weight_decay: float = 0.0
    """AdamW's; of biases and of an orthonormal R there is none."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm."""
    dropout: float = 0.0
    """Part of each edited state, not of the change alone, that a training step sets to zero."""
    l1: float = 0.0
    """Factor of the edits' L1 terms, for the classes that have one."""
    seed: int = 42
    """Of the edit's first weights and of the order of examples."""

    eval_batch_size: int = 16
    """Test examples in one run of the model."""
    max_new_tokens: int | None = None
    """Length of an answer in tokens, at most. This and the next six are the task's own if not given."""
    num_beams: int | None = None
    """Continuations followed side by side."""
    temperature: float | None = None
    """Answers are drawn at random at this temperature."""
    top_p: float | None = None
    """Drawn among the likeliest tokens that together have this probability."""
    top_k: int | None = None
    """Drawn among so many of the likeliest tokens."""
    no_repeat_ngram_size: int | None = None
    """No run of so many tokens comes twice."""
    repetition_penalty: float | None = None
    """Divides the scores of tokens that were there before."""

    device: str = "auto"
    """"cpu", "cuda", ...; "auto" takes a GPU where there is one."""
    dtype: str = "auto"
    """Of the base's weights: "float32", "bfloat16", ...; "auto" is as they are stored."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """"bfloat16" trains a float32 base under autocast."""
    save_every: int | None = None
    """Steps between checkpoints; once an epoch if not given."""

    def __post_init__(self) -> None:
        if self.task is not None and self.data is not None:
            raise ValueError(f"task ({self.task}) and data ({self.data}) are both given: a run learns one of them")
        for name in ("n_train", "n_eval", "max_length", "eval_batch_size", "rank"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> RunConfig:
        """Settings by name, as a TOML file has them.

        Raises:
            ValueError: for a name that does not exist (it says the nearest), a value of another kind, or no model.
        """
        read = _read_all(values)
        if "model" not in read:
            raise ValueError('there is no model: give one, such as model = "facts-small"')
        return cls(**read)

    def with_values(self, values: Mapping[str, Any]) -> RunConfig:
        """The same settings with some replaced; None puts an optional one back to nothing."""
        return replace(self, **_read_all(values))

    def to_toml(self) -> str:
        """Every setting, in a form that `read_config` reads back; those that are nothing are left out."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        # Strings, numbers, true, false and lists are written alike in JSON and TOML.
        lines = [
            f"{name} = {json.dumps(value, ensure_ascii=False)}" for name, value in values.items() if value is not None
        ]
        # A rank that a class does not have is nothing, but not the default.
        missing = [name for name, value in values.items() if value is None and _DEFAULTS[name] is not None]
        text = "\n".join([*lines, *(f'{name} = ""' for name in missing)]) + "\n"
        assert RunConfig.from_values(tomllib.loads(text)) == self
        return text


_HINTS = get_type_hints(RunConfig)
_DEFAULTS = {field.name: field.default for field in fields(RunConfig)}


def read_config(path: Path) -> dict[str, Any]:
    """The values in a TOML file, unchecked, for `RunConfig.from_values`.

    Raises:
        ValueError: if it is not TOML.
        OSError: if it cannot be read.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a TOML file: {error}") from error


def parse_settings(settings: Iterable[str]) -> dict[str, Any]:
    """`key=value` texts as values: TOML where it is TOML (`lr=1e-3`, `layers=[1, 4]`), else a string; empty is nothing.

    Raises:
        ValueError: for one without a name and an equals sign.
    """
    values: dict[str, Any] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals or not name.strip():
            raise ValueError(f"a setting is written key=value, got {setting!r}")
        try:
            values[name.strip()] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            values[name.strip()] = text.strip()
    return values


def _read_all(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _read(name, value) for name, value in values.items()}


def _read(name: str, value: Any) -> Any:
    """One value, checked; lists become tuples, whole numbers reals where those are wanted, "" nothing."""
    if name not in _HINTS:
        near = difflib.get_close_matches(name, _HINTS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(_HINTS)}"
        raise ValueError(f"there is no setting {name!r}: {hint}")
    wanted = get_args(_HINTS[name]) if get_origin(_HINTS[name]) in _UNIONS else (_HINTS[name],)
    if value is None or value == "":
        value = None if type(None) in wanted else value
    for kind in wanted:
        if get_origin(kind) is tuple:
            member = get_args(kind)[0]
            # `eval_tasks=boolq,piqa` and `layers=3;9` are how one writes lists on a command line.
            listed = _split(value, member) if isinstance(value, str | int) else value
            if isinstance(listed, list | tuple) and all(_is(part, member) for part in listed):
                return tuple(listed)
        elif get_origin(kind) is Literal:
            if value in get_args(kind):
                return value
        elif _is(value, kind):
            return float(value) if kind is float else value
    raise ValueError(f"{name} must be {' or '.join(map(_spoken, wanted))}, got {value!r}")


_UNIONS = (types.UnionType, Union)


def _split(text: str | int, member: type) -> list[Any]:
    parts = [part.strip() for part in str(text).replace(";", ",").split(",")]
    if member is int and all(part.lstrip("-").isdigit() for part in parts):
        return [int(part) for part in parts]
    return parts


def _is(value: Any, kind: type) -> bool:
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, int | float) if kind is float else isinstance(value, kind)


def _spoken(kind: Any) -> str:
    if get_origin(kind) is tuple:
        return f"a list of {'whole numbers' if get_args(kind)[0] is int else 'texts'}"
    if get_origin(kind) is Literal:
        return " or ".join(map(repr, get_args(kind)))
    names = {str: "text", int: "a whole number", float: "a number", bool: "true or false", type(None): "nothing"}
    return names[kind]
