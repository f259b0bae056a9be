"""The store's group commits: one refusal undoes one operation, and nobody hears of a write before it is on the disk."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, insert, select
from sqlalchemy.exc import IntegrityError
from sqlmodel import SQLModel

from fieldpost.errors import BrokenStateError, TryAgainError
from server.store import Store, open_engine
from server.tables import stations


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(f"sqlite:///{tmp_path / 'fieldpost.db'}", tmp_path / "segments")
    yield store
    store.close()


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


def test_what_a_future_reports_another_process_can_read(store: Store, tmp_path: Path) -> None:
    store.write(add("payerne")).result(10)
    with sqlite3.connect(tmp_path / "fieldpost.db") as other:
        assert other.execute("select name from station").fetchall() == [("payerne",)]


def test_a_database_that_goes_away_is_an_error_to_try_again_and_one_that_comes_back_is_used(tmp_path: Path) -> None:
    folder = tmp_path / "mounted"
    store = Store(f"sqlite:///{folder / 'fieldpost.db'}", tmp_path / "segments")
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


def test_closing_writes_what_waits(tmp_path: Path) -> None:
    store = Store(f"sqlite:///{tmp_path / 'fieldpost.db'}", tmp_path / "segments")
    futures = [store.write(add(f"station-{i}")) for i in range(200)]
    store.close()
    assert all(future.done() and future.exception() is None for future in futures)


def test_commits_are_durable_and_references_are_held(store: Store) -> None:
    def pragma(name: str) -> object:
        return store.write(lambda connection: connection.exec_driver_sql(f"pragma {name}").scalar()).result(10)

    assert (pragma("synchronous"), pragma("journal_mode"), pragma("foreign_keys")) == (2, "wal", 1)


def test_the_migrations_lead_to_the_tables_of_the_code(store: Store, tmp_path: Path) -> None:
    engine = open_engine(f"sqlite:///{tmp_path / 'fieldpost.db'}")
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), SQLModel.metadata) == []
    engine.dispose()


def test_a_database_of_a_newer_version_is_refused_with_what_to_do(tmp_path: Path) -> None:
    Store(f"sqlite:///{tmp_path / 'fieldpost.db'}", tmp_path / "segments").close()
    with sqlite3.connect(tmp_path / "fieldpost.db") as other:
        other.execute("update alembic_version set version_num = '9999'")
    with pytest.raises(BrokenStateError, match="could not be brought to this version") as caught:
        Store(f"sqlite:///{tmp_path / 'fieldpost.db'}", tmp_path / "segments")
    assert "newer Fieldpost" in caught.value.hint
