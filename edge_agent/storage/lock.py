"""One process for each buffer: a lock that the kernel gives back when its holder ends, however it ends."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from edge_agent.storage.durable import disk_error
from fieldpost.errors import TryAgainError


def lock_buffer(folder: Path) -> int:
    """Takes the buffer's lock.

    Returns:
        The descriptor that holds it; closing it gives the lock back.

    Raises:
        TryAgainError: Another process has it.
        BrokenStateError: The lock's file cannot be made.
    """
    path = folder / "lock"
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    except OSError as error:
        raise disk_error(error, path) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise TryAgainError(
            f"expected to be the only process on the buffer {folder}, but another one holds its lock",
            hint="is fieldpost-agent running already? Each agent needs a buffer_folder of its own",
        ) from error
    return descriptor
