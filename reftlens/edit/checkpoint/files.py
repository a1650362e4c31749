"""The two files of a saved edit, written and read; and the limits within which what they say is believed.

A config is small, so a large one is refused unread. It says which tensors there are; the file of the tensors may then be
as large as those are and no larger, its bytes have the digest in the config, and only finite floats are taken from it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

SCHEMA = 2
"""Version 1 had no revision of the base and no digest of the tensors."""
CONFIG_NAME = "reft_config.json"
TENSORS_NAME = "reft.safetensors"

_MOST_TEXT = 4 * 2**20
"""Bytes of a config, and of the header of a file of tensors."""
_MOST_BYTES_EACH = 8
"""Bytes of one number."""


def write(folder: Path, document: Mapping[str, Any], tensors: Mapping[str, Tensor], base: Mapping[str, Any]) -> None:
    """Writes both files into a folder, the config last: a folder that has it is whole.

    Args:
        folder: an empty folder.
        document: what `layout.to_document` gives.
        tensors: the state of the edit.
        base: the stamp of its model.
    """
    path = folder / TENSORS_NAME
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    config = {"schema": SCHEMA, **document, "tensors_sha256": digest, "base": dict(base)}
    (folder / CONFIG_NAME).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def read_config(directory: Path) -> dict[str, Any]:
    """Reads the config of a saved edit, of this schema or an older one.

    Raises:
        ValueError: if there is none, or it is damaged, too large, or of a newer schema.
    """
    path = directory / CONFIG_NAME
    if not path.is_file():
        raise ValueError(f"{directory} is not a saved edit: it has no {CONFIG_NAME}")
    try:
        size = path.stat().st_size
        if size > _MOST_TEXT:
            raise ValueError(f"{CONFIG_NAME} has {size:,} bytes, and no config has more than {_MOST_TEXT:,}")
        config = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_constant)
        schema = config["schema"]
        if not isinstance(config["base"], dict):
            raise ValueError(f"the stamp must be an object, got {type(config['base']).__name__}")
    # A JSONDecodeError and a UnicodeDecodeError are ValueErrors; deep nesting is a RecursionError.
    except (OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"the saved edit in {directory} is damaged: {error!s:.500}") from error
    if schema not in (1, SCHEMA):
        raise ValueError(f"{directory} has schema {schema!r:.80}; this version of reftlens reads schemas 1 to {SCHEMA}")
    return config


def read_tensors(directory: Path, config: Mapping[str, Any], shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """Reads the tensors of a saved edit.

    Args:
        directory: the folder.
        config: what `read_config` gave.
        shapes: of every tensor that the config calls for.

    Raises:
        ValueError: if the file is damaged, or holds anything else than these tensors, as finite floats.
    """
    path = directory / TENSORS_NAME
    try:
        data = _read_bounded(path, sum(math.prod(shape) for shape in shapes.values()) * _MOST_BYTES_EACH)
        digest = config.get("tensors_sha256")
        if config["schema"] > 1 and hashlib.sha256(data).hexdigest() != digest:
            raise ValueError(f"{TENSORS_NAME} does not have the SHA-256 that {CONFIG_NAME} gives for it")
        tensors = load(data)
        if set(tensors) != set(shapes):
            different = ", ".join(sorted(map(repr, set(tensors) ^ set(shapes))))
            raise ValueError(f"tensors that are missing or too many: {different:.300}")
        for name, tensor in tensors.items():
            _check_tensor(name, tensor, shapes[name])
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"the saved edit in {directory} is damaged: {error!s:.500}") from error
    return tensors


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no number of a config")


def _read_bounded(path: Path, most: int) -> bytes:
    """The bytes of a safetensors file: the length of the header, the header, and at most this many bytes of numbers."""
    if not path.is_file():
        raise ValueError(f"{path.name} is missing, or not a file")
    with path.open("rb") as handle:
        header = int.from_bytes(handle.read(8), "little")
        size = path.stat().st_size
        if header > _MOST_TEXT or size > 8 + header + most:
            raise ValueError(
                f"{path.name} has {size:,} bytes, and a header of {header:,}: more than the {most:,} bytes of numbers that "
                f"{CONFIG_NAME} calls for"
            )
        handle.seek(0)
        return handle.read(size)


def _check_tensor(name: str, tensor: Tensor, shape: torch.Size) -> None:
    if tensor.shape != shape:
        raise ValueError(f"{name} must be {list(shape)}, got {list(tensor.shape)}")
    if tensor.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"{name} must be float32 or float64, got {str(tensor.dtype).removeprefix('torch.')}")
    if not bool(torch.isfinite(tensor).all()):
        raise ValueError(f"{name} holds NaN or infinite values")
