"""Stores the finished cells of a sweep in one file, written atomically. Another sweep cannot load it."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any, final

import torch
from jaxtyping import Bool, Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from reftlens.bridge import is_main_process
from reftlens.files.folder import write_whole
from reftlens.training.train import TrainConfig

_IRRELEVANT: dict[str, Any] = {"hold_bytes": 0, "hold_dir": None, "progress": False}
"""Training settings that do not change the result."""


@final
class Saved:
    """The file that an interrupted sweep resumes from."""

    def __init__(self, file: Path | str, *, made_for: str) -> None:
        """Args: file: its folder must exist. made_for: a checksum of everything the values depend on."""
        self.file, self.made_for = Path(file), made_for

    def read(self, shape: torch.Size) -> tuple[Bool[Tensor, "pair cell"], Float[Tensor, "pair cell"]]:
        """Returns the finished cells and their values; none if there is no file.

        Raises:
            ValueError: If the file belongs to another sweep, or is not the file of a sweep.
        """
        if not self.file.exists():
            return torch.zeros(shape, dtype=torch.bool), torch.full(shape, torch.nan)
        if not self.file.is_file():
            raise ValueError(f"{self.file} is not a regular file: choose another path for the cells of the sweep")
        try:
            with safe_open(self.file, framework="pt") as found:
                said = found.metadata() or {}
                # Copied, because memory-mapped values are lost if the file is truncated.
                done, values = found.get_tensor("done").clone(), found.get_tensor("values").clone()
        except (SafetensorError, RuntimeError, ValueError, OverflowError) as error:
            raise ValueError(
                f"{self.file} cannot be read as the cells of a sweep ({error}): choose another file, or delete this one"
            ) from error
        made_for = said.get("made_for")
        # Before the next check, which would take damage for the file of another sweep.
        if said.get("sha256") != _digest(str(made_for), done, values):
            raise ValueError(
                f"{self.file} is damaged: its cells do not match their digest. Delete it to start the sweep again"
            )
        if made_for != self.made_for or done.shape != shape:
            raise ValueError(
                f"{self.file} holds the cells of another sweep (another model, metric, or other prompts or points): choose "
                "another file, or delete this one"
            )
        return done, values

    def write(self, values: Float[Tensor, "pair cell"], done: Bool[Tensor, "pair cell"]) -> None:
        """Replaces the file with one that holds these cells. Of several processes, the main one does."""
        if not is_main_process():
            return
        said = {"made_for": self.made_for, "sha256": _digest(self.made_for, done, values)}
        write_whole(self.file, save({"values": values.contiguous(), "done": done.contiguous()}, metadata=said))


def settings_of(config: TrainConfig) -> str:
    """Returns the settings that change what a training finds, for the checksum of a sweep that trains in every cell.

    Args:
        config: of each training.
    """
    return repr(replace(config, **_IRRELEVANT))


def _digest(made_for: str, done: Tensor, values: Tensor) -> str:
    digest = hashlib.sha256(made_for.encode())
    for tensor in (done, values):
        digest.update(f"{tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()
