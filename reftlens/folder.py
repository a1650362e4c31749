"""A folder that is written whole or not at all: filled under a temporary name beside its place, then renamed."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from types import TracebackType
from typing import final


@final
class Replacement:
    """Context whose value is an empty temporary folder; it takes the wanted place when the context ends well.

    An earlier folder of the same kind is replaced; anything else at that place is refused before any work is done.
    """

    def __init__(self, directory: Path | str, *, marker: str) -> None:
        """Prepares nothing yet.

        Args:
            directory: the wanted place.
            marker: name of the file that shows a folder to be of the same kind.
        """
        self.directory = Path(directory).absolute()
        self.marker = marker

    def __enter__(self) -> Path:
        """Makes the temporary folder.

        Raises:
            ValueError: if something else is there.
            OSError: if the place cannot be written.
        """
        place = self.directory
        if place.exists() and not place.is_dir():
            raise ValueError(f"{place} is a file: choose another folder")
        if place.is_dir() and any(place.iterdir()) and not (place / self.marker).is_file():
            raise ValueError(
                f"{place} is not empty and has no {self.marker}, so it is not ours to replace: choose another folder"
            )
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            self._temporary = Path(tempfile.mkdtemp(prefix=f".{place.name}-", dir=place.parent))
            self._temporary.chmod(0o755)
        except OSError as error:
            raise OSError(f"{place} cannot be written: {error.strerror}; choose another folder") from error
        return self._temporary

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Renames the folder into place, or removes it if the context failed."""
        if kind is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)
            return
        for file in self._temporary.rglob("*"):
            if file.is_file():
                with file.open("rb") as handle:
                    os.fsync(handle.fileno())
        if not self.directory.exists():
            self._temporary.rename(self.directory)
            return
        previous = Path(tempfile.mkdtemp(prefix=f".{self.directory.name}-old-", dir=self.directory.parent))
        self.directory.rename(previous / self.directory.name)
        self._temporary.rename(self.directory)
        shutil.rmtree(previous)
