"""Where base runs are kept between epochs: in memory, or memory-mapped in a folder, each up to a number of bytes.

A folder says which model and data it is for, and is refused for any other. Each run in it is one safetensors file,
written whole, with a checksum; one that does not fit its checksum is deleted and made again, never used.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

logger = logging.getLogger(__name__)

MARKER = "base_runs.json"


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
        self, directory: Path | str, *, made_for: Mapping[str, str], max_bytes: int, device: str | torch.device = "cpu"
    ) -> None:
        """Opens or makes the folder. Several processes may share one.

        Args:
            directory: the folder.
            made_for: what the runs depend on: digests of model, data and layout, by name.
            max_bytes: of files, in all; for each process, where several write.
            device: where read runs go.

        Raises:
            ValueError: if the folder holds base runs of another model or other data, or something else.
            OSError: if it cannot be written.
        """
        self.directory, self.max_bytes, self.device = Path(directory), max_bytes, device
        self.directory.mkdir(parents=True, exist_ok=True)
        _claim(self.directory, dict(made_for))
        self.n_bytes = sum(file.stat().st_size for file in self.directory.rglob("*.safetensors"))
        self._checked: set[int] = set()

    def get(self, row: int) -> Run | None:
        """The run of an example; None if it is not kept, or was damaged."""
        place = self._place(row)
        if not place.exists():
            return None
        try:
            with safe_open(place, framework="pt") as file:
                numbers = {name: int(value) for name, value in (file.metadata() or {}).items()}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if row not in self._checked and numbers.pop("crc32") != _checksum(tensors):
                raise ValueError("its checksum is another")
        except (SafetensorError, OSError, ValueError, KeyError) as error:
            logger.warning("the base run %s is damaged (%s): it is made again", place, error)
            self.n_bytes -= place.stat().st_size
            place.unlink()
            return None
        self._checked.add(row)
        numbers.pop("crc32", None)
        return Run({name: tensor.to(self.device) for name, tensor in tensors.items()}, numbers)

    def put(self, row: int, run: Run) -> bool:
        """Writes a run, whole or not at all; False if it does not fit any more."""
        tensors = {name: tensor.cpu().contiguous() for name, tensor in run.tensors.items()}
        numbers = {name: str(value) for name, value in run.numbers.items()}
        content = save(tensors, metadata={**numbers, "crc32": str(_checksum(tensors))})
        if self.n_bytes + len(content) > self.max_bytes:
            return False
        place = self._place(row)
        place.parent.mkdir(exist_ok=True)
        _write_whole(place, content)
        self.n_bytes += len(content)
        self._checked.add(row)
        return True

    def _place(self, row: int) -> Path:
        return self.directory / f"{row // 1000:05}" / f"{row:08}.safetensors"


def _claim(directory: Path, made_for: dict[str, str]) -> None:
    marker = directory / MARKER
    if not marker.exists():
        if any(directory.iterdir()):
            raise ValueError(f"{directory} is not empty and has no {MARKER}: choose another folder for base runs")
        _write_whole(marker, json.dumps(made_for, indent=2).encode())
    try:
        found = dict(json.loads(marker.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{marker} is damaged: delete {directory}, it will be made again") from error
    differing = sorted(name for name in found.keys() | made_for.keys() if found.get(name) != made_for.get(name))
    if differing:
        raise ValueError(
            f"{directory} holds base runs made for something else (it differs in {', '.join(differing)}): delete it, or "
            "choose another folder"
        )


def _checksum(tensors: Mapping[str, Tensor]) -> int:
    total = 0
    for name in sorted(tensors):
        total = zlib.crc32(name.encode(), total)
        total = zlib.crc32(tensors[name].contiguous().view(torch.uint8).numpy().data, total)
    return total


def _write_whole(place: Path, content: bytes) -> None:
    descriptor, temporary = tempfile.mkstemp(prefix=".writing-", dir=place.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        Path(temporary).replace(place)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
