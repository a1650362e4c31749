"""Checks pyreft's `.bin` files before torch reads them. They are torch archives: a zip of a pickle and raw numbers.

`torch.load(weights_only=True)` executes nothing, but it allocates any amount of memory: it unpacks
a zip to a thousand times its size, and makes a `bytearray` of any length that a pickle requests. So
the pickle may use only the few opcodes and names of a plain state dict, and every size in it must
match the data.

torch names the folder inside the zip after the target file, so a file that was renamed over another
one is detected.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from reftlens.arguments import warn
from reftlens.files.seal import UncheckedWarning

_MOST_PICKLE = 2**20
"""Maximum size in bytes; the pickle of a state dict has a few hundred."""
_MOST_MEMO = 2**16
_NAMELESS = "archive"
"""Name of the inner folder if torch wrote to a stream, or to a path with non-ASCII letters."""
_PLAIN = """
PROTO GLOBAL BINPUT LONG_BINPUT BINGET LONG_BINGET MARK TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_TUPLE EMPTY_DICT BINUNICODE BININT
BININT1 BININT2 NEWTRUE NEWFALSE NONE BINPERSID REDUCE BUILD SETITEM SETITEMS STOP
"""
_OPCODES = frozenset(_PLAIN.split())
"""Opcodes in the pickle of a state dict. None of them copies data, or looks up a name that is stored as data."""


class StoredTensor(NamedTuple):
    """The description of a tensor in its archive, before its data are read."""

    storage: tuple[Any, ...]
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    requires_grad: bool
    hooks: Any
    metadata: Any = None

    @property
    def dtype(self) -> torch.dtype:
        return self.storage[1]


def _parameter(tensor: StoredTensor, *_: object) -> StoredTensor:
    return tensor


_NAMES: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): StoredTensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch", "FloatStorage"): torch.float32,
    ("torch", "DoubleStorage"): torch.float64,
    ("torch", "HalfStorage"): torch.float16,
    ("torch", "BFloat16Storage"): torch.bfloat16,
    ("torch", "LongStorage"): torch.int64,
}
"""All names that the pickle may use, with their stand-ins here."""


def dump(state: Mapping[str, Tensor], name: str) -> bytes:
    """Returns the archive that `torch.save` writes to `name.bin`, in any folder.

    Args:
        state: a state dict.
        name: name of the file, without its extension.
    """
    stream, named = io.BytesIO(), io.BytesIO()
    torch.save(state, stream)
    with zipfile.ZipFile(stream) as old, zipfile.ZipFile(named, "w", zipfile.ZIP_STORED) as new:
        for record in old.namelist():
            # ZipInfo has a fixed date, so the same edit gives the same bytes.
            new.writestr(zipfile.ZipInfo(f"{name}/{record.removeprefix(f'{_NAMELESS}/')}"), old.read(record))
    return named.getvalue()


def describe(data: bytes, name: str) -> dict[str, StoredTensor]:
    """Describes the tensors in a torch archive from its pickle, and checks every size against the data.

    Args:
        data: the archive.
        name: name of its file, without the extension.

    Raises:
        ValueError: If it is not the archive of a plain state dict, or was saved under another name.
    """
    try:
        if not data.startswith(b"PK\x03\x04"):
            raise ValueError("it is not a zip file")
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            records = {info.filename: info for info in archive.infolist()}
            unpacked = sum(info.file_size for info in archive.infolist())
            # Uncompressed records that do not overlap cannot be larger than the file: no zip bomb.
            if len(records) != len(archive.infolist()) or unpacked > len(data):
                raise ValueError("its records overlap or are larger than the file")
            if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
                raise ValueError("it is compressed, which torch archives never are")
            root = next((name.removesuffix("/data.pkl") for name in records if name.endswith("/data.pkl")), None)
            # After the size checks, because this reads every record.
            damaged = archive.testzip()
            if damaged is not None:
                raise ValueError(f"the checksum of {damaged} does not match")
            if root not in (None, name, _NAMELESS):
                raise ValueError(f"it was saved as {root}.bin, but is stored here as {name}.bin")
            if root == _NAMELESS:
                message = (
                    f"{name}.bin does not record its own name, so it cannot be checked that the file was not swapped"
                )
                warn(message, UncheckedWarning)
            if root is None or records[f"{root}/data.pkl"].file_size > _MOST_PICKLE:
                raise ValueError("it does not contain the pickle of a state dict")
            state = _unpickle(archive.read(f"{root}/data.pkl"))
            for tensor in state.values():
                _check(tensor, {name: info.file_size for name, info in records.items()}, root)
    except Exception as error:  # A damaged zip or pickle raises almost anything.
        raise ValueError(f"it is not the torch archive of a state dict: {error!s:.200}") from error
    return state


def load(data: bytes) -> dict[str, Tensor]:
    """Loads the tensors of an archive. Call `describe` first and check its result."""
    try:
        return dict(torch.load(io.BytesIO(data), map_location="cpu", weights_only=True))
    except (RuntimeError, pickle.UnpicklingError, ValueError, TypeError) as error:
        raise ValueError(f"torch cannot read it: {error!s:.200}") from error


class _Unpickler(pickle.Unpickler):
    """Unpickles only descriptions of tensors; it cannot create anything else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _NAMES:
            raise ValueError(
                f"its pickle imports {module}.{name}, which a state dict never needs; nothing was executed"
            )
        return _NAMES[module, name]

    def persistent_load(self, pid: Any) -> tuple[str, torch.dtype, int]:
        kind, dtype, record, _, numel = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype) or type(numel) is not int:
            raise ValueError("it has a storage of unknown type")
        return str(record), dtype, numel


def _unpickle(data: bytes) -> dict[str, StoredTensor]:
    for opcode, argument, _ in pickletools.genops(data):
        # A memo index makes the unpickler allocate that many places.
        if opcode.name not in _OPCODES or (opcode.name == "LONG_BINPUT" and int(argument or 0) > _MOST_MEMO):
            raise ValueError(f"its pickle uses {opcode.name}, which a state dict never needs; nothing was executed")
    state = _Unpickler(io.BytesIO(data)).load()
    if not isinstance(state, dict):
        raise ValueError("it does not hold a state dict")
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, StoredTensor):
            raise ValueError("its state dict holds other values than named tensors")
    return dict(state)


def _check(tensor: StoredTensor, sizes: dict[str, int], root: str) -> None:
    record, dtype, numel = tensor.storage
    numbers = (tensor.offset, *tensor.shape, *tensor.stride)
    if any(type(number) is not int or number < 0 for number in numbers) or len(tensor.shape) != len(tensor.stride):
        raise ValueError("a tensor has an invalid shape or stride")
    if sizes.get(f"{root}/data/{record}") != numel * dtype.itemsize:
        raise ValueError("the size of a tensor's storage does not match its description")
    last = tensor.offset + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride, strict=True))
    # Strides may repeat numbers: a stride of 0 would make a huge tensor of a small storage.
    if math.prod(tensor.shape) > numel or (math.prod(tensor.shape) and last >= numel):
        raise ValueError("a tensor reaches beyond its storage")
