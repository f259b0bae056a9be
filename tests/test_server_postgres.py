"""Several servers on one real PostgreSQL, and a PostgreSQL that goes away and comes back."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import skip_or_fail
from server_support import make_bundle, open_store
from small_disk import small_disk
from sqlalchemy import func, insert, select

from demo.postgres import Postgres, find_postgres
from fieldpost.errors import TryAgainError
from server.broadcast import Broadcast
from server.ingest.core import Ingest
from server.storage import database, notices
from server.storage.store import Store
from server.storage.tables import model_versions, observations, stations

MAX = 1024 * 1024


@pytest.fixture
def own_postgres() -> Iterator[Postgres]:
    """A PostgreSQL that the test may stop."""
    if find_postgres() is None:
        skip_or_fail("PostgreSQL is not installed (make postgresql)")
    folder = Path(tempfile.mkdtemp(prefix="fieldpost-"))
    folder.chmod(0o755)
    server = Postgres(folder / "pg")
    server.start()
    yield server
    server.stop(mode="immediate")
    shutil.rmtree(folder)


@pytest.fixture
def two_stores(postgres_url: str, tmp_path: Path) -> Iterator[tuple[Store, Store]]:
    stores = tuple(open_store(tmp_path, database_url=postgres_url) for _ in range(2))
    yield stores[0], stores[1]
    for store in stores:
        store.close()


def count(store: Store) -> int:
    with store.read() as connection:
        return int(connection.scalar(select(func.count()).select_from(observations)) or 0)


def until(attempt: Callable[[], Any]) -> Any:
    """What the attempt returns once it is not told to try again."""
    deadline = time.monotonic() + 20
    while True:
        try:
            return attempt()
        except TryAgainError:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_a_postgresql_that_is_cut_off_and_comes_back_loses_nothing_and_stores_nothing_twice(
    own_postgres: Postgres, tmp_path: Path
) -> None:
    store = open_store(tmp_path, database_url=own_postgres.create_database("fieldpost"))
    ingest = Ingest(store, payload_bytes_max=MAX, on_stored=lambda: None)
    is_over = threading.Event()
    sent: dict[str, int] = {}
    refusals: list[TryAgainError] = []

    def send(epoch: str) -> None:
        """As a station does: the next only after the receipt for the one before, the same again where there is none."""
        sequence = 0
        while not is_over.is_set():
            try:
                assert ingest.submit(make_bundle(sequence + 1, epoch=epoch)).result(30).held_ranges
            except TryAgainError as error:
                refusals.append(error)
                time.sleep(0.02)
            else:
                sequence = sent[epoch] = sequence + 1

    senders = [threading.Thread(target=send, args=(f"{i:032x}",)) for i in range(4)]
    for sender in senders:
        sender.start()
    until(lambda: count(store))
    for _ in range(2):
        own_postgres.stop(mode="immediate")
        refused_count = len(refusals)
        while len(refusals) == refused_count:
            time.sleep(0.01)
        with pytest.raises(TryAgainError, match="could not read"):
            count(store)
        own_postgres.start()
        before = until(lambda: count(store))
        while until(lambda: count(store)) < before + 20:
            time.sleep(0.01)
    is_over.set()
    for sender in senders:
        sender.join()
    assert count(store) == sum(sent.values())  # the database holds each identity at most once
    ingest.close()
    store.close()


def test_a_postgresql_whose_disk_is_full_gives_no_receipt_and_goes_on_when_there_is_room(
    own_postgres: Postgres, tmp_path: Path
) -> None:
    with small_disk(own_postgres.folder / "small", 64 << 20) as disk:
        own_postgres.create_tablespace("small", disk / "tables")
        store = open_store(tmp_path, database_url=own_postgres.create_database("fieldpost", tablespace="small"))
        ingest = Ingest(store, payload_bytes_max=MAX, on_stored=lambda: None)
        assert ingest.submit(make_bundle(1)).result(30).held_ranges
        ballast = disk / "ballast"
        with ballast.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
            while True:
                file.write(bytes(4096))
        refusal = None
        sequence = 1
        while refusal is None:  # until the pages that the tables have are full
            try:
                bundle = make_bundle(*range(sequence + 1, sequence + 65))
                assert ingest.submit(bundle).result(30).held_ranges
                sequence += 64
            except TryAgainError as error:
                refusal = error
        assert "No space left" in str(refusal)
        assert count(store) == sequence
        ballast.unlink()
        assert ingest.submit(bundle).result(30).duplicate_count == 0
        assert count(store) == sequence + 64
        ingest.close()
        store.close()
        own_postgres.drop_database("fieldpost")


def test_who_reads_on_from_the_last_id_misses_nothing_of_what_several_servers_write(
    two_stores: tuple[Store, Store],
) -> None:
    def write(store: Store, prefix: str) -> None:
        futures = [
            store.write(lambda connection, i=i: connection.execute(insert(stations).values(name=f"{prefix}-{i}")))  # type: ignore[misc]
            for i in range(400)
        ]
        for future in futures:
            future.result(20)

    writers = [threading.Thread(target=write, args=(store, f"s{n}")) for n, store in enumerate(two_stores)]
    for writer in writers:
        writer.start()
    seen: list[int] = []
    query = select(stations.c.id).order_by(stations.c.id)
    while len(seen) < 801:  # with the one that is registered
        is_more_to_come = any(writer.is_alive() for writer in writers)
        with two_stores[0].read() as connection:
            seen.extend(connection.scalars(query.where(stations.c.id > (seen[-1] if seen else 0))))
        assert is_more_to_come or len(seen) == 801
    for writer in writers:
        writer.join()
    assert len(set(seen)) == 801


def test_a_server_that_stands_still_in_its_turn_loses_the_turn_and_the_others_go_on(
    two_stores: tuple[Store, Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "STUCK_WRITER_S", 1)
    stuck, other = two_stores
    stuck.write(lambda connection: connection.invalidate())  # the next write connects anew, with that patience
    may_go = threading.Event()
    late = stuck.write(lambda connection: (connection.execute(select(stations)).all(), may_go.wait(30)))
    other.write(lambda connection: connection.execute(insert(stations).values(name="payerne"))).result(20)
    may_go.set()
    with pytest.raises(TryAgainError):
        late.result(10)
    stuck.write(lambda connection: connection.execute(insert(stations).values(name="geneva"))).result(10)


def test_what_another_server_commits_is_told_at_once_and_again_after_the_connection_was_lost(
    own_postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notices, "RETRY_WAIT_S", 0.05)
    url = own_postgres.create_database("fieldpost")
    store = open_store(tmp_path, database_url=url)
    ingest = Ingest(store, payload_bytes_max=MAX, on_stored=lambda: None)
    model = {"analysis": "boundary_layer", "version": 1, "state": "ready", "kind": "built-in"}

    async def run() -> None:
        told = {name: Broadcast() for name in (notices.OBSERVATIONS, notices.PREDICTIONS, notices.MODELS)}
        listening = asyncio.create_task(notices.listen(url, told))
        await asyncio.wait_for(told[notices.OBSERVATIONS].listen(), 10)  # it listens
        stored, models = told[notices.OBSERVATIONS].listen(), told[notices.MODELS].listen()
        predicted = told[notices.PREDICTIONS].listen()
        await asyncio.wrap_future(ingest.submit(make_bundle(1)))
        await asyncio.wait_for(stored, 10)
        await asyncio.wrap_future(store.write(lambda connection: connection.execute(insert(model_versions), model)))
        await asyncio.wait_for(models, 10)
        assert not predicted.done()
        back = told[notices.PREDICTIONS].listen()
        await asyncio.to_thread(own_postgres.stop, mode="immediate")
        await asyncio.to_thread(own_postgres.start)
        await asyncio.wait_for(back, 10)
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)

    asyncio.run(run())
    ingest.close()
    store.close()


def test_a_settled_mark_that_moves_is_not_told_to_anyone(postgres_url: str, tmp_path: Path) -> None:
    store = open_store(tmp_path, database_url=postgres_url)
    ingest = Ingest(store, payload_bytes_max=MAX, on_stored=lambda: None)
    model = {"analysis": "boundary_layer", "version": 1, "state": "ready", "kind": "built-in"}
    store.write(lambda connection: connection.execute(insert(model_versions), model)).result(10)

    async def run() -> None:
        told = {name: Broadcast() for name in (notices.OBSERVATIONS, notices.MODELS)}
        listening = asyncio.create_task(notices.listen(postgres_url, told))
        await asyncio.wait_for(told[notices.MODELS].listen(), 10)  # it listens
        models, stored = told[notices.MODELS].listen(), told[notices.OBSERVATIONS].listen()
        mark = model_versions.update().values(settled_observation_id=7)
        await asyncio.wrap_future(store.write(lambda connection: connection.execute(mark)))
        await asyncio.wrap_future(ingest.submit(make_bundle(1)))
        await asyncio.wait_for(stored, 10)  # notices come in the order of the commits
        assert not models.done()
        change = model_versions.update().values(state="active")
        await asyncio.wrap_future(store.write(lambda connection: connection.execute(change)))
        await asyncio.wait_for(models, 10)
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)

    asyncio.run(run())
    ingest.close()
    store.close()


def test_listening_to_sqlite_ends_at_once(tmp_path: Path) -> None:
    asyncio.run(asyncio.wait_for(notices.listen(f"sqlite:///{tmp_path / 'fieldpost.db'}", {}), 5))


def test_an_operator_who_turned_durable_commits_off_is_overruled(postgres_url: str, tmp_path: Path) -> None:
    store = open_store(tmp_path, database_url=f"{postgres_url}&options=-c%20synchronous_commit=off%20-c%20work_mem=5MB")
    setting = store.write(lambda connection: connection.exec_driver_sql("show work_mem").scalar()).result(10)
    durable = store.write(lambda connection: connection.exec_driver_sql("show synchronous_commit").scalar()).result(10)
    assert (setting, durable) == ("5MB", "on")
    store.close()
