"""The folder of a training run: what was trained (`training.json`) and its checkpoints, each written whole or not at all.

A checkpoint is written under another name and renamed when it is complete, and renamed away before it is deleted. So
whatever is called `checkpoint-N` can be resumed from, at whatever moment a process was killed.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import final

from transformers.trainer_utils import get_last_checkpoint, sort_checkpoints

IDENTITY_NAME = "training.json"
_WRITING, _DELETING = ".writing", ".deleting"


@final
class TrainingFolder:
    """A folder for one training run, which may be interrupted and resumed."""

    def __init__(self, directory: Path | str) -> None:
        """Args: directory: made if it is not there."""
        self.directory = Path(directory).absolute()

    def begin(self, identity: Mapping[str, str], *, resume: bool) -> Path | None:
        """Makes the folder ready and finds where to go on.

        Args:
            identity: what a resumed run must have in common with the interrupted one, by name.
            resume: go on from the newest checkpoint, or from the start where there is none.

        Returns:
            The newest checkpoint; None to begin at the start.

        Raises:
            ValueError: if another run is there, or one that is not to be resumed.
            OSError: if it cannot be written.
        """
        known = self.directory / IDENTITY_NAME
        if self.directory.exists() and any(self.directory.iterdir()):
            if not known.is_file():
                raise ValueError(f"{self.directory} is not empty and no training run: choose another output_dir")
            if not resume:
                raise ValueError(
                    f"{self.directory} holds a training run: pass resume=True, or choose another output_dir"
                )
            self._require_same(known, dict(identity))
        self.directory.mkdir(parents=True, exist_ok=True)
        for leftover in (_WRITING, _DELETING):
            shutil.rmtree(self.directory / leftover, ignore_errors=True)
        if not known.exists():
            unfinished = known.with_suffix(".writing")
            unfinished.write_text(json.dumps(dict(identity), indent=2) + "\n", encoding="utf-8")
            unfinished.replace(known)
        return self.last()

    def last(self) -> Path | None:
        """The newest checkpoint; None if there is none."""
        found = get_last_checkpoint(str(self.directory)) if self.directory.is_dir() else None
        return None if found is None else Path(found)

    @property
    def writing(self) -> Path:
        """Where a checkpoint is written."""
        return self.directory / _WRITING

    def publish(self, name: str) -> Path:
        """Gives a complete checkpoint in `writing` its place."""
        for file in (self.writing / name).rglob("*"):
            if file.is_file():
                with file.open("rb") as handle:
                    os.fsync(handle.fileno())
        place = self.directory / name
        self._delete(place)
        (self.writing / name).rename(place)
        return place

    def prune(self, keep: int, *, best: Path | None = None) -> None:
        """Deletes all but the newest checkpoints and the best one."""
        for old in map(Path, sort_checkpoints(str(self.directory))[:-keep]):
            if old != best:
                self._delete(old)

    def _delete(self, place: Path) -> None:
        if place.exists():
            shutil.rmtree(self.directory / _DELETING, ignore_errors=True)
            place.rename(self.directory / _DELETING)
            shutil.rmtree(self.directory / _DELETING)

    def _require_same(self, known: Path, identity: dict[str, str]) -> None:
        try:
            before = dict(json.loads(known.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{known} is damaged: choose another output_dir") from error
        differing = [
            f"{name}: it was {before.get(name)}, now it is {identity.get(name)}"
            for name in sorted(before.keys() | identity.keys())
            if before.get(name) != identity.get(name)
        ]
        if differing:
            raise ValueError(
                f"the run in {self.directory} cannot be resumed with other settings: {'; '.join(differing)}. Use the same, "
                "or choose another output_dir"
            )
