"""Files that are on the disk when they are closed, and a lock that keeps two runs apart. Knows no bag.

What is written here is hashed on its way: the manifest says what was meant, so that a byte that the disk changes
is found by whoever reads it back.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from fieldpost.errors import TryAgainError

COPY_BYTES = 1024 * 1024
LOCK_POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class FileDigest:
    """What a manifest says of a file."""

    sha256: str
    byte_count: int


class HashedFile:
    """A new file, hashed while it is written, and on the disk when it is closed without an error."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("xb")
        self._sha256 = hashlib.sha256()
        self._byte_count = 0

    def write(self, content: bytes) -> int:
        """Appends the content."""
        self._sha256.update(content)
        self._byte_count += len(content)
        return self._file.write(content)

    @property
    def digest(self) -> FileDigest:
        """Of what was written so far."""
        return FileDigest(self._sha256.hexdigest(), self._byte_count)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._file:
            if exc_type is None:
                self._file.flush()
                os.fsync(self._file.fileno())


def write_file(path: Path, content: bytes) -> FileDigest:
    """Writes a new small file, durably."""
    with HashedFile(path) as file:
        file.write(content)
    return file.digest


def digest_file(path: Path) -> FileDigest:
    """Reads a file and hashes it."""
    digest, byte_count = hashlib.sha256(), 0
    with path.open("rb") as file:
        while block := file.read(COPY_BYTES):
            digest.update(block)
            byte_count += len(block)
    return FileDigest(digest.hexdigest(), byte_count)


def sync(path: Path) -> None:
    """Returns once a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def forget_cached(path: Path) -> None:
    """Asks the kernel to drop its copy of a file, so that reading it back means reading the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def make_folder(path: Path) -> None:
    """Makes a folder and those above it, durably; one that exists is left alone."""
    missing = [each for each in (path, *path.parents) if not each.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for each in reversed(missing):
        sync(each.parent)


def remove_folder(path: Path) -> None:
    """Removes a folder with all that is in it; one that is gone already is as good."""
    try:
        shutil.rmtree(path)
    except FileNotFoundError:
        return


@contextmanager
def locked(
    path: Path,
    wait_s: float,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[None]:
    """Holds an exclusive lock on a file; the kernel frees it however the process ends.

    The file stays: removing it would let two runs hold two locks of one name.

    Raises:
        TryAgainError: Somebody else held it for wait_s.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    try:
        deadline_s = clock() + wait_s
        while not _try_lock(descriptor):
            if clock() >= deadline_s:
                raise TryAgainError(
                    f"another run has held {path} for {wait_s:g} s",
                    hint="wait for it to end, or stop it; then run again",
                )
            sleep(LOCK_POLL_S)
        yield
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
