"""Where base runs are kept between epochs: in memory, or memory-mapped in a folder, each up to a number of bytes.

A folder says which model and data it is for, and is refused for any other. Each run in it is one safetensors file,
written whole, with a digest of all that is in it, of its row and of what the folder is for. A run that does not have its
digest is deleted and made again, never used. Where the disk is full, runs are kept in memory instead, and the log says so.
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
    """Tensors of one base run by name, and the whole numbers that go with them."""

    tensors: Mapping[str, Tensor]
    numbers: Mapping[str, int] = field(default_factory=dict)

    def n_bytes(self) -> int:
        """Memory of the tensors."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors.values())


@final
class InMemory:
    """Runs in memory, as they come until the budget is spent."""

    def __init__(self, max_bytes: int) -> None:
        """Args: max_bytes: of tensors, in all."""
        self.max_bytes, self.n_bytes = max_bytes, 0
        self._runs: dict[int, Run] = {}

    def get(self, row: int) -> Run | None:
        """The run of an example; None if it is not kept."""
        return self._runs.get(row)

    def put(self, row: int, run: Run) -> bool:
        """Keeps a run; False if it does not fit any more."""
        if self.n_bytes + run.n_bytes() > self.max_bytes:
            return False
        self.n_bytes += run.n_bytes()
        self._runs[row] = run
        return True


@final
class OnDisk:
    """Runs in a folder, memory-mapped when read, kept from one training run to the next."""

    def __init__(
        self,
        directory: Path | str,
        *,
        made_for: Mapping[str, str],
        max_bytes: int,
        memory_bytes: int = 0,
        device: str | torch.device = "cpu",
    ) -> None:
        """Opens or makes the folder. Several processes may share one.

        Args:
            directory: the folder.
            made_for: what the runs depend on: digests of model, data and layout, by name.
            max_bytes: of files, in all; for each process, where several write.
            memory_bytes: of tensors in memory, once the folder cannot be written any more.
            device: where read runs go.

        Raises:
            ValueError: if the folder holds base runs of another model or other data, or something else.
            OSError: if it cannot be made or read. A full disk is not an error.
        """
        self.directory, self.max_bytes, self.device = Path(directory), max_bytes, device
        self._made_for = json.dumps(dict(made_for), sort_keys=True)
        self._instead: InMemory | None = None
        self._memory_bytes = memory_bytes
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            _claim(self.directory, dict(made_for))
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise OSError(
                    f"hold_dir={directory} cannot be used: {error.strerror}; choose another folder"
                ) from error
            self._go_on_in_memory(error)
        self.n_bytes = sum(map(_size, self.directory.rglob("*.safetensors")))
        self._checked: set[int] = set()

    def get(self, row: int) -> Run | None:
        """The run of an example; None if it is not kept, or was damaged."""
        kept = self._instead.get(row) if self._instead is not None else None
        place = self._place(row)
        if kept is not None or not place.exists():
            return kept
        try:
            if not place.is_file():
                raise ValueError("it is no file")
            with safe_open(place, framework="pt") as file:
                numbers = dict(file.metadata() or {})
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            digest = numbers.pop(_DIGEST, None)
            if row not in self._checked and digest != self._digest(row, tensors, numbers):
                raise ValueError("it does not have its digest")
            run = Run(
                {name: tensor.to(self.device) for name, tensor in tensors.items()},
                {name: int(value) for name, value in numbers.items()},
            )
        except PermissionError as error:
            logger.warning("the base run %s cannot be read (%s): it is made again", place, error.strerror)
            return None
        except (SafetensorError, OSError, ValueError, RuntimeError) as error:
            logger.warning("the base run %s is damaged (%s): it is made again", place, error)
            self.n_bytes -= _size(place)
            # In a folder that cannot be written it stays, and is refused again.
            with suppress(OSError):
                place.unlink()
            return None
        self._checked.add(row)
        return run

    def put(self, row: int, run: Run) -> bool:
        """Writes a run, whole or not at all; False if it does not fit any more."""
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
            write_whole(place, content)
        except OSError as error:
            return self._go_on_in_memory(error).put(row, run)
        self.n_bytes += len(content)
        self._checked.add(row)
        return True

    def _go_on_in_memory(self, error: OSError) -> InMemory:
        logger.warning(
            "hold_dir=%s cannot be written (%s): base runs that are not in it are kept in memory, up to %s bytes, and the "
            "rest is run again in each epoch. The result is the same",
            self.directory,
            error.strerror,
            f"{self._memory_bytes:,}",
        )
        self._instead = InMemory(self._memory_bytes)
        return self._instead

    def _digest(self, row: int, tensors: Mapping[str, Tensor], numbers: Mapping[str, str]) -> str:
        """Of everything in a file, and of where it belongs."""
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
        # Other processes may be about to claim it too.
        if any(not entry.name.startswith(UNFINISHED) for entry in directory.iterdir()):
            raise ValueError(f"{directory} is not empty and has no {MARKER}: choose another folder for base runs")
        write_whole(marker, json.dumps(made_for, indent=2).encode())
    try:
        found = dict(read_json(marker))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{marker} is damaged: delete {directory}, it will be made again") from error
    differing = sorted(name for name in found.keys() | made_for.keys() if found.get(name) != made_for.get(name))
    if differing:
        raise ValueError(
            f"{directory} holds base runs made for something else (it differs in {', '.join(differing)}): delete it, or "
            "choose another folder"
        )


def _size(file: Path) -> int:
    """0 for a file that another process has just deleted."""
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0
