"""One place owns the database: one thread writes, in group commits; anyone reads.

Whoever has something to write hands over a function; all functions that wait are run in one transaction, the segments
are synchronised, the transaction is committed, and only then does anyone hear that their write is done.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import DataError, IntegrityError, InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from fieldpost.errors import TryAgainError
from server.storage.database import connect_reader, connect_writer, migrate, open_engine
from server.storage.segment_url import open_segments

logger = logging.getLogger(__name__)

T = TypeVar("T")
GROUP_MAX = 64
TURN_MAX_S = 0.05
"""Whoever writes what could be made again leaves the lock to others for as long as it was held; at most so long."""
_Job = tuple[Callable[[Connection], Any], "Future[Any]"]


class Store:
    """The database and the segments of one server.

    Args:
        database_url: SQLAlchemy URL, for example "sqlite:////var/lib/fieldpost/fieldpost.db", or
            "postgresql+psycopg://fieldpost@db.example.org/fieldpost". Several processes may use the same PostgreSQL.
        segments_url: Where payloads lie: a folder, or an object store (server/storage/segments.py).
        is_repeatable: Whether all that is written here could be made again; see open_engine.

    Attributes:
        segments: Where payloads are written; in the writer's thread alone, but for adopt().
        segment_reader: Where they are read and removed.
    """

    def __init__(self, database_url: str, segments_url: str | Path, *, is_repeatable: bool = False) -> None:
        self._is_repeatable = is_repeatable
        self._engine = open_engine(database_url, is_repeatable=is_repeatable)
        try:
            migrate(self._engine)
        except BaseException:
            self._engine.dispose()
            raise
        self._writing: Connection | None = None
        self.segments, self.segment_reader = open_segments(segments_url)
        self.read_segment = self.segment_reader.read
        self.read_range = self.segment_reader.read_range
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._closing = threading.Lock()  # so that nothing is put behind the end, where nobody takes it
        self._is_closed = False
        self._writer = threading.Thread(target=self._write_groups, name="store-writer", daemon=True)
        self._writer.start()

    def write(self, operation: Callable[[Connection], T]) -> Future[T]:
        """Runs operation in the next group commit.

        Returns:
            A future that has the operation's result once it is on the disk, or what it raised. Where the disk or the
            database refused, that is a TryAgainError, and nothing of the operation remains.
        """
        future: Future[T] = Future()
        with self._closing:
            if not self._is_closed:
                self._jobs.put((operation, future))
                return future
        future.set_exception(TryAgainError("the store is closed: the server is ending", hint="send it again later"))
        return future

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A connection for reading: one consistent view while it is open.

        Raises:
            TryAgainError: The database is gone, or goes while it is read.
        """
        try:
            with connect_reader(self._engine) as connection:
                yield connection
        except (OperationalError, InterfaceError, PoolTimeoutError) as error:
            raise TryAgainError(f"the store could not read: {error}", hint="check the disk and the database") from error

    def close(self) -> None:
        """Writes what waits, then closes everything."""
        with self._closing:
            self._is_closed = True
            self._jobs.put(None)
        self._writer.join()
        self.segments.close()
        self.segment_reader.close()
        self._disconnect()
        self._engine.dispose()

    def _write_groups(self) -> None:
        is_open = True
        while is_open:
            group: list[_Job] = []
            job = self._jobs.get()
            while job is not None:
                if job[1].set_running_or_notify_cancel():  # a caller may have given up; from here on nobody can
                    group.append(job)
                if len(group) >= (1 if self._is_repeatable else GROUP_MAX):
                    break
                try:
                    job = self._jobs.get_nowait()
                except queue.Empty:
                    break
            is_open = job is not None
            if group:
                begin_s = time.monotonic()
                self._commit_group(group)
                if self._is_repeatable:  # whoever waits for the lock looks only now and then whether it is free
                    time.sleep(min(time.monotonic() - begin_s, TURN_MAX_S))

    def _commit_group(self, group: list[_Job]) -> None:
        """Runs and commits the group; tells each of its futures how it went."""
        outcomes: list[tuple[Future[Any], Any, Exception | None]] = []
        try:
            if self._writing is None:
                self._writing = connect_writer(self._engine)
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
