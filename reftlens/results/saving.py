"""Saves results to a sealed folder: tensors as safetensors, everything else as JSON. Nothing is ever unpickled.

A file names its classes. Only the classes that the caller gives are made from it, so a file cannot
choose what runs.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, final

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from reftlens.files.folder import Replacement
from reftlens.files.reading import consistently, read_bytes, read_json
from reftlens.files.seal import SEAL_NAME, digests_in, seal, warn_unchecked

T = TypeVar("T")
Classes = Mapping[str, type[Any]]
"""The dataclasses that a folder may hold, by name."""

_MOST_BYTES = 2**30
"""Maximum size in bytes of each file."""
_DAMAGE = (SafetensorError, KeyError, TypeError, AttributeError, ValueError, IndexError, ArithmeticError, RuntimeError)
"""What reading a damaged file raises."""


@final
@dataclass(frozen=True)
class Format:
    """One kind of folder."""

    name: str
    """Of its files, and in messages."""
    schema: int
    """The version that is written."""
    unsealed: int = 0
    """The last version without a seal."""

    @property
    def json_name(self) -> str:
        """The file that identifies such a folder."""
        return f"{self.name}.json"

    @property
    def tensors_name(self) -> str:
        """The file with the tensors."""
        return f"{self.name}.safetensors"


RESULT = Format("result", schema=1)


def write(value: object, directory: Path, form: Format, classes: Classes) -> Path:
    """Writes a dataclass to a folder, completely or not at all.

    Args:
        value: the dataclass.
        directory: the folder; replaced if it is of the same kind.
        form: the kind of folder.
        classes: the classes that reading will know.

    Raises:
        TypeError: If a value in it could not be read again.
        ValueError: If the folder holds anything else.
        OSError: If it cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    document = {"schema": form.schema, "result": _encode(value, "result", tensors, classes)}
    with Replacement(directory, marker=form.json_name) as folder:
        (folder / form.tensors_name).write_bytes(save({name: tensor.contiguous() for name, tensor in tensors.items()}))
        text = json.dumps(document, indent=1, allow_nan=False)
        (folder / form.json_name).write_text(text + "\n", encoding="utf-8")
        seal(folder)
    return directory


def read(folder: Path, kind: type[T], form: Format, classes: Classes) -> T:
    """Reads a folder that `write` wrote. The folder need not be trusted.

    Args:
        folder: the folder.
        kind: the class that it must hold.
        form: the kind of folder.
        classes: the only classes that are made from it.

    Raises:
        ValueError: If it is no such folder, is damaged, or holds another class.
        OSError: If it cannot be opened.
    """
    if not (folder / form.json_name).is_file():
        raise ValueError(
            f"{folder} is not a saved {form.name}: it has no {form.json_name}. Pass the folder that `save` wrote"
        )
    result = consistently(folder, lambda: _load(folder, form, classes))
    if not isinstance(result, kind):
        raise ValueError(
            f"{folder} must hold a {kind.__name__}, but holds a {type(result).__name__}: load it as what it is"
        )
    return result


def _load(folder: Path, form: Format, classes: Classes) -> object:
    try:
        digests = digests_in(folder)
        document = read_json(folder / form.json_name, most=_MOST_BYTES, digests=digests)
        schema = document["schema"]
        # Not isinstance, which takes True for the integer 1.
        if type(schema) is not int or not 1 <= schema <= form.schema:
            raise ValueError(
                f"it has schema {schema!r:.80}, but this version of reftlens reads schemas 1 to {form.schema}"
            )
        # Otherwise deleting the seal would switch the checks off.
        if digests is None and schema > form.unsealed:
            raise ValueError(f"{SEAL_NAME} is missing")
        tensors = load(read_bytes(folder / form.tensors_name, most=_MOST_BYTES, digests=digests))
        result = _decode(document["result"], tensors, classes)
        if is_dataclass(result):
            # Fields that do not fit together fail here, rather than when the result is shown.
            repr(result)
    except _DAMAGE as error:
        said = f"{error!s} is missing or unknown" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"the saved {form.name} in {folder} is damaged: {said:.500}. Copy or save it again") from error
    if digests is None:
        warn_unchecked(folder)
    return result


def _encode(value: Any, place: str, tensors: dict[str, Tensor], classes: Classes) -> Any:
    """Converts a value to plain JSON. Tensors go to `tensors` under their place; other non-JSON values record their type."""
    if isinstance(value, Tensor):
        while place in tensors:  # the dicts {"a": {"b.c": ...}} and {"a.b": {"c": ...}} give one place
            place += "'"
        # Two fields may share memory, which safetensors refuses.
        tensors[place] = value.detach().cpu().clone()
        return {"tensor": place}
    if is_dataclass(value) and not isinstance(value, type):
        _require_known(type(value), place, classes)
        inside = {f.name: _encode(getattr(value, f.name), f"{place}.{f.name}", tensors, classes) for f in fields(value)}
        return {"type": type(value).__name__, "fields": inside}
    if isinstance(value, dict):
        return {"dict": {key: _encode(item, _below(place, key), tensors, classes) for key, item in value.items()}}
    if isinstance(value, (list, tuple)):
        return [_encode(item, f"{place}.{index}", tensors, classes) for index, item in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        # JSON has no NaN and no infinity.
        return {"float": str(value)}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(
        f"{place} is a {type(value).__name__}, which cannot be saved: hold tensors, texts, numbers, None, tuples, dicts "
        "and dataclasses"
    )


def _require_known(cls: type[Any], place: str, classes: Classes) -> None:
    """Refuses a class of which reading would know nothing, or would make another class."""
    known = classes.get(cls.__name__)
    if known is None:
        raise TypeError(
            f"{place} is a {cls.__name__}, which could not be loaded again: extend `rl.results.Result`, or name it in the "
            "type of a field of such a class"
        )
    if known is not cls:
        raise TypeError(
            f"{place} is a {cls.__module__}.{cls.__qualname__}, which would be loaded as {known.__module__}."
            f"{known.__qualname__}: give the class another name, or make the result again if the class was defined again"
        )


def _below(place: str, key: object) -> str:
    """The place of an item of a dict. Names of tensors must be valid Unicode, which a key need not be."""
    if not isinstance(key, str):
        raise TypeError(f"{place} has the key {key!r:.80}, but keys must be texts to be saved")
    return f"{place}.{key.encode('utf-8', 'backslashreplace').decode()}"


def _decode(value: Any, tensors: Mapping[str, Tensor], classes: Classes) -> Any:
    if isinstance(value, list):
        return tuple(_decode(item, tensors, classes) for item in value)
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return tensors[value["tensor"]]
    if "float" in value:
        return float(value["float"])
    if "dict" in value:
        return {key: _decode(item, tensors, classes) for key, item in value["dict"].items()}
    if value["type"] not in classes:
        raise ValueError(
            f"it holds a {value['type']!r:.80}, which is no known class of results; import the module of a class of your own"
        )
    inside = value["fields"].items()
    return classes[value["type"]](**{name: _decode(item, tensors, classes) for name, item in inside})
