"""Opens what the server keeps, from a process beside it: its database, its payloads, the archive and its copy.

Flows only read observations and write short rows, so SQLite in WAL mode serves both at once. Knows no Prefect.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import make_url

from fieldpost.errors import BrokenStateError, InvalidRequestError
from server.archive.bags import has_bags
from server.archive.shelf import Shelf, open_shelf
from server.settings import Settings, load_settings
from server.storage.store import Store


@dataclass(frozen=True, slots=True)
class Site:
    """What flows work on.

    Attributes:
        settings: The server's.
        store: Observations, predictions, and what is recorded of bags.
        shelf: Where the bags lie.
        copy: The second place of the bags; None where there is none.
    """

    settings: Settings
    store: Store
    shelf: Shelf
    copy: Shelf | None

    def check_shelf(self) -> None:
        """Makes sure that the archive is there.

        A storage array that is not mounted looks like an empty folder: archiving into that fills the wrong disk.

        Raises:
            BrokenStateError: The shelf is empty although bags are recorded.
            TryAgainError: It does not answer.
        """
        with self.store.read() as connection:
            is_used = has_bags(connection)
        if is_used and self.shelf.is_empty():
            raise BrokenStateError(
                f"expected the bags that the database speaks of in {self.shelf.url}, but it holds none",
                hint="mount the storage, or correct FIELDPOST_ARCHIVE_FOLDER",
            )


@contextmanager
def open_site(settings_file: Path | None, *, is_repeatable: bool = False) -> Iterator[Site]:
    """The site of the server that these settings, or the environment, speak of.

    Args:
        settings_file: TOML; None for the environment alone.
        is_repeatable: Whether all that is written there could be made again, as by a backfill.

    Raises:
        InvalidRequestError: There is no such server here: a new, empty database would hide the mistake.
        BrokenStateError: The archive is empty although bags are recorded.
    """
    settings = load_settings(settings_file)
    _check_database(settings)
    shelf, copy = open_shelves(settings)
    store = Store(settings.database, settings.segments, is_repeatable=is_repeatable)
    try:
        site = Site(settings, store, shelf, copy)
        site.check_shelf()
        yield site
    finally:
        store.close()


@contextmanager
def open_store(settings_file: Path | None) -> Iterator[tuple[Settings, Store]]:
    """Settings and store alone: for work that goes on where the archive is away.

    Raises:
        InvalidRequestError: There is no such server here.
    """
    settings = load_settings(settings_file)
    _check_database(settings)
    store = Store(settings.database, settings.segments)
    try:
        yield settings, store
    finally:
        store.close()


def open_shelves(settings: Settings) -> tuple[Shelf, Shelf | None]:
    """The shelf of the bags, and that of their copies, if any.

    Raises:
        InvalidRequestError: A place is neither a folder nor an object store, or both are the same one.
    """
    if settings.archive_copy == settings.archive:
        raise InvalidRequestError(
            f"expected another place than {settings.archive} in archive_copy_folder, but got the same",
            hint="name a folder on another disk, best on another machine, or leave it empty",
        )
    copy = settings.archive_copy
    return (
        open_shelf(settings.archive, settings.archive_staging),
        None if copy is None else open_shelf(copy, settings.archive_copy_staging),
    )


def _check_database(settings: Settings) -> None:
    url = make_url(settings.database)
    if url.get_backend_name() == "sqlite" and not (url.database and Path(url.database).is_file()):
        raise InvalidRequestError(
            f"expected the server's database at {url.database}, but there is none",
            hint="give the flow the server's settings: FIELDPOST_DATA_FOLDER, or settings_file",
        )
