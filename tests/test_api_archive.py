"""The catalogue of the archive over a real gRPC server, by both clients, from a folder and from an object store."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import bagit
import grpc
import pytest
from api_support import Running, Stubs, run, serving
from archive_support import (
    DAY,
    NOW_NANOS,
    archive_day,
    hash_tree,
    ingest_all,
    ingest_telegrams,
    make_archivist,
    predict,
)
from s3_support import S3Server, s3_server
from sdk_support import AsyncInBlockingTests, Connect, _Blocking
from server_support import make_observation, open_store
from sqlalchemy import Connection, insert, select

from fieldpost import BrokenStateError, Client, InvalidRequestError, TryAgainError, UnknownObservationError
from fieldpost._archive_requests import ArchivedBag
from fieldpost.v1 import archive_service_pb2 as pb
from fieldpost.v1 import archive_service_pb2_grpc
from flows.archiving.archivist import Archivist
from flows.site import Site, open_shelves
from server.api.access import Role, roles_for
from server.api.credentials import Listen
from server.api.server import GrpcServer
from server.archive.shelf import open_shelf
from server.queries.archive import BagFilter, list_bags
from server.settings import Settings
from server.storage.store import Store
from server.storage.tables import bags, instruments

V1 = "lindenberg/cl51/2025/2025-06-15.v1"
LARGE_BYTES = 3 * 1024 * 1024


class AsyncArchiveInBlockingTests(AsyncInBlockingTests):
    """The same for the calls about the archive."""

    def __init__(self, address: str, **options: Any) -> None:
        super().__init__(address, **options)
        self.archive = _Blocking(self._runner, self._client.archive)


both_clients = pytest.mark.parametrize("connect", [Client, AsyncArchiveInBlockingTests], ids=["Client", "AsyncClient"])


@dataclasses.dataclass
class Served:
    """A served archive: two versions of the day of cl51, one of that of cl31; the day of chm15k is not archived."""

    address: str
    archive: Path
    store: Store


def fill(store: Store, archive: Path) -> None:
    """The archive of Served."""
    ingest_telegrams(store, 1, 2, 3)
    predict(store, 1, 2)
    archivist = make_archivist(store, archive)
    archive_day(archivist)
    ingest_telegrams(store, 4)
    archive_day(archivist)
    ingest_all(store, [make_observation(1, instrument="cl31", epoch="ab" * 16)])
    archive_day(archivist, instrument="cl31")
    ingest_all(store, [make_observation(each, instrument="chm15k", epoch="cd" * 16) for each in (1, 2)])


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server in a thread of its own; its bags are not to be changed."""
    folder = tmp_path_factory.mktemp("served")
    ready: list[Any] = []
    is_ready, stop = threading.Event(), asyncio.Event()

    async def serve() -> None:
        async with serving(folder, instruments=("cl51", "cl31", "chm15k")) as running:
            await asyncio.to_thread(fill, running.store, folder / "archive")
            server, address = await start_server(running, folder / "archive")
            ready.extend([asyncio.get_running_loop(), Served(address, folder / "archive", running.store)])
            is_ready.set()
            await stop.wait()
            await server.stop(0)

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert is_ready.wait(60)
    yield ready[1]
    ready[0].call_soon_threadsafe(stop.set)
    thread.join(30)


async def start_server(running: Running, place: Path | str, port: int = 0) -> tuple[GrpcServer, str]:
    """A second door to a store, with an archive."""
    parts = dataclasses.replace(running.parts, shelf=open_shelf(place, Path("/nowhere")))
    server = GrpcServer(parts, Listen(f"localhost:{port}"), message_bytes_max=1 << 22, model_bytes_max=1 << 20)
    return server, f"localhost:{await server.start()}"


def names(found: list[ArchivedBag]) -> list[str]:
    return [f"{bag.instrument} {bag.version}" for bag in found]


@both_clients
def test_bags_are_listed_the_newest_of_each_day_unless_all_are_wanted(connect: Connect, served: Served) -> None:
    with connect(served.address) as client:
        assert names(client.archive.list()) == ["cl31 1", "cl51 2"]
        assert names(client.archive.list(all_versions=True)) == ["cl31 1", "cl51 1", "cl51 2"]
        assert names(client.archive.list(station="lindenberg", instrument="cl51")) == ["cl51 2"]
        assert names(client.archive.list(first_day=DAY, last_day="2025-06-15")) == ["cl31 1", "cl51 2"]
        assert client.archive.list(first_day="2025-06-16") == client.archive.list(station="elsewhere") == []
        (bag,) = client.archive.list(instrument="cl51", station="lindenberg")
        assert (bag.day, bag.path) == (DAY, V1.replace("v1", "v2"))
        assert (bag.observation_count, bag.prediction_count, bag.damage) == (4, 2, "")
        assert bag.payload_bytes == 4 * len(b"observation 1 ") * 20
        assert bag.archive_time.timestamp() == pytest.approx(NOW_NANOS / 1e9)
        with pytest.raises(InvalidRequestError, match="expected a station together with"):
            client.archive.list(instrument="cl51")
        with pytest.raises(InvalidRequestError, match="expected a UTC day"):
            client.archive.list(first_day="yesterday")


@both_clients
def test_a_bag_is_got_by_its_day_and_one_that_is_not_there_says_what_is_known(connect: Connect, served: Served) -> None:
    with connect(served.address) as client:
        assert client.archive.get("lindenberg", "cl51", DAY).version == 2
        assert client.archive.get("lindenberg", "cl51", "2025-06-15", version=1).version == 1
        for words, which in (
            (r"the server holds 2 of its observations, measured from 15:06:55 to 15:07:10 UTC", ("chm15k", DAY)),
            (r"not archived, and the server holds no observation of that day", ("cl51", "2025-06-16")),
            (r"there is no such instrument", ("cl61", DAY)),
        ):
            with pytest.raises(UnknownObservationError, match=words):
                client.archive.get("lindenberg", *which)
        with pytest.raises(UnknownObservationError, match="its versions are 1 to 2"):
            client.archive.get("lindenberg", "cl51", DAY, version=3)
        with pytest.raises(InvalidRequestError, match="version of 1 or more"):
            client.archive.get("lindenberg", "cl51", DAY, version=0)


@both_clients
def test_a_bag_is_fetched_bit_for_bit_with_progress_and_again_without_reading_it(
    connect: Connect, served: Served, tmp_path: Path
) -> None:
    told: list[tuple[int, int]] = []
    with connect(served.address) as client:
        bag = client.archive.get("lindenberg", "cl51", DAY)
        files = client.archive.files(bag)
        total_bytes = sum(each.file_bytes for each in files)
        folder = client.archive.fetch(bag, tmp_path, progress=lambda *done: told.append(done))
        assert folder == tmp_path / bag.path
        assert hash_tree(folder) == hash_tree(served.archive / bag.path)
        assert {each.file: each.sha256 for each in files} == hash_tree(folder)
        bagit.Bag(str(folder)).validate()
        assert told[-1] == (total_bytes, total_bytes)
        assert [done for done, _ in told] == sorted(done for done, _ in told)
        count = len(told)
        assert client.archive.fetch(bag, tmp_path, progress=lambda *done: told.append(done)) == folder
        assert len(told) == count
        assert list(tmp_path.rglob(".*")) == []
        (folder / "bagit.txt").write_text("mine")
        with pytest.raises(InvalidRequestError, match="but it holds something else"):
            client.archive.fetch(bag, tmp_path)


@pytest.mark.parametrize("is_wrong", [False, True], ids=["right", "wrong"])
@both_clients
def test_a_fetch_that_was_ended_is_taken_up_where_it_was(
    connect: Connect, is_wrong: bool, served: Served, tmp_path: Path
) -> None:
    class EndedError(Exception):
        pass

    def end(done_bytes: int, total_bytes: int) -> None:
        if done_bytes > total_bytes // 2:
            raise EndedError

    read: list[int] = []
    with connect(served.address) as client:
        bag = client.archive.get("lindenberg", "cl51", DAY)
        with pytest.raises(EndedError):
            client.archive.fetch(bag, tmp_path, progress=end)
        assert not (tmp_path / bag.path).exists()
        left = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
        assert left > 0
        if is_wrong:  # a power cut may leave zeros where bytes were promised
            for path in tmp_path.rglob("*.nc"):
                path.write_bytes(bytes(path.stat().st_size // 2))
        folder = client.archive.fetch(bag, tmp_path, progress=lambda done, _: read.append(done))
        assert hash_tree(folder) == hash_tree(served.archive / bag.path)
        assert is_wrong or read[0] > left // 2


def test_two_fetches_into_one_folder_do_not_meet(served: Served, tmp_path: Path) -> None:
    with Client(served.address) as client:
        bag = client.archive.get("lindenberg", "cl51", DAY)

        def fetch_too(done_bytes: int, total_bytes: int) -> None:
            with pytest.raises(TryAgainError, match="but another process does"):
                client.archive.fetch(bag, tmp_path)

        client.archive.fetch(bag, tmp_path, progress=fetch_too)


def test_a_folder_that_cannot_be_written_is_named(served: Served, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with Client(served.address) as client:
        bag = client.archive.get("lindenberg", "cl51", DAY)
        with pytest.raises(TryAgainError, match=r"the bag could not be written: .*Not a directory"):
            client.archive.fetch(bag, tmp_path / "file")


@both_clients
def test_a_damaged_bag_is_never_handed_out_as_whole(connect: Connect, tmp_path: Path) -> None:
    async def scenario(running: Running, stubs: Stubs) -> None:
        archive = tmp_path / "archive"
        await asyncio.to_thread(fill_one, running.store, archive)
        server, address = await start_server(running, archive)
        await asyncio.to_thread(fetch_damaged, connect, address, archive, tmp_path / "fetched")
        await server.stop(0)

    run(tmp_path, scenario)


def fill_one(store: Store, archive: Path) -> None:
    ingest_telegrams(store, 1, 2, 3)
    archive_day(make_archivist(store, archive))


def fetch_damaged(connect: Connect, address: str, archive: Path, folder: Path) -> None:
    csv, whole = archive / V1 / "data" / "observations.csv", (archive / V1 / "data" / "observations.csv").read_bytes()
    with connect(address) as client:
        bag = client.archive.get("lindenberg", "cl51", DAY)
        csv.write_bytes(whole[:-1] + b"X")
        with pytest.raises(BrokenStateError, match=r"observations\.csv"):
            client.archive.fetch(bag, folder)
        csv.unlink()
        with pytest.raises(BrokenStateError, match=r"expected data/observations\.csv in the bag"):
            client.archive.fetch(bag, folder)
        csv.write_bytes(whole)
        manifest = archive / V1 / "manifest-sha256.txt"
        lines = manifest.read_text()
        manifest.write_text(lines.replace("a", "b"))
        with pytest.raises(BrokenStateError, match=r"expected manifest-sha256.txt with SHA-256"):
            client.archive.fetch(bag, folder)
        manifest.write_text(lines)
        assert not (folder / V1).exists()
        assert hash_tree(client.archive.fetch(bag, folder)) == hash_tree(archive / V1)


def test_a_server_that_goes_away_in_the_middle_is_waited_for_and_the_file_goes_on_from_the_byte(
    tmp_path: Path, free_port: int
) -> None:
    async def scenario(running: Running, stubs: Stubs) -> None:
        archive = tmp_path / "archive"
        await asyncio.to_thread(fill_large, running.store, archive)
        loop = asyncio.get_running_loop()
        server, address = await start_server(running, archive, free_port)
        servers = [server]

        async def restart() -> None:
            await servers[0].stop(0)
            servers[0], _ = await start_server(running, archive, free_port)

        told: list[int] = []

        def break_off(done_bytes: int, total_bytes: int) -> None:
            told.append(done_bytes)
            if len(told) == 6:
                asyncio.run_coroutine_threadsafe(restart(), loop).result(20)

        def fetch() -> None:
            with Client(address, timeout_s=20) as client:
                bag = client.archive.get("lindenberg", "cl51", DAY)
                folder = client.archive.fetch(bag, tmp_path / "fetched", progress=break_off)
                assert hash_tree(folder) == hash_tree(archive / bag.path)

        await asyncio.to_thread(fetch)
        await servers.pop().stop(0)
        assert told == sorted(set(told)), "no byte came twice"

    run(tmp_path, scenario)


def fill_large(store: Store, archive: Path) -> None:
    ingest_all(store, [make_observation(1, Random(1).randbytes(LARGE_BYTES))])
    archive_day(make_archivist(store, archive))


def test_what_makes_no_sense_is_refused_with_a_reason(served: Served) -> None:
    here = {"station": "lindenberg", "instrument": "cl51", "day": "2025-06-15"}
    data = "data/observations.csv"

    async def scenario() -> None:
        async with grpc.aio.insecure_channel(served.address) as channel:
            stub = archive_service_pb2_grpc.ArchiveStub(channel)
            wrong: list[tuple[Callable[[Any], Any], Any, str]] = [
                (stub.List, pb.ListBagsRequest(page_token="a/b"), "INVALID_ARGUMENT"),
                (stub.List, pb.ListBagsRequest(page_token="a/b/2025-06-15/x"), "INVALID_ARGUMENT"),
                (stub.List, pb.ListBagsRequest(first_day="2025-6-15"), "INVALID_ARGUMENT"),
                (stub.List, pb.ListBagsRequest(instrument="cl51"), "INVALID_ARGUMENT"),
                (stub.Get, pb.GetBagRequest(**here, bag_version=-1), "INVALID_ARGUMENT"),
                (stub.Get, pb.GetBagRequest(station="lindenberg", instrument="cl51", day="x"), "INVALID_ARGUMENT"),
                (stub.Get, pb.GetBagRequest(station="a\0", instrument="b", day="2025-06-15"), "NOT_FOUND"),
                (stub.Read, pb.ReadBagRequest(**here, file=data), "INVALID_ARGUMENT"),
                (stub.Read, pb.ReadBagRequest(**here, bag_version=1, file="data"), "NOT_FOUND"),
                (stub.Read, pb.ReadBagRequest(**here, bag_version=1, file="../2025-06-15.v2/bagit.txt"), "NOT_FOUND"),
                (stub.Read, pb.ReadBagRequest(**here, bag_version=1, file="/etc/passwd"), "NOT_FOUND"),
                (stub.Read, pb.ReadBagRequest(**here, bag_version=1, file=data, offset_bytes=-1), "INVALID_ARGUMENT"),
                (
                    stub.Read,
                    pb.ReadBagRequest(**here, bag_version=1, file=data, offset_bytes=10**9),
                    "INVALID_ARGUMENT",
                ),
            ]
            for method, request, code in wrong:
                call = method(request)
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await (call.read() if isinstance(call, grpc.aio.UnaryStreamCall) else call)
                assert caught.value.code().name == code, request

    asyncio.run(scenario())


def test_pages_hold_every_bag_once_in_the_order_of_names(tmp_path: Path) -> None:
    store = open_store(tmp_path, instruments=("z", "b", "empty", "m"))
    try:
        store.write(write_bags).result(10)
        with store.read() as connection:
            for wanted in (BagFilter(all_versions=True), BagFilter(), BagFilter(first_day="2025-01-02")):
                found, token, pages = [], "", 0
                while token or not pages:
                    page, token = list_bags(connection, wanted, 3, token)
                    found += [(bag.instrument, bag.day, bag.bag_version) for bag in page]
                    pages += 1
                assert found == expected_bags(wanted)
    finally:
        store.close()


def write_bags(connection: Connection) -> None:
    ids = dict(connection.execute(select(instruments.c.name, instruments.c.id)).all())
    facts = {"path": "", "manifest_sha256": "ab" * 32, "observation_count": 1, "prediction_count": 0}
    rows = [
        {"instrument_id": ids[name], "day": f"2025-01-0{day}", "version": version, "archive_unix_nanos": 1, **facts}
        for name in ("z", "b", "m")
        for day in (1, 2, 3)
        for version in range(1, day + 1)
    ]
    connection.execute(insert(bags), rows)


def expected_bags(wanted: BagFilter) -> list[tuple[str, str, int]]:
    return [
        (name, f"2025-01-0{day}", version)
        for name in ("b", "m", "z")
        for day in (1, 2, 3)
        for version in range(1, day + 1)
        if (wanted.all_versions or version == day) and f"2025-01-0{day}" >= wanted.first_day
    ]


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    with s3_server(monkeypatch) as server:
        yield server


def test_a_bag_is_fetched_from_an_object_store(s3: S3Server, tmp_path: Path) -> None:
    async def scenario(running: Running, stubs: Stubs) -> None:
        place = s3.url("archive")
        await asyncio.to_thread(archive_at, running.store, place, tmp_path)
        server, address = await start_server(running, place)

        def fetch() -> Path:
            with Client(address) as client:
                return client.archive.fetch(client.archive.get("lindenberg", "cl51", DAY), tmp_path / "fetched")

        bagit.Bag(str(await asyncio.to_thread(fetch))).validate()
        await server.stop(0)

    run(tmp_path, scenario)


def archive_at(store: Store, place: str, folder: Path) -> None:
    ingest_telegrams(store, 1, 2)
    settings = Settings(data_folder=folder, archive_folder=place)
    archive_day(Archivist(Site(settings, store, *open_shelves(settings))))


def test_readers_may_ask_and_stations_may_not() -> None:
    methods = pb.DESCRIPTOR.services_by_name["Archive"].methods
    assert [roles_for(f"/fieldpost.v1.Archive/{each.name}") for each in methods] == [{Role.READER, Role.OPERATOR}] * 3
