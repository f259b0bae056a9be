"""Reads one bag on one shelf from the first to the last byte, and says what is wrong with it. Repairs nothing."""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from fieldpost.errors import BrokenStateError, TryAgainError
from flows.bags.durable import forget_cached
from server.archive.manifests import read_promises
from server.archive.shelf import Shelf

OnBytes = Callable[[int], None]
"""Told how many more bytes were read."""


@dataclass(slots=True)
class Look:
    """What was found.

    Attributes:
        problems: What is wrong, in words; empty where the bag is whole.
        promised: SHA-256 of each file; empty where the manifests could not be trusted.
        byte_count: Bytes read.
        hash_count: Files that have the SHA-256 that they should have.
        is_missing: Whether there is no file of it at all.
    """

    problems: list[str] = field(default_factory=list)
    promised: dict[str, str] = field(default_factory=dict)
    byte_count: int = 0
    hash_count: int = 0
    is_missing: bool = False

    @property
    def is_whole(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def __str__(self) -> str:
        return "; ".join(self.problems) or "whole"


def look(shelf: Shelf, path: str, manifest_sha256: str, on_bytes: OnBytes) -> Look:
    """Compares the manifest with the record, every file with the manifests, and the files with their list.

    Args:
        shelf: Where the bag lies.
        path: The bag.
        manifest_sha256: Of its manifest, as it was recorded when the bag had been verified.
        on_bytes: See OnBytes.

    Raises:
        TryAgainError: The storage does not answer; nothing can be said of the bag.
    """
    found = Look()
    sizes = dict(shelf.list_files(path))
    if not sizes:
        if shelf.is_empty():
            raise TryAgainError(
                f"expected {path} in {shelf.url}, but nothing at all lies there",
                hint="mount the storage; a new, empty second place is filled by the archive flow, a new first place by "
                "bringing the folders of the second to it",
            )
        found.is_missing = True
        found.problems.append("it is not there")
        return found
    _forget_cached(shelf, path, sizes)
    try:
        found.promised = read_promises(shelf, path, manifest_sha256)
    except BrokenStateError as error:
        found.problems.append(str(error))
        return found
    except TryAgainError as error:
        found.problems.append(_unreadable(error, "a manifest"))
        return found
    for name in sorted(found.promised.keys() | sizes.keys()):
        if name not in sizes:
            found.problems.append(f"{name} is not there")
        elif name not in found.promised:
            found.problems.append(f"{name} does not belong to it")
        else:
            _read(shelf, path, name, found, on_bytes)
    return found


def _read(shelf: Shelf, path: str, name: str, found: Look, on_bytes: OnBytes) -> None:
    digest = hashlib.sha256()
    try:
        for piece in shelf.read(path, name):
            digest.update(piece)
            found.byte_count += len(piece)
            on_bytes(len(piece))
    except BrokenStateError as error:  # it went between the list and the look
        found.problems.append(str(error))
        return
    except TryAgainError as error:
        found.problems.append(_unreadable(error, name))
        return
    if digest.hexdigest() == found.promised[name]:
        found.hash_count += 1
    else:
        found.problems.append(f"{name} has SHA-256 {digest.hexdigest()}, not {found.promised[name]}")


def _unreadable(error: TryAgainError, name: str) -> str:
    """Says that a disk cannot read a sector: that is damage. Any other refusal is the storage's, not the bag's."""
    if isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.EIO:
        return f"{name} cannot be read: {error.__cause__}"
    raise error


def _forget_cached(shelf: Shelf, path: str, sizes: dict[str, int]) -> None:
    """Reading a bag means reading the disk, not the memory in which it was yesterday."""
    if "://" in shelf.url:
        return
    for name in sizes:
        with suppress(OSError):  # what cannot be opened is found out when it is read
            forget_cached(Path(shelf.url) / path / name)
