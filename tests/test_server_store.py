"""The store's group commits: one refusal undoes one operation, and nobody hears of a write before it is on the disk."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, insert, select
from sqlalchemy.exc import IntegrityError
from sqlmodel import SQLModel

from fieldpost.errors import BrokenStateError, InvalidRequestError, TryAgainError
from server.storage.database import open_engine
from server.storage.store import Store
from server.storage.tables import stations


@pytest.fixture
def store(database_url: str, tmp_path: Path) -> Iterator[Store]:
    store = Store(database_url, tmp_path / "segments")
    yield store
    store.close()


def sqlite_url(folder: Path) -> str:
    return f"sqlite:///{folder / 'fieldpost.db'}"


def add(name: str) -> object:
    return lambda connection: connection.execute(insert(stations).values(name=name))


def names(store: Store) -> list[str]:
    with store.read() as connection:
        return sorted(connection.scalars(select(stations.c.name)))


def refuse_after_writing(connection: Connection) -> None:
    connection.execute(insert(stations).values(name="undone"))
    raise ValueError("not this one")


def test_an_operation_that_refuses_is_undone_alone(store: Store) -> None:
    with pytest.raises(ValueError, match="not this one"):
        store.write(refuse_after_writing).result(10)
    store.write(add("payerne")).result(10)
    assert names(store) == ["payerne"]


def test_an_operation_that_refuses_in_a_group_undoes_no_other_of_the_group(store: Store) -> None:
    may_go = threading.Event()
    blocker = store.write(lambda _: may_go.wait(10))  # meanwhile the others gather to one group
    futures = [store.write(each) for each in (add("a"), refuse_after_writing, add("b"), add("a"), add("c"))]
    may_go.set()
    blocker.result(10)
    outcomes = [type(future.exception(10)) for future in futures]
    assert outcomes == [type(None), ValueError, type(None), IntegrityError, type(None)]
    assert names(store) == ["a", "b", "c"]


def test_what_a_future_reports_another_connection_can_read(store: Store, database_url: str) -> None:
    store.write(add("payerne")).result(10)
    engine = open_engine(database_url)
    with engine.connect() as other:
        assert other.scalars(select(stations.c.name)).all() == ["payerne"]
    engine.dispose()


def test_a_reader_has_one_view_while_others_write(store: Store) -> None:
    store.write(add("a")).result(10)
    with store.read() as connection:
        assert connection.scalars(select(stations.c.name)).all() == ["a"]
        store.write(add("b")).result(10)
        assert connection.scalars(select(stations.c.name)).all() == ["a"]
    assert names(store) == ["a", "b"]


def test_a_database_file_that_goes_away_is_an_error_to_try_again_and_one_that_comes_back_is_used(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "mounted"
    store = Store(sqlite_url(folder), tmp_path / "segments")
    store.write(add("a")).result(10)
    with pytest.raises(TryAgainError):  # what the database itself refuses costs the connection
        store.write(lambda connection: connection.exec_driver_sql("select * from nothing")).result(10)
    folder.rename(tmp_path / "gone")
    with pytest.raises(TryAgainError, match="could not write"):
        store.write(add("b")).result(10)
    (tmp_path / "gone").rename(folder)
    store.write(add("c")).result(10)
    assert names(store) == ["a", "c"]
    store.close()


def test_closing_writes_what_waits(database_url: str, tmp_path: Path) -> None:
    store = Store(database_url, tmp_path / "segments")
    futures = [store.write(add(f"station-{i}")) for i in range(200)]
    store.close()
    assert all(future.done() and future.exception() is None for future in futures)


def test_sqlite_commits_are_durable_and_references_are_held(tmp_path: Path) -> None:
    store = Store(sqlite_url(tmp_path), tmp_path / "segments")

    def pragma(name: str) -> object:
        return store.write(lambda connection: connection.exec_driver_sql(f"pragma {name}").scalar()).result(10)

    assert (pragma("synchronous"), pragma("journal_mode"), pragma("foreign_keys")) == (2, "wal", 1)
    store.close()


def test_the_migrations_lead_to_the_tables_of_the_code(store: Store, database_url: str) -> None:
    engine = open_engine(database_url)
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), SQLModel.metadata) == []
    engine.dispose()


def test_a_database_of_a_newer_version_is_refused_with_what_to_do(database_url: str, tmp_path: Path) -> None:
    store = Store(database_url, tmp_path / "segments")
    store.write(lambda connection: connection.exec_driver_sql("update alembic_version set version_num = '9999'"))
    store.close()
    with pytest.raises(BrokenStateError, match="could not be brought to this version") as caught:
        Store(database_url, tmp_path / "segments")
    assert "newer Fieldpost" in caught.value.hint


def test_servers_that_start_at_once_on_an_empty_database_all_find_it_ready(database_url: str, tmp_path: Path) -> None:
    script = "import sys; from server.storage.store import Store; Store(*sys.argv[1:]).close()"
    command = [sys.executable, "-c", script, database_url, str(tmp_path / "segments")]
    starting = [subprocess.Popen(command, stderr=subprocess.PIPE) for _ in range(3)]
    for each in starting:
        _, words = each.communicate(timeout=60)
        assert each.returncode == 0, words.decode()


@pytest.mark.parametrize("url", ["", "nonsense", "mysql://localhost/fieldpost", "postgresql+asyncpg:///fieldpost"])
def test_a_database_of_another_kind_is_refused_with_what_is_expected(url: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match=r"expected (the URL of )?a database"):
        Store(url, tmp_path / "segments")


def test_a_database_that_cannot_be_reached_is_an_error_to_try_again_that_keeps_its_password(tmp_path: Path) -> None:
    with pytest.raises(TryAgainError, match="cannot be opened") as caught:
        Store(f"postgresql://fieldpost:secret@/fieldpost?host={tmp_path}", tmp_path / "segments")
    assert "secret" not in str(caught.value)


def test_what_is_written_to_a_closed_store_is_refused_and_nobody_waits_for_it(
    database_url: str, tmp_path: Path
) -> None:
    store = Store(database_url, tmp_path / "segments")
    store.close()
    with pytest.raises(TryAgainError, match="closed"):
        store.write(add("late")).result(5)


def test_what_could_be_made_again_does_not_wait_for_the_disk_and_is_there_for_others_at_once(
    store: Store, database_url: str, tmp_path: Path
) -> None:
    setting = "PRAGMA synchronous" if database_url.startswith("sqlite") else "SHOW synchronous_commit"
    hasty = Store(database_url, tmp_path / "segments", is_repeatable=True)
    try:
        asked = [each.write(lambda connection: connection.exec_driver_sql(setting).scalar()) for each in (store, hasty)]
        assert [each.result(10) for each in asked] in ([2, 1], ["on", "off"])
        written = [hasty.write(add(f"station-{number}")) for number in range(5)]  # type: ignore[arg-type]
        for each in written:
            each.result(10)
        assert names(store) == [f"station-{number}" for number in range(5)]
    finally:
        hasty.close()
