"""Small files that are replaced as a whole, so that a power cut leaves the old one or the new one and never a part."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

from fieldpost.errors import BrokenStateError, FieldpostError, TryAgainError

_DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


def disk_free_bytes(folder: Path) -> int:
    """Free space on a folder's disk, for users that are not root; shutil would cost half a megabyte of memory."""
    disk = os.statvfs(folder)
    return disk.f_bavail * disk.f_frsize


def sync_folder(folder: Path) -> None:
    """Makes names that were added to or removed from the folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_file(path: Path, content: bytes, *, is_synced: bool = True) -> None:
    """Writes the content under a temporary name, then renames it.

    Args:
        path: The file to make or replace; its folder exists.
        content: All of it.
        is_synced: Whether to wait until the disk has it. Without, a power cut may leave an empty file.

    Raises:
        TryAgainError: The disk is full.
        BrokenStateError: The disk refuses for another reason.
    """
    temporary = path.with_name(path.name + ".new")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            if is_synced:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
        if is_synced:
            sync_folder(path.parent)
    except OSError as error:
        # Tidy only: the next one begins it anew. A disk that refuses to write may refuse this as well.
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise disk_error(error, path) from error


def disk_error(error: OSError, path: Path) -> FieldpostError:
    """What an OSError of the disk means to a caller: a full disk may be freed; anything else is broken."""
    message = f"expected to write {path}, but got {error.strerror or error}"
    if error.errno in _DISK_FULL:
        return TryAgainError(message, hint="free space on this disk, or move the buffer to a larger one")
    return BrokenStateError(message, hint="look at the disk (dmesg) and at the folder's owner and permissions")
