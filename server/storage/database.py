"""Opens a database by its URL, SQLite or PostgreSQL, so that both keep the same promises.

A commit is on the disk. Writers take turns, those of other processes too: so ids ascend in the order of commits, and
what a writer looks up cannot change before it has written. A reader has one consistent view, and waits for nobody.
Knows nothing of what is kept in the tables.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from fieldpost.errors import BrokenStateError, InvalidRequestError, TryAgainError

WRITER_LOCK = 0x6669656C64706F73
"""The advisory lock that a PostgreSQL writer holds from its first statement to its commit: "fieldpos"."""
LOCK_TIMEOUT_S = 30
"""A writer that waits longer for its turn gives up, and its senders try again."""
STUCK_WRITER_S = 60
"""A writer that stands still for so long inside its turn (a stopped process) loses its connection, and the turn."""
READERS_MAX = 16
PATIENCE: dict[str, Any] = {
    "connect_timeout": 10,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}
"""For libpq: a database that vanishes from the network is noticed within half a minute."""
MIGRATIONS = Path(__file__).parent / "migrations"


def open_engine(database_url: str, *, is_repeatable: bool = False) -> Engine:
    """Opens a database; connects only when it is used.

    Args:
        database_url: SQLAlchemy URL.
        is_repeatable: Whether all that is written here could be made again. Then a commit does not wait for the disk
            while it keeps others from theirs: the last ones may go with the power, but never one without those after.

    Raises:
        InvalidRequestError: The URL is none, or one of another kind of database.
    """
    url = _parse(database_url)
    is_sqlite = url.get_backend_name() == "sqlite"
    engine = _open_sqlite(url, is_repeatable) if is_sqlite else _open_postgresql(url, is_repeatable)

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        is_writer = connection.get_execution_options().get("is_writer", False)
        if engine.dialect.name == "sqlite":
            # A writer takes the lock at once: one that first reads and then writes could be refused half-way.
            connection.exec_driver_sql("BEGIN IMMEDIATE" if is_writer else "BEGIN")
        elif is_writer:
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({WRITER_LOCK})")

    return engine


def connect_reader(engine: Engine) -> Connection:
    """A connection of which each transaction sees the database as it was at one moment."""
    if engine.dialect.name == "sqlite":
        return engine.connect()
    return engine.connect().execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)


def connect_writer(engine: Engine) -> Connection:
    """A connection of which each transaction waits until no other writer is at work.

    On PostgreSQL each of its statements sees what was committed before that statement: a view taken at the begin would
    be older than the turn that was waited for.
    """
    connection = engine.connect()
    if engine.dialect.name == "postgresql":
        connection.exec_driver_sql(f"SET idle_in_transaction_session_timeout = '{STUCK_WRITER_S}s'")
        # Foreign keys into small tables are checked by reading them, which is cheaper than their index.
        connection.exec_driver_sql("SET enable_seqscan = on")
        connection.commit()
    return connection.execution_options(is_writer=True)


@contextmanager
def by_index(connection: Connection) -> Iterator[None]:
    """What a writer asks inside goes by our indexes, as all that readers ask does; only PostgreSQL needs to be told."""
    is_told = connection.dialect.name == "postgresql"
    if is_told:
        connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
    yield
    if is_told:
        connection.exec_driver_sql("SET LOCAL enable_seqscan = on")


def libpq_url(database_url: str) -> str | None:
    """The same database for PostgreSQL's own library, password and all; None where it is not PostgreSQL."""
    url = _parse(database_url)
    if url.get_backend_name() != "postgresql":
        return None
    return url.set(drivername="postgresql").render_as_string(hide_password=False)


def _parse(database_url: str) -> URL:
    try:
        url = make_url(database_url)
    except ArgumentError as error:
        raise InvalidRequestError(
            "expected the URL of a database, but it cannot be read", hint="for example sqlite:////var/lib/fieldpost.db"
        ) from error
    if url.drivername == "postgresql":
        url = url.set(drivername="postgresql+psycopg")
    if url.drivername not in ("sqlite", "sqlite+pysqlite", "postgresql+psycopg"):
        raise InvalidRequestError(
            f"expected a database sqlite:///… or postgresql+psycopg://…, but got {url.drivername}://…",
            hint="set database_url to one of these",
        )
    return url


def _open_sqlite(url: URL, is_repeatable: bool) -> Engine:
    if url.database:
        Path(url.database).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(url, connect_args={"timeout": LOCK_TIMEOUT_S})

    @event.listens_for(engine, "connect")
    def _configure(connection: Any, _record: object) -> None:
        connection.isolation_level = None  # the driver starts no transaction of its own: ours are real ones
        # FULL: a receipt is a promise, and NORMAL may lose the last commits when the power fails. Whoever promises
        # nothing also brings the log home early, after its own commits, so that no one else has to amid a live one.
        synchronous, checkpoint_pages = ("NORMAL", 1000) if is_repeatable else ("FULL", 4000)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute(f"PRAGMA synchronous = {synchronous}")
        connection.execute(f"PRAGMA wal_autocheckpoint = {checkpoint_pages}")

    return engine


def _open_postgresql(url: URL, is_repeatable: bool) -> Engine:
    # A receipt is a promise, whatever the server's own configuration says of commits. And all our queries have their
    # index: what came after the last ANALYZE looks like nothing to the planner, who would then read whole tables.
    synchronous = "off" if is_repeatable else "on"
    promises = f"-c synchronous_commit={synchronous} -c lock_timeout={LOCK_TIMEOUT_S}s -c enable_seqscan=off"
    options = f"{url.query.get('options', '')} {promises}".strip()  # of two that say the same, the later holds
    # Asked before each use whether it still answers: the first to read after a restart is not to pay for it.
    return create_engine(
        url,
        connect_args={**PATIENCE, "options": options},
        pool_pre_ping=True,
        pool_size=READERS_MAX // 2,
        max_overflow=READERS_MAX // 2,
    )


def migrate(engine: Engine) -> None:
    """Brings the database to the newest schema; of two processes that start at once, the second finds it done.

    Raises:
        TryAgainError: The database cannot be reached.
        BrokenStateError: It is of a newer Fieldpost, or damaged.
    """
    try:
        connection = connect_writer(engine)
    except SQLAlchemyError as error:
        raise TryAgainError(
            f"the database {engine.url.render_as_string()} cannot be opened: {error}",
            hint="is it running, and is database_url right?",
        ) from error
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["connection"] = connection
    try:
        with connection.begin():
            command.upgrade(config, "head")
    except Exception as error:
        raise BrokenStateError(
            f"the database {engine.url.render_as_string()} could not be brought to this version's schema: {error}",
            hint="it may belong to a newer Fieldpost, or be damaged; restore its backup or use that version",
        ) from error
    finally:
        connection.detach()  # not back to the pool: a reader is no writer
        connection.close()
