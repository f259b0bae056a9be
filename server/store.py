"""One place owns the database: one thread writes, in group commits; anyone reads.

Whoever has something to write hands over a function; all functions that wait are run in one transaction, the segments
are synchronised, the transaction is committed, and only then does anyone hear that their write is done.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import DataError, IntegrityError, SQLAlchemyError

from fieldpost.errors import BrokenStateError, TryAgainError
from server.segments import SegmentReader, SegmentWriter

logger = logging.getLogger(__name__)

T = TypeVar("T")
GROUP_MAX = 64
_Job = tuple[Callable[[Connection], Any], "Future[Any]"]


class Store:
    """The database and the segments of one server.

    Args:
        database_url: SQLAlchemy URL, for example "sqlite:////var/lib/fieldpost/fieldpost.db".
        segments_folder: Where payloads lie.
    """

    def __init__(self, database_url: str, segments_folder: Path) -> None:
        self._engine = open_engine(database_url)
        migrate(self._engine)
        self._writing: Connection | None = None
        self.segments = SegmentWriter(segments_folder)
        self._reader = SegmentReader(segments_folder)
        self.read_segment = self._reader.read
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._writer = threading.Thread(target=self._write_groups, name="store-writer", daemon=True)
        self._writer.start()

    def write(self, operation: Callable[[Connection], T]) -> Future[T]:
        """Runs operation in the next group commit.

        Returns:
            A future that has the operation's result once it is on the disk, or what it raised. Where the disk or the
            database refused, that is a TryAgainError, and nothing of the operation remains.
        """
        future: Future[T] = Future()
        self._jobs.put((operation, future))
        return future

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A connection for reading: one consistent view while it is open."""
        with self._engine.connect() as connection:
            yield connection

    def close(self) -> None:
        """Writes what waits, then closes everything."""
        self._jobs.put(None)
        self._writer.join()
        self.segments.close()
        self._reader.close()
        self._disconnect()
        self._engine.dispose()

    def _write_groups(self) -> None:
        is_open = True
        while is_open:
            group: list[_Job] = []
            job = self._jobs.get()
            while job is not None:
                group.append(job)
                if len(group) >= GROUP_MAX:
                    break
                try:
                    job = self._jobs.get_nowait()
                except queue.Empty:
                    break
            is_open = job is not None
            if group:
                self._commit_group(group)

    def _commit_group(self, group: list[_Job]) -> None:
        """Runs and commits the group; tells each of its futures how it went."""
        outcomes: list[tuple[Future[Any], Any, Exception | None]] = []
        try:
            if self._writing is None:
                # A writer takes the lock at once: one that first reads and then writes could be refused half-way.
                self._writing = self._engine.connect().execution_options(sqlite_begin="BEGIN IMMEDIATE")
            with self._writing.begin():
                for operation, future in group:
                    outcomes.append((future, *_run_alone(self._writing, operation, is_only=len(group) == 1)))
                self.segments.sync()
        except (SQLAlchemyError, OSError) as error:
            logger.error("write refused", extra={"group_count": len(group), "error": str(error)})
            self._disconnect()  # the next group tries anew
            refusal = TryAgainError(f"the store could not write: {error}", hint="check the disk and the database")
            refusal.__cause__ = error
            for _, future in group:
                future.set_exception(refusal)
            return
        for future, result, own_error in outcomes:
            if own_error is None:
                future.set_result(result)
            else:
                future.set_exception(own_error)

    def _disconnect(self) -> None:
        if self._writing is not None:
            with suppress(SQLAlchemyError):
                self._writing.invalidate()  # not back to the pool: it may speak to what is no longer there
                self._writing.close()
            self._writing = None


def _run_alone(
    connection: Connection, operation: Callable[[Connection], T], *, is_only: bool
) -> tuple[T | None, Exception | None]:
    """Runs one operation so that its own refusal undoes it, and nothing else of the group."""
    transaction = connection.get_transaction() if is_only else connection.begin_nested()
    assert transaction is not None  # the group's
    try:
        result = operation(connection)
    except (IntegrityError, DataError) as error:
        transaction.rollback()
        return None, error
    except (SQLAlchemyError, OSError):
        raise  # the disk or the database: the whole group waits for better times
    except Exception as error:
        transaction.rollback()
        return None, error
    if not is_only:
        transaction.commit()
    return result, None


def open_engine(database_url: str) -> Engine:
    """Opens a database so that a commit is durable and readers never wait for the writer."""
    url = make_url(database_url)
    if url.get_backend_name() != "sqlite":
        return create_engine(url)
    if url.database:
        Path(url.database).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(url, connect_args={"timeout": 30})

    @event.listens_for(engine, "connect")
    def _configure(connection: Any, _record: object) -> None:
        connection.isolation_level = None  # the driver starts no transaction of its own: ours are real ones
        # FULL: a receipt is a promise, and NORMAL may lose the last commits when the power fails.
        for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON", "wal_autocheckpoint = 4000"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        connection.exec_driver_sql(connection.get_execution_options().get("sqlite_begin", "BEGIN"))

    return engine


def migrate(engine: Engine) -> None:
    """Brings the database to the newest schema.

    Raises:
        BrokenStateError: The database is of a newer Fieldpost, or damaged.
    """
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    try:
        with engine.begin() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    except Exception as error:
        raise BrokenStateError(
            f"the database {engine.url.render_as_string()} could not be brought to this version's schema: {error}",
            hint="it may belong to a newer Fieldpost, or be damaged; restore its backup or use that version",
        ) from error
