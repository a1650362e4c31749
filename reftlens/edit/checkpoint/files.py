"""Reads and writes the two files of a saved edit, within limits on their size and contents.

A large config is refused without reading it. The config lists the tensors. The tensor file may not
be larger than these tensors, its bytes must have the checksum in the config, and only finite floats
are accepted.
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
from safetensors.torch import load, save
from torch import Tensor

from reftlens.files.reading import MOST_TEXT, read_json, require_sealed
from reftlens.files.seal import SEAL_NAME, digests_in, seal

SCHEMA = 3
"""Version 1 has no revision of the base and no checksum of the tensors. Version 2 has no seal over the whole folder."""
CONFIG_NAME = "reft_config.json"
TENSORS_NAME = "reft.safetensors"

_MOST_BYTES_EACH = 8
"""Bytes per number."""


def write(folder: Path, document: Mapping[str, Any], tensors: Mapping[str, Tensor], base: Mapping[str, Any]) -> None:
    """Writes both files into a folder, the config last, and seals the folder.

    Args:
        folder: a folder that holds nothing but the card.
        document: what `layout.to_document` gives.
        tensors: the state of the edit.
        base: the stamp of its model.

    Raises:
        ValueError: If a tensor is not finite, since such an edit could not be loaded.
    """
    for name, tensor in tensors.items():
        # Loading would refuse it, and by then the training may be out of reach.
        if not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{name} holds NaN or infinite values, so the edit is not saved: train it again")
    # safetensors refuses views with strides, such as the Q of torch.linalg.qr.
    data = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    (folder / TENSORS_NAME).write_bytes(data)
    config = {"schema": SCHEMA, **document, "tensors_sha256": hashlib.sha256(data).hexdigest(), "base": dict(base)}
    text = json.dumps(config, indent=2, allow_nan=False) + "\n"
    (folder / CONFIG_NAME).write_text(text, encoding="utf-8")
    # Last, since the seal lists the checksums of all other files.
    seal(folder)


def refuse_pyreft(directory: Path) -> None:
    """Says how to convert a folder that pyreft saved, wherever an edit is wanted and is not there.

    Args:
        directory: any folder.

    Raises:
        ValueError: If it is a pyreft checkpoint.
    """
    if any(directory.glob("**/intkey_*.bin")):
        raise ValueError(
            f"{directory} is a pyreft checkpoint: convert it first, with the model and the positions that it was trained with: "
            f"reftlens convert {directory} --model MODEL --positions f5+l5 --out edit"
        )


def read_config(directory: Path) -> tuple[dict[str, Any], dict[str, str] | None]:
    """Reads the config of a saved edit, of this schema or an older one.

    Returns:
        The config, and the folder's checksums (None for older schemas, which do not have them).

    Raises:
        ValueError: If the config is missing, damaged, too large, or of a newer schema.
        OSError: If the config cannot be opened.
    """
    if not (directory / CONFIG_NAME).is_file():
        refuse_pyreft(directory)
        raise ValueError(f"{directory} is not a saved edit: it has no {CONFIG_NAME}")
    try:
        digests = digests_in(directory)
        config = read_json(directory / CONFIG_NAME, digests=digests)
        schema = config["schema"]
        if not isinstance(config["base"], dict):
            raise ValueError(f"the stamp must be an object, got {type(config['base']).__name__}")
        # Otherwise deleting the seal would switch the checks off.
        if schema == SCHEMA and digests is None:
            raise ValueError(f"{SEAL_NAME} is missing")
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"the saved edit in {directory} is damaged: {error!s:.500}") from error
    if type(schema) is not int or not 1 <= schema <= SCHEMA:
        raise ValueError(
            f"{directory} has schema {schema!r:.80}, but this version of reftlens reads schemas 1 to {SCHEMA}"
        )
    return config, digests


def read_tensors(
    directory: Path, config: Mapping[str, Any], shapes: Mapping[str, torch.Size], digests: Mapping[str, str] | None
) -> dict[str, Tensor]:
    """Reads the tensors of a saved edit.

    Args:
        directory: the folder.
        config: the config from `read_config`.
        shapes: the shape of every tensor that the config lists.
        digests: the checksums from `read_config`.

    Raises:
        ValueError: If the file is damaged, or contains anything but these tensors as finite floats.
        OSError: If the file cannot be opened.
    """
    path = directory / TENSORS_NAME
    try:
        data = _read_bounded(path, sum(math.prod(shape) for shape in shapes.values()) * _MOST_BYTES_EACH)
        require_sealed(TENSORS_NAME, data, digests)
        digest = config.get("tensors_sha256")
        if config["schema"] > 1 and hashlib.sha256(data).hexdigest() != digest:
            raise ValueError(f"the SHA-256 of {TENSORS_NAME} does not match the one in {CONFIG_NAME}")
        tensors = load(data)
        if set(tensors) != set(shapes):
            different = ", ".join(sorted(map(repr, set(tensors) ^ set(shapes))))
            raise ValueError(f"these tensors are missing or unexpected: {different:.300}")
        for name, tensor in tensors.items():
            _check_tensor(name, tensor, shapes[name])
    except (SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"the saved edit in {directory} is damaged: {error!s:.500}") from error
    return tensors


def _read_bounded(path: Path, most: int) -> bytes:
    """Reads a safetensors file: the length of the header, the header, and at most `most` bytes of numbers."""
    if not path.is_file():
        raise ValueError(f"{path.name} is missing or not a regular file")
    with path.open("rb") as handle:
        # The format begins with the length of its header, which may exceed all tensors.
        header = int.from_bytes(handle.read(8), "little")
        size = path.stat().st_size
        if header > MOST_TEXT or size > 8 + header + most:
            raise ValueError(
                f"{path.name} has {size:,} bytes, {header:,} of them in its header; {CONFIG_NAME} describes tensors of at most "
                f"{most:,} bytes"
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
