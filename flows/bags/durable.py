"""Files that are on the disk when they are closed. Knows no bag.

What is written here is hashed on its way: the manifest says what was meant, so that a byte that the disk changes
is found by whoever reads it back.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

COPY_BYTES = 1024 * 1024


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


def forget_cached(path: Path) -> None:
    """Asks the kernel to drop its copy of a file, so that reading it back means reading the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
