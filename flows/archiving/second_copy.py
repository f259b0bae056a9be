"""Brings bags to the second place, one after the other: what is read there again, and only that, counts as copied.

A bag is compared with its manifest while it is read from the first place, and again once it lies on the disk of the
second. Whatever ends a run, the next one finds what is missing. Time is an argument; knows no Prefect.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from sqlalchemy import Connection

from fieldpost.errors import BrokenStateError, TryAgainError
from flows.bags.bag import read_manifest_sha256
from flows.bags.bag_format import PAYLOAD_FOLDER, validate
from flows.bags.durable import HashedFile, forget_cached
from flows.site import Site
from server.archive.bag_copies import (
    UncopiedBag,
    count_uncopied_bags,
    forget_copies,
    has_copies,
    list_uncopied_bags,
    write_copy,
)
from server.archive.disk import sync
from server.archive.manifests import read_promises
from server.archive.shelf import Shelf, split_path

LOCK_WAIT_S = 600.0
RECORD_WAIT_S = 120.0


class CopyStep(StrEnum):
    """What has just been done; a run can end after any of them."""

    LOCKED = "copy locked"
    FILES_WRITTEN = "copy's files written"
    VERIFIED = "copy verified"
    PUBLISHED = "copy published"
    RECORDED = "copy recorded"


@dataclass(frozen=True, slots=True)
class CopiedBag:
    """A bag that has a copy now; its record says when that was read back."""

    bag: UncopiedBag


@dataclass(frozen=True, slots=True)
class FailedCopy:
    """A bag that could not be copied, and why not."""

    bag: UncopiedBag
    error: BaseException


CopyOutcome = CopiedBag | FailedCopy


class Copyist:
    """Copies the bags of a site to its second place.

    Args:
        site: One that has a second place.
        on_step: Told of each step.
        lock_wait_s: How long to wait for another run that works on the same instrument there.
    """

    def __init__(
        self, site: Site, *, on_step: Callable[[CopyStep], None] = lambda _: None, lock_wait_s: float = LOCK_WAIT_S
    ) -> None:
        if site.copy is None:
            raise ValueError("expected a site with a second place, but it has none")
        self._store, self._shelf, self._copy = site.store, site.shelf, site.copy
        self._on_step = on_step
        self._lock_wait_s = lock_wait_s

    def check(self) -> None:
        """Makes sure that the second place is there.

        Raises:
            TryAgainError: It does not answer, or is empty although there are copies.
        """
        with self._store.read() as connection:
            is_used = has_copies(connection)
        if is_used and self._copy.is_empty():
            raise TryAgainError(
                f"expected the copies that the database speaks of in {self._copy.url}, but it holds none",
                hint="mount the storage, or correct FIELDPOST_ARCHIVE_COPY_FOLDER; where it is new and empty, run the "
                "archive flow with new_copy",
            )

    def forget_all(self) -> None:
        """Has every bag copied again."""
        self._write(forget_copies)

    def find_missing(self, limit: int) -> list[UncopiedBag]:
        """Bags without a copy, the oldest first."""
        with self._store.read() as connection:
            return list_uncopied_bags(connection, limit)

    def count_missing(self) -> int:
        """How many bags have no copy."""
        with self._store.read() as connection:
            return count_uncopied_bags(connection)

    def copy(self, bag: UncopiedBag, now_unix_nanos: int) -> CopiedBag:
        """Sees to it that the second place has the bag.

        Raises:
            TryAgainError: The second place, or the first, refuses or does not answer.
            BrokenStateError: The bag is not as it was recorded, or another archive's bag has its name there.
        """
        path = bag.record.path
        home = split_path(path)[0]
        with self._copy.lock(home, self._lock_wait_s):
            self._on_step(CopyStep.LOCKED)
            self._copy.sweep(home)
            if not self._has_copy(bag):
                self._bring(bag)
        self._write(lambda connection: write_copy(connection, bag.record, now_unix_nanos))
        self._on_step(CopyStep.RECORDED)
        return CopiedBag(replace(bag, record=replace(bag.record, copy_unix_nanos=now_unix_nanos)))

    def _has_copy(self, bag: UncopiedBag) -> bool:
        """Whether the bag is there, whole, from a run that could not record it; a damaged one is set aside."""
        path = bag.record.path
        if not self._copy.has(path):
            return False
        is_same = read_manifest_sha256(self._copy, path) == bag.record.manifest_sha256
        try:
            with self._copy.open(path) as folder:
                _check_folder(folder)
        except BrokenStateError:
            self._copy.set_aside(path)
            return False
        if not is_same:
            raise BrokenStateError(
                f"expected a copy of {path} in {self._copy.url}, but there is a whole bag with another content",
                hint="the place holds the copies of another archive; name another one",
            )
        return True

    def _bring(self, bag: UncopiedBag) -> None:
        path = bag.record.path
        with self._copy.stage(path) as part:
            _write_files(self._shelf, path, bag.record.manifest_sha256, part)
            self._on_step(CopyStep.FILES_WRITTEN)
            _check_folder(part)
            self._on_step(CopyStep.VERIFIED)
            self._copy.publish(part, path)
        self._on_step(CopyStep.PUBLISHED)

    def _write(self, operation: Callable[[Connection], None]) -> None:
        try:
            self._store.write(operation).result(RECORD_WAIT_S)
        except TimeoutError as error:
            raise TryAgainError(
                f"the database did not record the copies within {RECORD_WAIT_S:g} s",
                hint="the copy is complete; the next run records it",
            ) from error


def _write_files(shelf: Shelf, path: str, manifest_sha256: str, part: Path) -> None:
    """Writes all files of a bag down to the disk, each compared with the manifests as it is read."""
    (part / PAYLOAD_FOLDER).mkdir()
    for name, sha256 in read_promises(shelf, path, manifest_sha256).items():
        with HashedFile(part / name) as file:
            for piece in shelf.read(path, name):
                file.write(piece)
        if file.digest.sha256 != sha256:
            raise BrokenStateError(
                f"expected {path}/{name} in {shelf.url} with SHA-256 {sha256}, but it has {file.digest.sha256}",
                hint="the storage is at fault, or somebody edited the bag; the scrub flow says more",
            )
    for folder in (part / PAYLOAD_FOLDER, part):
        sync(folder)


def _check_folder(folder: Path) -> None:
    """Reads a whole bag from the disk and compares it with its manifests."""
    for file in (folder / PAYLOAD_FOLDER).glob("*"):
        forget_cached(file)
    validate(folder)
