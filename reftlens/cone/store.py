"""Stores base runs between epochs: in memory, or memory-mapped in a folder, each up to a number of bytes.

A folder records its model and data, and raises an error for any other. Each run in it is one
safetensors file, written atomically, with a checksum of its contents, its row, and the folder's
model and data. A run whose checksum does not match is deleted and computed again. If the disk is
full, runs are kept in memory instead, and the log says so.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from reftlens.files.folder import UNFINISHED, write_whole
from reftlens.files.reading import read_json

logger = logging.getLogger(__name__)

MARKER = "base_runs.json"
_DIGEST = "sha256"
"""Among the numbers of a file."""


@final
@dataclass(frozen=True, eq=False)
class Run:
    """Tensors of one base run by name, with its integers (such as the first column)."""

    tensors: Mapping[str, Tensor]
    numbers: Mapping[str, int] = field(default_factory=dict)

    def n_bytes(self) -> int:
        """Memory of the tensors in bytes."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors.values())


@final
class InMemory:
    """Keeps runs in memory, first come, first served, up to a budget."""

    def __init__(self, max_bytes: int) -> None:
        """Args: max_bytes: total size of the tensors."""
        self.max_bytes, self.n_bytes = max_bytes, 0
        self._runs: dict[int, Run] = {}

    def get(self, row: int) -> Run | None:
        """Returns the run of an example; None if it is not stored."""
        return self._runs.get(row)

    def put(self, row: int, run: Run) -> bool:
        """Stores a run. Returns False if it does not fit."""
        if self.n_bytes + run.n_bytes() > self.max_bytes:
            return False
        self.n_bytes += run.n_bytes()
        self._runs[row] = run
        return True


@final
class OnDisk:
    """Keeps runs in a folder between training runs. They are memory-mapped when read."""

    def __init__(
        self,
        directory: Path | str,
        *,
        made_for: Mapping[str, str],
        max_bytes: int,
        memory_bytes: int = 0,
        device: str | torch.device = "cpu",
    ) -> None:
        """Opens or creates the folder. Several processes may share one.

        Args:
            directory: the folder.
            made_for: name -> checksum of what the runs depend on (model, data and layout).
            max_bytes: total size of the files; per process, if several write.
            memory_bytes: size of tensors in memory, once the folder cannot be written any more.
            device: device of the runs that are read.

        Raises:
            ValueError: If the folder holds base runs of another model or other data, or something
                else.
            OSError: If the folder cannot be created or read. A full disk is not an error.
        """
        self.directory, self.max_bytes, self.device = Path(directory), max_bytes, device
        # Part of every file's digest, so that a file copied from another folder counts as damaged.
        self._made_for = json.dumps(dict(made_for), sort_keys=True)
        self._instead: InMemory | None = None
        self._memory_bytes = memory_bytes
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            _claim(self.directory, dict(made_for))
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise OSError(
                    f"hold_dir={directory} cannot be used ({error.strerror}): choose another folder"
                ) from error
            self._go_on_in_memory(error)
        self.n_bytes = sum(map(_size, self.directory.rglob("*.safetensors")))
        self._checked: set[int] = set()

    def get(self, row: int) -> Run | None:
        """Returns the run of an example; None if it is not stored or is damaged."""
        kept = self._instead.get(row) if self._instead is not None else None
        place = self._place(row)
        if kept is not None or not place.exists():
            return kept
        try:
            if not place.is_file():
                raise ValueError("it is not a regular file")
            with safe_open(place, framework="pt") as file:
                numbers = dict(file.metadata() or {})
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            digest = numbers.pop(_DIGEST, None)
            # Once in each process: the file is read in every epoch.
            if row not in self._checked and digest != self._digest(row, tensors, numbers):
                raise ValueError("its digest does not match")
            run = Run(
                {name: tensor.to(self.device) for name, tensor in tensors.items()},
                {name: int(value) for name, value in numbers.items()},
            )
        except PermissionError as error:
            logger.warning("the base run %s cannot be read (%s): it is computed again", place, error.strerror)
            return None
        except (SafetensorError, OSError, ValueError, RuntimeError) as error:
            logger.warning("the base run %s is damaged (%s): it is computed again", place, error)
            self.n_bytes -= _size(place)
            # In a read-only folder the file stays, and fails the check again next time.
            with suppress(OSError):
                place.unlink()
            return None
        self._checked.add(row)
        return run

    def put(self, row: int, run: Run) -> bool:
        """Writes a run atomically. Returns False if it does not fit."""
        if self._instead is not None:
            return self._instead.put(row, run)
        tensors = {name: tensor.cpu().contiguous() for name, tensor in run.tensors.items()}
        numbers = {name: str(value) for name, value in run.numbers.items()}
        content = save(tensors, metadata={**numbers, _DIGEST: self._digest(row, tensors, numbers)})
        if self.n_bytes + len(content) > self.max_bytes:
            return False
        place = self._place(row)
        try:
            place.parent.mkdir(exist_ok=True)
            # A run that a power cut damages does not match its digest, and is computed again.
            write_whole(place, content, durable=False)
        except OSError as error:
            return self._go_on_in_memory(error).put(row, run)
        self.n_bytes += len(content)
        self._checked.add(row)
        return True

    def _go_on_in_memory(self, error: OSError) -> InMemory:
        logger.warning(
            "hold_dir=%s cannot be written (%s). New base runs stay in memory, up to %s bytes; those that do not fit are "
            "computed again in each epoch. The result is the same",
            self.directory,
            error.strerror,
            f"{self._memory_bytes:,}",
        )
        self._instead = InMemory(self._memory_bytes)
        return self._instead

    def _digest(self, row: int, tensors: Mapping[str, Tensor], numbers: Mapping[str, str]) -> str:
        """Computes the checksum of everything in a file and of the folder and row it belongs to."""
        digest = hashlib.sha256(json.dumps([self._made_for, row, sorted(numbers.items())]).encode())
        for name, tensor in sorted(tensors.items()):
            digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
            digest.update(tensor.contiguous().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def _place(self, row: int) -> Path:
        return self.directory / f"{row // 1000:05}" / f"{row:08}.safetensors"


def _claim(directory: Path, made_for: dict[str, str]) -> None:
    marker = directory / MARKER
    if not marker.exists():
        # Other processes may claim the folder at the same time.
        if any(not entry.name.startswith(UNFINISHED) for entry in directory.iterdir()):
            raise ValueError(
                f"{directory} is not empty, and it is not a folder of base runs (it has no {MARKER}): choose another folder"
            )
        write_whole(marker, json.dumps(made_for, indent=2).encode())
    try:
        found = dict(read_json(marker))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{marker} is damaged: delete {directory}; its base runs are then computed again") from error
    differing = sorted(name for name in found.keys() | made_for.keys() if found.get(name) != made_for.get(name))
    if differing:
        raise ValueError(
            f"{directory} holds base runs of other inputs (different: {', '.join(differing)}): delete it, or choose another "
            "folder"
        )


def _size(file: Path) -> int:
    """Returns a file's size; 0 if another process has just deleted it."""
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0
