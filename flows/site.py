"""Opens what the server keeps, from a process beside it: its database, its payloads, the archive.

Flows only read observations and write short rows, so SQLite in WAL mode serves both at once. Knows no Prefect.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import make_url

from fieldpost.errors import BrokenStateError, InvalidRequestError
from flows.archiving.archivist import LOCK_NAME, Archivist
from flows.bags.bag import OnStep, ignore_step
from server.archive.bags import has_bags
from server.settings import Settings, load_settings
from server.storage.store import Store


@contextmanager
def open_archivist(settings_file: Path | None, *, on_step: OnStep = ignore_step) -> Iterator[Archivist]:
    """The archive of the server that these settings, or the environment, speak of.

    Raises:
        InvalidRequestError: There is no such server here: a new, empty database would hide the mistake.
        BrokenStateError: The archive folder is empty although bags are recorded.
    """
    settings = load_settings(settings_file)
    _check_database(settings)
    store = Store(settings.database, settings.segments)
    try:
        folder = settings.archive.absolute()
        _check_archive(store, folder)
        yield Archivist(store, folder, on_step=on_step)
    finally:
        store.close()


def _check_database(settings: Settings) -> None:
    url = make_url(settings.database)
    if url.get_backend_name() == "sqlite" and not (url.database and Path(url.database).is_file()):
        raise InvalidRequestError(
            f"expected the server's database at {url.database}, but there is none",
            hint="give the flow the server's settings: FIELDPOST_DATA_FOLDER, or settings_file",
        )


def _check_archive(store: Store, folder: Path) -> None:
    """A storage array that is not mounted looks like an empty folder: archiving into that fills the wrong disk."""
    with store.read() as connection:
        is_used = has_bags(connection)
    if is_used and not any(folder.glob(f"*/*/{LOCK_NAME}")):
        raise BrokenStateError(
            f"expected the bags that the database speaks of in {folder}, but it holds none",
            hint="mount the storage, or correct FIELDPOST_ARCHIVE_FOLDER",
        )
