"""A folder that is written whole or not at all: filled under a temporary name beside its place, then put there.

On Linux the new folder and the one that it replaces change places in one step (`renameat2`), so that whoever is killed,
whenever, leaves one of the two whole. Where a file system or another operating system cannot do that, the old one is
moved aside first; killed between these two renames, a process leaves both whole, beside the place, under names that
begin with a dot. What a killed process leaves under such a name is never read, and may be deleted.
"""

from __future__ import annotations

import ctypes
import errno
import os
import secrets
import shutil
import sys
from pathlib import Path
from types import TracebackType
from typing import final

UNFINISHED = "."
"""Beginning of the names under which files and folders are written before they take their place."""
_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


@final
class Replacement:
    """Context whose value is an empty temporary folder; it takes the wanted place when the context ends well.

    An earlier folder of the same kind is replaced; anything else at that place is refused before any work is done.
    """

    def __init__(self, directory: Path | str, *, marker: str) -> None:
        """Prepares nothing yet.

        Args:
            directory: the wanted place; of a link, what it points to.
            marker: name of the file that shows a folder to be of the same kind.
        """
        self.directory = Path(directory).resolve()
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
            self._temporary = place.parent / f"{UNFINISHED}{place.name}-{secrets.token_hex(8)}"
            # Not tempfile.mkdtemp, whose folders nobody else can read: this one follows the umask.
            self._temporary.mkdir()
        except OSError as error:
            raise OSError(f"{place} cannot be written: {error.strerror}; choose another folder") from error
        return self._temporary

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Puts the folder into its place, or removes it if the context failed.

        Raises:
            OSError: if the disk is full, or the folder cannot be put there; it names the folder.
        """
        try:
            if kind is None:
                self._finish()
            elif isinstance(error, OSError) and (said := named(error, self.directory, self._temporary)) is not error:
                raise said from error
        finally:
            # Under this name there is now what was replaced, what failed, or nothing.
            shutil.rmtree(self._temporary, ignore_errors=True)

    def _finish(self) -> None:
        try:
            for path in (*self._temporary.rglob("*"), self._temporary):
                _to_disk(path)
            _put(self._temporary, self.directory)
            _to_disk(self.directory.parent)
        except OSError as error:
            raise named(error, self.directory, self._temporary) from error


def write_whole(file: Path, content: bytes) -> None:
    """Writes a file whole or not at all, readable by whom the umask allows.

    Args:
        file: the place; an earlier file is replaced.
        content: all of its bytes.

    Raises:
        OSError: if it cannot be written; it names the file.
    """
    temporary = file.with_name(f"{UNFINISHED}{file.name}-{secrets.token_hex(8)}")
    try:
        try:
            temporary.write_bytes(content)
            temporary.replace(file)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise named(error, file, temporary) from error


def named(error: OSError, place: Path, temporary: Path) -> OSError:
    """The same error with the name of what was to be written: a full disk is reported without one, or with a passing one.

    Args:
        error: what came.
        place: what was to be written.
        temporary: where it was written meanwhile.
    """
    nameless = error.filename is None and error.errno in _OF_THE_DISK
    if nameless or (error.filename is not None and str(temporary) in str(error.filename)):
        return OSError(error.errno, error.strerror, str(place))
    return error


def _put(new: Path, place: Path) -> None:
    """Moves a folder to its place; one that was there is afterwards where the new one was."""
    if not place.exists():
        try:
            new.rename(place)
        except OSError:
            # Another process may have been first.
            if not place.exists():
                raise
        else:
            return
    if not _exchange(new, place):
        aside = new.with_name(f"{new.name}-old")
        place.rename(aside)
        try:
            new.rename(place)
        except OSError:
            aside.rename(place)
            raise
        aside.rename(new)


def _exchange(one: Path, other: Path) -> bool:
    """Lets two folders change places in one step; False where that cannot be done."""
    if sys.platform != "linux":
        return False
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    return rename is not None and rename(_AT_FDCWD, bytes(one), _AT_FDCWD, bytes(other), _RENAME_EXCHANGE) == 0


def _to_disk(path: Path) -> None:
    """Waits until a file, or the names in a folder, would survive a power cut."""
    if path.is_dir() and os.name != "posix":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
