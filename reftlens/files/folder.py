"""Writes a folder atomically: fills it under a temporary name next to its target, then renames it.

On Linux the new folder and the one that it replaces are exchanged in one step (`renameat2`), so a
process killed at any time leaves one complete folder. If the file system or operating system cannot
do that, the old folder is moved aside first. A process killed between these two renames leaves both
folders complete, next to the target, under names that begin with a dot. Such leftovers are never
read and may be deleted.
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
"""Prefix of the temporary names under which files and folders are written."""
_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)
# From Linux's fcntl.h and fs.h; Python does not have them.
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


@final
class Replacement:
    """Context whose value is an empty temporary folder, which becomes the target folder if the context succeeds.

    An earlier folder of the same kind is replaced. Anything else at the target is refused before
    any work is done.
    """

    def __init__(self, directory: Path | str, *, marker: str) -> None:
        """Stores the target without changing the disk.

        Args:
            directory: the target folder; a link is followed.
            marker: name of the file that identifies a folder of the same kind.
        """
        self.directory = Path(directory).resolve()
        self.marker = marker

    def __enter__(self) -> Path:
        """Creates the temporary folder.

        Raises:
            ValueError: If something else is at the target.
            OSError: If the target cannot be written.
        """
        place = self.directory
        if place.exists() and not place.is_dir():
            raise ValueError(f"{place} is a file: choose another folder")
        if place.is_dir() and any(place.iterdir()) and not (place / self.marker).is_file():
            raise ValueError(
                f"{place} is not empty and has no {self.marker}, so it is not replaced: choose another folder"
            )
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            # In the same folder, because a rename works within one file system only.
            self._temporary = place.parent / f"{UNFINISHED}{place.name}-{secrets.token_hex(8)}"
            # tempfile.mkdtemp makes folders that only the owner can read; this one follows the
            # umask.
            self._temporary.mkdir()
        except OSError as error:
            raise OSError(f"{place} cannot be written ({error.strerror}): choose another folder") from error
        return self._temporary

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Moves the folder to the target, or removes it if the context failed.

        Raises:
            OSError: If the disk is full, or the folder cannot be moved. The message names the
                folder.
        """
        try:
            if kind is None:
                self._finish()
            elif isinstance(error, OSError) and (said := named(error, self.directory, self._temporary)) is not error:
                raise said from error
        finally:
            # This name now holds the replaced folder, the failed one, or nothing.
            # A leftover does no harm, and an error here would hide the one above.
            shutil.rmtree(self._temporary, ignore_errors=True)

    def _finish(self) -> None:
        try:
            # Before the rename, or a power cut could leave the new name with empty files.
            for path in (*self._temporary.rglob("*"), self._temporary):
                to_disk(path)
            _put(self._temporary, self.directory)
            # The rename is a change of the parent folder.
            to_disk(self.directory.parent)
        except OSError as error:
            raise named(error, self.directory, self._temporary) from error


def write_whole(file: Path, content: bytes, *, durable: bool = True) -> None:
    """Writes a file atomically, with the permissions of the umask.

    Args:
        file: the target; an earlier file is replaced.
        content: all of its bytes.
        durable: wait until the disk has it, so that a power cut leaves the earlier file or this
            one.

    Raises:
        OSError: If it cannot be written. The message names the file.
    """
    temporary = file.with_name(f"{UNFINISHED}{file.name}-{secrets.token_hex(8)}")
    try:
        try:
            temporary.write_bytes(content)
            if durable:
                to_disk(temporary)
            temporary.replace(file)
            if durable:
                to_disk(file.parent)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise named(error, file, temporary) from error


def named(error: OSError, place: Path, temporary: Path) -> OSError:
    """Returns the error with the target's name. A full disk is reported with no name, or with the temporary one.

    Args:
        error: the original error.
        place: the target file or folder.
        temporary: the temporary path that was written.
    """
    nameless = error.filename is None and error.errno in _OF_THE_DISK
    if nameless or (error.filename is not None and str(temporary) in str(error.filename)):
        return OSError(error.errno, error.strerror, str(place))
    return error


def _put(new: Path, place: Path) -> None:
    """Moves a folder to the target. A folder already there moves to the temporary name."""
    if not place.exists():
        try:
            new.rename(place)
        except OSError:
            # Another process may have moved it first.
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
    """Exchanges two folders in one step. Returns False if the system cannot do that."""
    if sys.platform != "linux":
        return False
    # Python's os module has no exchange. CDLL(None) is the C library that already runs.
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    return rename is not None and rename(_AT_FDCWD, bytes(one), _AT_FDCWD, bytes(other), _RENAME_EXCHANGE) == 0


def to_disk(path: Path) -> None:
    """Flushes a file, or the names in a folder, so that it survives a power cut."""
    # Windows cannot open a folder.
    if path.is_dir() and os.name != "posix":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
