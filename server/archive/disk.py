"""Names that are on the disk when a function returns, and a lock that keeps two runs apart. Knows no bag."""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fieldpost.errors import TryAgainError

LOCK_POLL_S = 0.1


def sync(path: Path) -> None:
    """Returns once a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
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
) -> Iterator[int]:
    """Holds an exclusive lock on a file and yields its descriptor; the kernel frees it however the process ends.

    The file stays: removing it would let two runs hold two locks of one name.

    Raises:
        TryAgainError: Somebody else held it for wait_s.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    try:
        deadline_s = clock() + wait_s
        while not try_lock(descriptor):
            if clock() >= deadline_s:
                raise TryAgainError(
                    f"another run has held {path} for {wait_s:g} s",
                    hint="wait for it to end, or stop it; then run again",
                )
            sleep(LOCK_POLL_S)
        yield descriptor
    finally:
        os.close(descriptor)


def try_lock(descriptor: int) -> bool:
    """Takes the exclusive lock on an open file or folder where nobody has it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
