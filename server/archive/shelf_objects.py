"""Bags in an object store, which knows no folder and no rename: a bag is there once its last object is.

A bag is made in a local folder. Its manifest goes first and claims the name: objects that may not exist yet are only
ever made by one. All else follows and is read back from the store; bagit.txt goes last, and nobody lists, opens or
reads what has none. A run that dies in between leaves a claim: this machine knows its own by the local folder that is
still there, and takes them away; those of other machines stand in the way until they are a day old.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError

from fieldpost.errors import BrokenStateError, TryAgainError
from server.archive.disk import locked, make_folder, remove_folder, try_lock
from server.archive.shelf import (
    DECLARATION,
    LOCK_NAME,
    MANIFEST,
    PART_PREFIX,
    PIECE_BYTES,
    as_try_again,
    damaged_name,
    day_and_version,
    not_there,
    part_name,
    refused,
    split_path,
)
from server.storage.segment_objects import connect, pieces, reason

if TYPE_CHECKING:
    from obstore import ObjectMeta

TAG_MANIFEST = "tagmanifest-sha256.txt"
OPEN_PREFIX = ".open-"
RANGE_BYTES = 8 * PIECE_BYTES
CREATED_BYTES_MAX = 8 * PIECE_BYTES
"""Up to this size an object is sent at once, and only where there is none; a larger one in parts, under the claim."""
CLAIM_STALE_S = 86_400.0
CLAIM_HOLD_S = 43_200.0
"""Whoever has not ended after half of that time gives up, so that a live run never loses its claim to another one."""


class ObjectShelf:
    """A shelf in an object store; see Shelf for what its methods do.

    Args:
        url: Such as s3://bucket/prefix?endpoint=https://host; credentials come from the environment.
        staging: A local folder for bags that are being made or read, on a disk with room for some.
        clock: Seconds of any origin, that go on steadily.

    Raises:
        InvalidRequestError: The URL makes no sense.
    """

    def __init__(self, url: str, staging: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._objects, self.url = connect(url)
        self._staging = staging.absolute()
        self._clock = clock

    def is_empty(self) -> bool:
        """Whether there is no object at all."""
        return next(self._list(""), None) is None

    def list_paths(self, home: str = "") -> Iterator[str]:
        """By name, and those of a day by version: object stores list in alphabetical order, v10 before v2."""
        suffix = f"/{DECLARATION}"
        names = (each["path"].removesuffix(suffix) for each in self._list(home) if each["path"].endswith(suffix))
        known = ((each, found) for each in names if (found := day_and_version(each)) is not None)
        for _, versions in groupby(known, key=lambda each: each[0].rpartition(".")[0]):
            yield from (path for path, _ in sorted(versions, key=lambda each: each[1]))

    def has(self, path: str) -> bool:
        """Whether the bag's last object is there."""
        return self._head(f"{path}/{DECLARATION}") is not None

    def list_files(self, path: str) -> list[tuple[str, int]]:
        """What is there now."""
        return sorted((each["path"].removeprefix(f"{path}/"), each["size"]) for each in self._list(path))

    def read(self, path: str, name: str, offset: int = 0) -> Iterator[bytes]:
        """In ranges, each asked for again where the network fails."""
        key = f"{path}/{name}"
        found = self._head(key)
        if found is None:
            raise not_there(self.url, key)
        for start in range(offset, found["size"], RANGE_BYTES):
            with self._as_ours(key):
                content = memoryview(
                    obstore.get_range(self._objects, key, start=start, end=min(start + RANGE_BYTES, found["size"]))
                )
            for first in range(0, len(content), PIECE_BYTES):
                yield bytes(content[first : first + PIECE_BYTES])

    @contextmanager
    def open(self, path: str) -> Iterator[Path]:
        """Fetches the whole bag."""
        home, _, name = split_path(path)
        if not self.has(path):
            raise not_there(self.url, path)
        folder = self._staging / home / part_name(name).replace(PART_PREFIX, OPEN_PREFIX)
        with as_try_again(self.url), ExitStack() as stack:
            make_folder(folder)
            stack.callback(remove_folder, folder)
            descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
            stack.callback(os.close, descriptor)
            try_lock(descriptor)  # so that a sweep knows that somebody still reads
            for file_name, _ in self.list_files(path):
                target = folder / file_name
                target.parent.mkdir(exist_ok=True)
                with target.open("xb") as file:
                    file.writelines(self.read(path, file_name))
            yield folder

    @contextmanager
    def stage(self, path: str) -> Iterator[Path]:
        """On the local disk."""
        home, _, name = split_path(path)
        part = self._staging / home / part_name(name)
        with as_try_again(self.url):
            make_folder(part)
            try:
                yield part
            finally:
                remove_folder(part)

    def publish(self, part: Path, path: str) -> None:
        """Sends the files, reads them back, and makes the bag visible."""
        begin_s = self._clock()
        self._claim(part, path)
        try:
            names = sorted(each.relative_to(part).as_posix() for each in part.rglob("*") if each.is_file())
            for name in names:
                if name not in (MANIFEST, DECLARATION):
                    self._check_time(begin_s, path)
                    self._send(part / name, f"{path}/{name}")
            self._read_back(part, path, [each for each in names if each != DECLARATION])
            self._check_time(begin_s, path)
            self._send(part / DECLARATION, f"{path}/{DECLARATION}")
            if [each for each, _ in self.list_files(path)] != names:
                raise TryAgainError(f"objects of {path} in {self.url} went away meanwhile", hint="run again")
        except BaseException:
            with suppress(TryAgainError):  # what cannot be taken away now stays invisible
                self._remove(path)
            raise

    def set_aside(self, path: str) -> str:
        """Copies the objects to the other name, and removes them under this one."""
        above, _, name = path.rpartition("/")
        aside = f"{above}/{damaged_name(name)}"
        files = self.list_files(path)
        if not files:
            raise not_there(self.url, path)
        for file_name, _ in files:
            with self._as_ours(file_name):
                obstore.copy(self._objects, f"{path}/{file_name}", f"{aside}/{file_name}")
        self._remove(path)
        return aside

    @contextmanager
    def lock(self, home: str, wait_s: float) -> Iterator[None]:
        """Keeps the runs on this machine apart; those on others are kept apart by their claims."""
        with ExitStack() as stack:
            with as_try_again(self.url):
                make_folder(self._staging / home)
                stack.enter_context(locked(self._staging / home / LOCK_NAME, wait_s))
            yield

    def sweep(self, home: str) -> None:
        """Removes what runs on this machine left here, and the claims that they made."""
        with as_try_again(self.url):
            for part in (self._staging / home).glob(f"{PART_PREFIX}*"):
                self._withdraw(part, home)
                remove_folder(part)
            for folder in (self._staging / home).glob(f"{OPEN_PREFIX}*"):
                with suppress(FileNotFoundError), _opened(folder) as descriptor:
                    if try_lock(descriptor):
                        remove_folder(folder)

    def _withdraw(self, part: Path, home: str) -> None:
        """Takes back the claim of a part whose run has ended: its manifest tells whose it is."""
        name = part.name.removeprefix(PART_PREFIX).rpartition("-")[0]
        path = f"{home}/{name[:4]}/{name}"
        manifest = part / MANIFEST
        if manifest.is_file() and self._is_claimed_with(path, manifest.read_bytes()) and not self.has(path):
            self._remove(path)

    def _claim(self, part: Path, path: str) -> None:
        """Takes the name.

        Raises:
            TryAgainError: Another run has it.
        """
        if self._create(part / MANIFEST, f"{path}/{MANIFEST}"):
            return
        if self.has(path):
            raise TryAgainError(
                f"another run has published {path} in {self.url} meanwhile", hint="run again: it will find that bag"
            )
        if self._is_claimed_with(path, (part / MANIFEST).read_bytes()):
            return  # the store took it, and its answer was lost
        claim = self._head(f"{path}/{MANIFEST}")
        if claim is not None and (datetime.now(UTC) - claim["last_modified"]).total_seconds() > CLAIM_STALE_S:
            self._remove(path)
            if self._create(part / MANIFEST, f"{path}/{MANIFEST}"):
                return
        raise TryAgainError(
            f"another run is bringing {path} to {self.url}",
            hint="run again later; if that run has died on another machine, its claim stands for a day",
        )

    def _is_claimed_with(self, path: str, manifest: bytes) -> bool:
        try:
            return b"".join(self.read(path, MANIFEST)) == manifest
        except BrokenStateError:
            return False

    def _check_time(self, begin_s: float, path: str) -> None:
        if self._clock() - begin_s > CLAIM_HOLD_S:
            raise TryAgainError(
                f"{path} could not be brought to {self.url} within {CLAIM_HOLD_S / 3600:g} h",
                hint="look at the network to the object store",
            )

    def _send(self, file: Path, key: str) -> None:
        if file.stat().st_size <= CREATED_BYTES_MAX:
            self._create(file, key)
            return
        with self._as_ours(key):
            obstore.put(self._objects, key, file, **pieces())

    def _create(self, file: Path, key: str) -> bool:
        """Sends a file where there is no such object; returns whether there was none."""
        with self._as_ours(key):
            try:
                obstore.put(self._objects, key, file.read_bytes(), mode="create")
            except AlreadyExistsError:
                return False
        return True

    def _read_back(self, part: Path, path: str, names: list[str]) -> None:
        """Compares what the store gives back with what the manifests say, and these with the local ones."""
        expected = {}
        for manifest in (MANIFEST, TAG_MANIFEST):
            content = (part / manifest).read_bytes()
            expected[manifest] = hashlib.sha256(content).hexdigest()
            for line in content.decode().splitlines():
                sha256, name = line.split("  ", 1)
                expected.setdefault(name, sha256)
        for name in names:
            digest = hashlib.sha256()
            for piece in self.read(path, name):
                digest.update(piece)
            if digest.hexdigest() != expected.get(name):
                raise BrokenStateError(
                    f"expected {path}/{name} in {self.url} as it was sent, but it came back different",
                    hint="run again; where it happens again the object store is at fault",
                )

    def _remove(self, path: str) -> None:
        """Removes all objects of a bag: first the one that makes it visible, last the one that claims the name."""
        names = [name for name, _ in self.list_files(path)]
        for name in sorted(names, key=lambda each: (each != DECLARATION, each == MANIFEST, each)):
            with self._as_ours(name), suppress(FileNotFoundError):
                obstore.delete(self._objects, f"{path}/{name}")

    def _list(self, prefix: str) -> Iterator[ObjectMeta]:
        with self._as_ours(prefix):
            for page in obstore.list(self._objects, prefix=prefix or None):
                yield from page

    def _head(self, key: str) -> ObjectMeta | None:
        with self._as_ours(key):
            try:
                return obstore.head(self._objects, key)
            except FileNotFoundError:
                return None

    @contextmanager
    def _as_ours(self, key: str) -> Iterator[None]:
        """Turns what the store says into our errors."""
        try:
            yield
        except FileNotFoundError as error:
            raise not_there(self.url, key) from error
        except (BaseError, OSError) as error:
            raise refused(self.url, reason(error)) from error


@contextmanager
def _opened(folder: Path) -> Iterator[int]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
