"""Bags in a folder, on a local disk or a mounted storage array: a bag appears by a rename, so it is always whole.

An array that goes away under a run leaves its mount point behind, an empty folder on a small disk. So whoever holds
the lock of an instrument looks, before anything is made or named there, that the lock is still the file in its place.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from fieldpost.errors import TryAgainError
from server.archive.disk import locked, make_folder, remove_folder, sync
from server.archive.shelf import (
    LOCK_NAME,
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


class FolderShelf:
    """A shelf in a folder; see Shelf for what its methods do.

    Args:
        folder: Where; made with the first bag.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder.absolute()
        self.url = str(self._folder)
        self._locks: dict[str, int] = {}
        """Descriptors of the locks that are held here, by home."""

    def is_empty(self) -> bool:
        """Whether there is neither a bag nor the lock of an instrument."""
        with as_try_again(self.url):
            return not any(self._folder.glob(f"*/*/{LOCK_NAME}")) and not any(self.list_paths())

    def list_paths(self, home: str = "") -> Iterator[str]:
        """By station, instrument, day and version."""
        with as_try_again(self.url):
            for folder in sorted(self._folder.glob(f"{home or '*/*'}/[0-9][0-9][0-9][0-9]")):
                above = folder.relative_to(self._folder).as_posix()
                known = ((day_and_version(f"{above}/{each.name}"), each.name) for each in folder.iterdir())
                for _, name in sorted(each for each in known if each[0] is not None):
                    yield f"{above}/{name}"

    def has(self, path: str) -> bool:
        """Whether there is a folder of this name, however it looks inside: its name is taken."""
        with as_try_again(self.url):
            return (self._folder / path).is_dir()

    def list_files(self, path: str) -> list[tuple[str, int]]:
        """What is there now."""
        bag = self._folder / path
        with as_try_again(self.url):
            files = (each for each in bag.rglob("*") if each.is_file())
            return sorted((each.relative_to(bag).as_posix(), each.stat().st_size) for each in files)

    def read(self, path: str, name: str, offset: int = 0) -> Iterator[bytes]:
        """Straight from the file."""
        with as_try_again(self.url):
            try:
                file = (self._folder / path / name).open("rb")
            except (FileNotFoundError, NotADirectoryError) as error:
                raise not_there(self.url, f"{path}/{name}") from error
            with file:
                file.seek(offset)
                while piece := file.read(PIECE_BYTES):
                    yield piece

    @contextmanager
    def open(self, path: str) -> Iterator[Path]:
        """The bag itself."""
        if not self.has(path):
            raise not_there(self.url, path)
        with as_try_again(self.url):
            yield self._folder / path

    @contextmanager
    def stage(self, path: str) -> Iterator[Path]:
        """Beside the place where the bag will lie, on the same file system."""
        home, year, name = split_path(path)
        part = self._folder / home / year / part_name(name)
        with as_try_again(self.url):
            self._check_still_there(home)
            make_folder(part)
            try:
                yield part
            finally:
                remove_folder(part)

    def publish(self, part: Path, path: str) -> None:
        """Renames the part; its files and folders are on the disk already."""
        final = self._folder / path
        with as_try_again(self.url):
            self._check_still_there(split_path(path)[0])
            if final.exists():
                raise TryAgainError(
                    f"another run has published {final} meanwhile", hint="run again: it will find that bag"
                )
            make_folder(final.parent)
            part.rename(final)  # refuses by itself where final is a folder with something in it
            sync(final.parent)

    def set_aside(self, path: str) -> str:
        """Renames the bag."""
        bag = self._folder / path
        name = damaged_name(bag.name)
        with as_try_again(self.url):
            try:
                bag.rename(bag.with_name(name))
            except FileNotFoundError as error:
                raise not_there(self.url, path) from error
            sync(bag.parent)
        return f"{path.rpartition('/')[0]}/{name}"

    @contextmanager
    def lock(self, home: str, wait_s: float) -> Iterator[None]:
        """A file in the instrument's folder that the kernel locks; it stays there, empty."""
        with ExitStack() as stack:
            with as_try_again(self.url):
                make_folder(self._folder / home)
                self._locks[home] = stack.enter_context(locked(self._folder / home / LOCK_NAME, wait_s))
            stack.callback(self._locks.pop, home)
            yield

    def sweep(self, home: str) -> None:
        """Removes the parts."""
        with as_try_again(self.url):
            for part in (self._folder / home).glob(f"*/{PART_PREFIX}*"):
                remove_folder(part)

    def _check_still_there(self, home: str) -> None:
        descriptor = self._locks.get(home)
        if descriptor is None:
            return
        path = self._folder / home / LOCK_NAME
        if not path.exists() or not os.path.samestat(path.stat(), os.fstat(descriptor)):
            raise refused(self.url, f"{path} is no longer the file that was locked: the storage went away meanwhile")
