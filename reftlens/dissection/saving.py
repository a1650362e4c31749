"""Saves a dissection to a folder: tensors as safetensors, everything else as JSON. Nothing is ever unpickled."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from reftlens import results
from reftlens.dissection.found import Found
from reftlens.files.folder import Replacement
from reftlens.files.reading import consistently, read_bytes, read_json
from reftlens.files.seal import SEAL_NAME, digests_in, seal, warn_unchecked

F = TypeVar("F", bound=Found)

SCHEMA = 2
"""Version 1 had no seal."""
_MOST_BYTES = 2**30
"""Maximum size in bytes of each file."""
JSON_NAME = "dissection.json"
TENSORS_NAME = "dissection.safetensors"
_TYPES: dict[str, type[Any]] = {
    cls.__name__: cls
    for cls in (getattr(results, name) for name in results.__all__)
    if isinstance(cls, type) and is_dataclass(cls)
}


def save_dissection(result: Found, directory: Path) -> Path:
    """Writes the folder; see `Dissection.save`."""
    tensors: dict[str, Tensor] = {}
    document = {"schema": SCHEMA, "result": _encode(result, "result", tensors)}
    with Replacement(directory, marker=JSON_NAME) as folder:
        (folder / TENSORS_NAME).write_bytes(save({name: tensor.contiguous() for name, tensor in tensors.items()}))
        text = json.dumps(document, indent=1, allow_nan=False)
        (folder / JSON_NAME).write_text(text + "\n", encoding="utf-8")
        seal(folder)
    return directory


def read_dissection(folder: Path, kind: type[F]) -> F:
    """Reads a folder as this kind of results; see `load_dissection`."""
    if not (folder / JSON_NAME).is_file():
        raise ValueError(f"{folder} is not a saved dissection: it has no {JSON_NAME}")
    return consistently(folder, lambda: _load(folder, kind))


def _load(folder: Path, kind: type[F]) -> F:
    try:
        digests = digests_in(folder)
        document = read_json(folder / JSON_NAME, most=_MOST_BYTES, digests=digests)
        schema = document["schema"]
        if schema == SCHEMA and digests is None:
            raise ValueError(f"{SEAL_NAME} is missing")
        if type(schema) is not int or not 1 <= schema <= SCHEMA:
            raise ValueError(f"it has schema {schema!r:.80}, but this version of reftlens reads schemas 1 to {SCHEMA}")
        tensors = load(read_bytes(folder / TENSORS_NAME, most=_MOST_BYTES, digests=digests))
        result = _decode(document["result"], tensors, {**_TYPES, kind.__name__: kind})
        if not isinstance(result, kind):
            raise ValueError(f"it holds a {type(result).__name__}")
        repr(result)
    except (
        SafetensorError,
        KeyError,
        TypeError,
        AttributeError,
        ValueError,
        IndexError,
        ArithmeticError,
        RuntimeError,
    ) as error:
        said = f"{error!s} is missing or unknown" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"the saved dissection in {folder} is damaged: {said:.500}") from error
    if digests is None:
        warn_unchecked(folder)
    return result


def _encode(value: Any, place: str, tensors: dict[str, Tensor]) -> Any:
    """Converts a value to plain JSON. Tensors go to `tensors` under their place; other non-JSON values record their type."""
    if isinstance(value, Tensor):
        tensors[place] = value.detach().cpu().clone()
        return {"tensor": place}
    if is_dataclass(value) and not isinstance(value, type):
        inside = {f.name: _encode(getattr(value, f.name), f"{place}.{f.name}", tensors) for f in fields(value)}
        return {"type": type(value).__name__, "fields": inside}
    if isinstance(value, dict):
        return {"dict": {str(key): _encode(item, f"{place}.{key}", tensors) for key, item in value.items()}}
    if isinstance(value, (list, tuple)):
        return [_encode(item, f"{place}.{index}", tensors) for index, item in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"{place} is a {type(value).__name__}, which has no JSON form")


def _decode(value: Any, tensors: dict[str, Tensor], types: Mapping[str, type[Any]]) -> Any:
    if isinstance(value, list):
        return tuple(_decode(item, tensors, types) for item in value)
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return tensors[value["tensor"]]
    if "float" in value:
        return float(value["float"])
    if "dict" in value:
        return {key: _decode(item, tensors, types) for key, item in value["dict"].items()}
    return types[value["type"]](**{name: _decode(item, tensors, types) for name, item in value["fields"].items()})
