"""The folder of a training run: its identity (`training.json`) and its checkpoints, each written atomically.

A checkpoint is written under a temporary name and renamed once it is complete. Before deletion it
is renamed again. So every folder called `checkpoint-N` can be resumed from, whenever a process was
killed. A checkpoint is published with the checksums of its files (`files.seal`), and training
resumes only from one whose checksums match.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import final

from transformers.trainer_utils import get_last_checkpoint, sort_checkpoints

from reftlens.files.folder import to_disk, write_whole
from reftlens.files.seal import SEAL_NAME, seal, why_broken

logger = logging.getLogger(__name__)

IDENTITY_NAME = "training.json"
_WRITING, _DELETING = ".writing", ".deleting"
_SEALED = {"checkpoints": "sealed"}
"""Entry of `training.json` that makes a checkpoint without checksums count as damaged."""
_ADDED = ("computation", "tokens", *_SEALED)
"""Parts of an identity that earlier versions did not record."""
_NEEDED = ("model.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json", "rng_state*.pth")


@final
class TrainingFolder:
    """A folder for one training run, which may be interrupted and resumed."""

    def __init__(self, directory: Path | str) -> None:
        """Args: directory: created if it does not exist."""
        self.directory = Path(directory).absolute()

    def begin(self, identity: Mapping[str, str], *, resume: bool) -> Path | None:
        """Prepares the folder and finds the checkpoint to resume from.

        Args:
            identity: name -> value of everything that a resumed run must share with the interrupted
                one.
            resume: resume from the newest undamaged checkpoint, or start from scratch if there are
                no checkpoints.

        Returns:
            That checkpoint; None to start from scratch. The log lists newer checkpoints that are
            damaged.

        Raises:
            ValueError: If the folder holds another run, holds a run and `resume` is False, or all
                its checkpoints are damaged.
            OSError: If the folder cannot be written.
        """
        known = self.directory / IDENTITY_NAME
        if self.directory.exists() and any(self.directory.iterdir()):
            if not known.is_file():
                raise ValueError(
                    f"{self.directory} is not empty and does not hold a training run: choose another output_dir"
                )
            if not resume:
                raise ValueError(
                    f"{self.directory} holds a training run: pass resume=True, or choose another output_dir"
                )
            self._require_same(dict(identity))
        self.directory.mkdir(parents=True, exist_ok=True)
        # A process was killed there: nothing resumes from a checkpoint under these names.
        for leftover in (_WRITING, _DELETING):
            shutil.rmtree(self.directory / leftover, ignore_errors=True)
        if not known.exists():
            write_whole(known, (json.dumps({**identity, **_SEALED}, indent=2) + "\n").encode())
        return self._newest_whole()

    def identity(self) -> dict[str, str]:
        """Returns the identity recorded in the folder; empty if there is none.

        Raises:
            ValueError: If the record is damaged.
        """
        known = self.directory / IDENTITY_NAME
        if not known.is_file():
            return {}
        try:
            return dict(json.loads(known.read_text(encoding="utf-8")))
        except (ValueError, TypeError, RecursionError) as error:
            raise ValueError(f"{known} is damaged: choose another output_dir") from error

    def require_whole(self, place: Path) -> None:
        """Raises if a checkpoint is damaged.

        Raises:
            ValueError: If the checkpoint is damaged.
        """
        reason = self._why_broken(place)
        if reason is not None:
            raise ValueError(f"the checkpoint {place} is damaged: {reason}. Train again in another output_dir")

    def _newest_whole(self) -> Path | None:
        reasons: list[tuple[Path, str]] = []
        for place in map(Path, reversed(sort_checkpoints(str(self.directory)))):
            # Both now: the best one is loaded only at the end, after hours of training.
            reason = self._why_broken(place) or self._why_best_is_broken(place)
            if reason is None:
                for other, why in reasons:
                    logger.warning(
                        "the checkpoint %s is damaged (%s): training resumes from %s", other, why, place.name
                    )
                return place
            reasons.append((place, reason))
        if reasons:
            said = "; ".join(f"{place.name}: {why}" for place, why in reasons)
            raise ValueError(
                f"all checkpoints in {self.directory} are damaged ({said:.500}): delete that folder to train from the start, or "
                "choose another output_dir"
            )
        return None

    def _why_broken(self, place: Path) -> str | None:
        if (place / SEAL_NAME).exists() or self.identity().get("checkpoints") == "sealed":
            return why_broken(place)
        missing = [name for name in _NEEDED if not any(place.glob(name))]
        if missing:
            return f"{missing[0]} is missing"
        logger.warning(
            "the checkpoint %s was saved by an earlier version without digests, so damage cannot be detected", place
        )
        return None

    def _why_best_is_broken(self, place: Path) -> str | None:
        """Checks the best checkpoint as well, which a run with a validation set loads at its end."""
        try:
            step = json.loads((place / "trainer_state.json").read_text(encoding="utf-8")).get("best_global_step")
        except (OSError, ValueError, AttributeError, RecursionError) as error:
            return f"trainer_state.json cannot be read ({error!s:.200})"
        if not isinstance(step, int) or self.checkpoint(step) == place:
            return None
        reason = self._why_broken(self.checkpoint(step))
        return None if reason is None else f"its best checkpoint, checkpoint-{step}, is damaged: {reason}"

    def checkpoint(self, step: int) -> Path:
        """Returns the path of the checkpoint of a step, which need not exist."""
        return self.directory / f"checkpoint-{step}"

    def last(self) -> Path | None:
        """Returns the newest checkpoint, damaged or not; None if there is none."""
        found = get_last_checkpoint(str(self.directory)) if self.directory.is_dir() else None
        return None if found is None else Path(found)

    @property
    def writing(self) -> Path:
        """The folder in which a checkpoint is written before it is published."""
        return self.directory / _WRITING

    def publish(self, name: str) -> Path:
        """Adds checksums to a complete checkpoint in `writing` and moves it to its final path."""
        seal(self.writing / name)
        # After sealing, so that the seal is on the disk as well, and before the name is final.
        for path in (*(self.writing / name).rglob("*"), self.writing / name):
            to_disk(path)
        place = self.directory / name
        # A run that resumed from an older checkpoint comes to this step again.
        self._delete(place)
        (self.writing / name).rename(place)
        to_disk(self.directory)
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

    def _require_same(self, identity: dict[str, str]) -> None:
        before, now = self.identity(), {**identity, **_SEALED}
        differing = [
            f"{name}: was {before.get(name)}, is now {now.get(name)}"
            for name in sorted(before.keys() | now.keys())
            if before.get(name) != now.get(name) and (name in before or name not in _ADDED)
        ]
        if differing:
            raise ValueError(
                f"the run in {self.directory} cannot be resumed with other settings: {'; '.join(differing)}. Use the same "
                "settings, or choose another output_dir"
            )
