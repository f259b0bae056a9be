"""The place where bags lie: one shelf, a folder or an object store, and perhaps a second one with their copies.

A bag is made aside, in a folder that stage() gives, and gets its final name at once and whole by publish(); whoever
lists, opens or reads sees whole bags only. Knows names and files, and nothing of what is in them but the names of the
two by which a bag is known.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

from fieldpost.errors import BrokenStateError, InvalidRequestError, TryAgainError

PIECE_BYTES = 1024 * 1024
PART_PREFIX, DAMAGED_PREFIX = ".part-", ".damaged-"
LOCK_NAME = ".lock"
MANIFEST, DECLARATION = "manifest-sha256.txt", "bagit.txt"
BAG_PATH = re.compile(r"[^/.][^/]*/[^/.][^/]*/\d{4}/(\d{4}-\d\d-\d\d)\.v(\d+)")
OBJECT_SCHEMES = ("s3", "gs", "az")


class Shelf(Protocol):
    """A place of bags. Paths are "station/instrument/YYYY/YYYY-MM-DD.vN", a home is "station/instrument".

    Every method raises TryAgainError, which names the place, where the storage refuses or does not answer.

    Attributes:
        url: The place, for people.
    """

    url: str

    def is_empty(self) -> bool:
        """Whether nobody has ever put a bag here: an array that is not mounted looks like this."""

    def list_paths(self, home: str = "") -> Iterator[str]:
        """The paths of the bags, those of a day by version; of all instruments where no home is given."""

    def has(self, path: str) -> bool:
        """Whether a bag has this name."""

    def list_files(self, path: str) -> list[tuple[str, int]]:
        """The names of a bag's files, relative to it, in order, and the bytes of each; empty where there is none."""

    def read(self, path: str, name: str, offset: int = 0) -> Iterator[bytes]:
        """The content of a file from an offset on, in pieces of at most PIECE_BYTES.

        Raises:
            BrokenStateError: There is no such file.
        """

    def open(self, path: str) -> AbstractContextManager[Path]:
        """A local folder with the bag's files, only to be read, for as long as the block lasts.

        An OSError in the block becomes a TryAgainError.

        Raises:
            BrokenStateError: There is no such bag.
        """

    def stage(self, path: str) -> AbstractContextManager[Path]:
        """An empty local folder in which to make a bag; what is still in it when the block ends is removed.

        An OSError in the block, a full disk for example, becomes a TryAgainError.
        """

    def publish(self, part: Path, path: str) -> None:
        """Gives a staged bag its final name, durably.

        Raises:
            TryAgainError: There is one of this name, or another run is bringing one.
            BrokenStateError: What arrived is not what the manifest says.
        """

    def set_aside(self, path: str) -> str:
        """Gives a damaged bag a name that nothing lists, and returns it: nothing is ever thrown away as damaged.

        Raises:
            BrokenStateError: There is nothing of this name.
        """

    def lock(self, home: str, wait_s: float) -> AbstractContextManager[None]:
        """Keeps the runs on one instrument apart.

        Raises:
            TryAgainError: Another run held it for wait_s.
        """

    def sweep(self, home: str) -> None:
        """Removes what ended runs left of an instrument; only the lock's holder may."""


def open_shelf(place: Path | str, staging: Path) -> Shelf:
    """Opens a shelf; touches nothing.

    Args:
        place: A folder (also file:///folder), or an object store: s3://bucket/prefix, gs://… or az://…
        staging: A local folder, in which the bags of an object store are made and opened. Each shelf has its own.

    Raises:
        InvalidRequestError: The place is none of these.
    """
    scheme = urlsplit(place).scheme if isinstance(place, str) and "://" in place else ""
    if scheme in OBJECT_SCHEMES:
        from server.archive.shelf_objects import ObjectShelf  # its library is large, and few need it

        return ObjectShelf(str(place), staging)
    if scheme not in ("", "file"):
        raise InvalidRequestError(
            f"expected a folder, s3://, gs:// or az:// for the archive, but got {scheme}://",
            hint="name a folder, or an object store as s3://bucket/prefix",
        )
    from server.archive.shelf_folder import FolderShelf

    return FolderShelf(Path(unquote(urlsplit(str(place)).path)) if scheme else Path(place))


def read_file(shelf: Shelf, path: str, name: str) -> bytes:
    """The content of a small file of a bag.

    Raises:
        BrokenStateError: There is no such file.
        TryAgainError: The storage does not answer.
    """
    return b"".join(shelf.read(path, name))


def split_path(path: str) -> tuple[str, str, str]:
    """A bag's path as home, year and name."""
    home, year, name = path.rsplit("/", 2)
    return home, year, name


def part_name(name: str) -> str:
    """A name for a bag that is being made."""
    return f"{PART_PREFIX}{name}-{secrets.token_hex(4)}"


def damaged_name(name: str) -> str:
    """A name for a bag that is set aside."""
    return f"{DAMAGED_PREFIX}{name}-{secrets.token_hex(4)}"


def day_and_version(path: str) -> tuple[str, int] | None:
    """The day, YYYY-MM-DD, and the version of a bag's path; None where it is not one."""
    matched = BAG_PATH.fullmatch(path)
    return (matched[1], int(matched[2])) if matched else None


@contextmanager
def as_try_again(url: str) -> Iterator[None]:
    """Turns what a disk says into an error that names the place and what to do."""
    try:
        yield
    except OSError as error:
        raise refused(url, error) from error


def refused(url: str, reason: object) -> TryAgainError:
    """The storage does not do what it is asked."""
    return TryAgainError(
        f"the archive {url} could not be written or read: {reason}",
        hint="check that the storage is mounted, writable and has free space; then run again",
    )


def not_there(url: str, path: str) -> BrokenStateError:
    """Something is missing that should be on the shelf."""
    return BrokenStateError(
        f"expected {path} in {url}, but it cannot be read: it is not there",
        hint="check that the storage is mounted; the scrub flow repairs a bag from its copy",
    )
