"""The file in which an upload gathers: it survives a kill and a power cut, and is let go of only when told.

Beside the file stands its mark: how much of it is surely on the disk. What lies beyond the mark is cut off when the
spool is opened again. One opener at a time, in any process of this machine. Knows no observation.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from fieldpost.errors import InvalidRequestError, OverloadedError, TryAgainError

SUFFIX, MARK_SUFFIX = ".part", ".held"


class Spool:
    """A file that begins with a prefix, and then takes content piece by piece. Blocking; for one thread at a time.

    Args:
        path: Where it is, or is to be.
        prefix: The file's first bytes; an earlier try that had others is thrown away.
        content_bytes: What is to come after the prefix, in all.

    Raises:
        OverloadedError: Somebody else has it open.
        TryAgainError: The disk refuses, or has no room for it.
    """

    def __init__(self, path: Path, prefix: bytes, content_bytes: int) -> None:
        self.path = path
        self.held_bytes = 0
        self.prefix_bytes = len(prefix)
        self._content_bytes = content_bytes
        self._end = 0
        self._file = -1
        with disk_errors(path.parent):
            self._file = _open_locked(path)
            try:
                self._resume(prefix)
            except BaseException:
                self.close()
                raise

    def _resume(self, prefix: bytes) -> None:
        """Cuts off what may not be on the disk; begins anew where the file is not the beginning of what is to come."""
        full = len(prefix) + self._content_bytes
        found = os.fstat(self._file)
        held = min(_read_mark(self.path), found.st_size)
        is_this = len(prefix) <= held <= full and os.pread(self._file, len(prefix), 0) == prefix
        is_linked = found.st_nlink > 1 and held < full  # a segment of that name may exist: never cut it in place
        if is_linked or not is_this:
            remove(self.path)
            os.close(self._file)
            self._file, held = -1, 0
            self._file = _open_locked(self.path)
        room = shutil.disk_usage(self.path.parent).free
        if full - held > room:
            raise OSError(errno.ENOSPC, f"{full - held} bytes are to come, but only {room} are free")
        os.ftruncate(self._file, held)
        if held == 0:
            _write_all(self._file, prefix, 0)
        self._end = max(held, len(prefix))
        self.sync()

    def write(self, offset: int, content: bytes) -> None:
        """Takes the next piece.

        Raises:
            InvalidRequestError: It does not begin where the one before ended, or reaches past the end.
            TryAgainError: The disk refuses; what is held stays.
        """
        expected = self._end - self.prefix_bytes
        if offset != expected:
            raise InvalidRequestError(
                f"expected the piece at {expected}, where the one before ended, but got one at {offset}",
                hint="go on from held_bytes of the first answer",
            )
        if offset + len(content) > self._content_bytes:
            raise InvalidRequestError(
                f"expected {self._content_bytes} bytes in all, but this piece reaches to {offset + len(content)}"
            )
        with disk_errors(self.path.parent):
            _write_all(self._file, content, self._end)
        self._end += len(content)

    def sync(self) -> int:
        """Has everything written on the disk; returns how much of the content that is.

        Raises:
            TryAgainError: The disk refuses.
        """
        with disk_errors(self.path.parent):
            os.fdatasync(self._file)
            # After the bytes: whichever number is found here after a power cut, so many were on the disk before it.
            _write_mark(self.path, self._end)
        self.held_bytes = self._end - self.prefix_bytes
        return self.held_bytes

    @contextmanager
    def read_content(self) -> Iterator[IO[bytes]]:
        """The file, at the first byte after the prefix."""
        with disk_errors(self.path.parent), self.path.open("rb") as file:
            file.seek(self.prefix_bytes)
            yield file

    def remove(self) -> None:
        """Removes the file, and lets go of it."""
        with disk_errors(self.path.parent):
            remove(self.path)
        self.close()

    def close(self) -> None:
        """Lets go of the file; what is on the disk stays, for the next try."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def remove_unless_open(path: Path) -> bool:
    """Removes a spool that nobody has open; returns whether it did."""
    file = _lock(path)
    if file is None:
        return False
    remove(path)
    os.close(file)
    return True


def remove(path: Path) -> None:
    """Removes a spool and its mark. The mark goes first: a file without one is begun anew."""
    path.with_suffix(MARK_SUFFIX).unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def forget_old(folder: Path, age_s: float) -> int:
    """Removes the spools that nobody wrote to for so long; returns how many."""
    before_unix_s = time.time() - age_s
    return sum(_is_older(path, before_unix_s) and remove_unless_open(path) for path in folder.glob(f"*{SUFFIX}"))


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """What the disk refuses, as an error of ours."""
    try:
        yield
    except OSError as error:
        raise TryAgainError(
            f"the upload could not be written or read in {folder}: {error}",
            hint="check the disk and its free space; the bytes that are held stay",
        ) from error


def _is_older(path: Path, unix_s: float) -> bool:
    try:
        return path.stat().st_mtime < unix_s
    except FileNotFoundError:  # finished a moment ago
        return False


def _open_locked(path: Path) -> int:
    path.touch(mode=0o640)
    file = _lock(path)
    if file is None:
        raise OverloadedError(
            "this observation is being uploaded by somebody else at this moment",
            hint="an upload that was cut off is let go as soon as the server notices; call again in a minute",
        )
    return file


def _lock(path: Path) -> int | None:
    """Opens and locks a file; None where it is not there, or somebody else has it."""
    try:
        file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(file).st_ino == path.stat().st_ino:  # else it was finished between the two calls: it is a segment
            return file
    except (BlockingIOError, FileNotFoundError):
        pass
    os.close(file)
    return None


def _read_mark(path: Path) -> int:
    """How much of the file is surely on the disk; 0 where nothing says so."""
    try:
        return int(path.with_suffix(MARK_SUFFIX).read_text())
    except (FileNotFoundError, ValueError):
        return 0


def _write_mark(path: Path, held: int) -> None:
    """In place and within one block, so that the old number or the new one is there whatever happens."""
    file = os.open(path.with_suffix(MARK_SUFFIX), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o640)
    try:
        os.pwrite(file, b"%020d\n" % held, 0)
    finally:
        os.close(file)


def _write_all(file: int, content: bytes, offset: int) -> None:
    """What a full disk took of it lies beyond the end that is known, and is written over by the next try."""
    view = memoryview(content)
    while view:
        written = os.pwrite(file, view, offset)
        view, offset = view[written:], offset + written
