"""What a stranger with a connection, a certificate or a token can do to the others: nothing."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from api_support import Running, Stubs, find_version, run, serving
from server_support import make_bundle, make_observation
from sqlalchemy import select, text
from test_api_access import certificates, channel_credentials, run_secured  # noqa: F401  (a fixture)

from fieldpost.v1 import ingest_service_pb2, observations_service_pb2, predictions_service_pb2, stations_service_pb2
from server.analyses import AnalysisResult, AnalysisVariable
from server.api import server as server_module
from server.api.ingest import UPLOADS_OF_STATION_MAX
from server.api.reading import THREADS
from server.queries.predictions import NewPrediction, encode_result, write_predictions
from server.storage.tables import observations

EXHAUSTED, UNAVAILABLE = grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE


async def open_upload(stubs: Stubs, sequence: int) -> tuple[Any, grpc.StatusCode]:
    """Begins an upload, sends no byte of it, and waits until the server has said something."""
    call = stubs.ingest.Upload()
    observation = make_observation(sequence)
    start = ingest_service_pb2.UploadStart(header=observation.header, encoded_bytes=len(observation.payload))
    await call.write(ingest_service_pb2.UploadRequest(start=start))
    try:
        assert await call.read() is not grpc.aio.EOF
    except grpc.aio.AioRpcError as error:
        return call, error.code()
    return call, grpc.StatusCode.OK


async def until_taken(stubs: Stubs, sequence: int) -> Any:
    """An upload that the server takes, as soon as there is room for it."""
    while True:
        call, code = await open_upload(stubs, sequence)
        if code is grpc.StatusCode.OK:
            return call
        assert code is EXHAUSTED
        await asyncio.sleep(0.05)


def test_uploads_that_stand_still_are_few_and_make_room_when_they_end(tmp_path: Path) -> None:
    async def scenario(running: Running, stubs: Stubs) -> None:
        opened = [await open_upload(stubs, sequence) for sequence in range(1, UPLOADS_OF_STATION_MAX + 4)]
        codes = [code for _, code in opened]
        assert codes == [grpc.StatusCode.OK] * UPLOADS_OF_STATION_MAX + [EXHAUSTED] * 3
        assert len(await stubs.send(make_bundle(100))) == 1
        for call, _ in opened:
            call.cancel()
        (await until_taken(stubs, 50)).cancel()

    run(tmp_path, scenario)


@asynccontextmanager
async def cable(port: int) -> AsyncIterator[tuple[str, asyncio.Event]]:
    """An address that leads to a port of this machine until the event is set; then nothing passes, and nothing ends."""
    cut, tasks = asyncio.Event(), set[asyncio.Task[None]]()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while content := await reader.read(65536):
            if not cut.is_set():
                writer.write(content)

    async def join(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("localhost", port)
        both = {asyncio.create_task(pump(reader, far_writer)), asyncio.create_task(pump(far_reader, writer))}
        tasks.update(both)
        await asyncio.wait(both)
        for each in (writer, far_writer):
            each.close()

    listener = await asyncio.start_server(join, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{listener.sockets[0].getsockname()[1]}", cut
    finally:
        listener.close()
        for task in tasks:
            task.cancel()


def test_the_upload_of_a_station_that_lost_power_is_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "KEEPALIVE_TIME_MS", 1000)
    monkeypatch.setattr(server_module, "KEEPALIVE_TIMEOUT_MS", 500)

    async def main() -> None:
        async with (
            serving(tmp_path) as running,
            cable(running.port) as (address, cut),
            Stubs(grpc.aio.insecure_channel(address)) as dying,
            running.connect() as stubs,
        ):
            call, code = await open_upload(dying, 1)
            assert code is grpc.StatusCode.OK
            cut.set()
            assert (await open_upload(stubs, 1))[1] is EXHAUSTED
            (await asyncio.wait_for(until_taken(stubs, 1), 20)).cancel()
            call.cancel()

    asyncio.run(main())


def test_names_that_no_database_can_hold_are_the_callers_mistake(tmp_path: Path, database_url: str) -> None:
    async def scenario(running: Running, stubs: Stubs) -> None:
        wanted = observations_service_pb2.ObservationFilter(station="a\0")
        await asyncio.wrap_future(running.store.write(lambda connection: find_version(connection, 1)))
        calls = [
            stubs.observations.List(observations_service_pb2.ListObservationsRequest(filter=wanted)),
            stubs.predictions.List(predictions_service_pb2.ListPredictionsRequest(station="a\0", analysis="height")),
            stubs.predictions.Retry(predictions_service_pb2.RetryPredictionsRequest(analysis="a\0")),
            stubs.stations.Command(stations_service_pb2.CommandStationRequest(station="a\0")),
        ]
        for call in calls:
            try:
                await call
            except grpc.aio.AioRpcError as error:
                assert error.code() is grpc.StatusCode.INVALID_ARGUMENT, error.details()

    run(tmp_path, scenario, database_url=database_url)


def test_who_is_not_known_yet_hears_nothing_of_the_database(tmp_path: Path, certificates: Path) -> None:  # noqa: F811
    async def scenario(running: Running) -> None:
        rename = text("ALTER TABLE station RENAME TO gone")
        await asyncio.wrap_future(running.store.write(lambda connection: connection.execute(rename)))
        async with running.connect(channel_credentials(certificates, "stranger")) as stubs:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stubs.stations.List(stations_service_pb2.ListStationsRequest())
        assert caught.value.code() is UNAVAILABLE
        assert "SQL" not in (caught.value.details() or "") and "table" not in (caught.value.details() or "")

    run_secured(tmp_path, certificates, scenario)


def test_a_station_does_not_wait_for_readers_whose_disk_stands_still(
    tmp_path: Path,
    certificates: Path,  # noqa: F811
) -> None:
    async def scenario(running: Running) -> None:
        request = observations_service_pb2.ReadObservationRequest(observation_id=1)
        async with (
            running.connect(channel_credentials(certificates, "anna")) as operator,
            running.connect(channel_credentials(certificates, "lindenberg")) as station,
        ):
            await operator.send(make_bundle(1))
            segment = next(each for each in (tmp_path / "segments").rglob("*") if each.is_file())
            segment.rename(tmp_path / "away")
            os.mkfifo(segment)  # whoever opens it waits
            reads = [asyncio.ensure_future(anext(aiter(operator.observations.Read(request)))) for _ in range(12)]
            try:
                probe = observations_service_pb2.ListObservationsRequest()
                while True:  # until all threads are taken
                    try:
                        await operator.observations.List(probe, timeout=0.3)
                    except grpc.aio.AioRpcError:
                        break
                assert len(reads) > THREADS
                assert len(await asyncio.wait_for(station.send(make_bundle(2)), 10)) == 1
            finally:
                while not all(each.done() for each in reads):
                    with suppress(OSError):  # nobody reads at this moment
                        os.close(os.open(segment, os.O_WRONLY | os.O_NONBLOCK))
                    await asyncio.sleep(0.01)
                await asyncio.gather(*reads, return_exceptions=True)

    run_secured(tmp_path, certificates, scenario)


def test_predictions_too_large_for_one_message_come_in_several(tmp_path: Path, database_url: str) -> None:
    count = 60
    values = AnalysisVariable("height", "m", np.full(9000, 1.5, np.float32))
    content = encode_result(AnalysisResult(np.arange(9000) + 2**60, (values,)))
    assert count * len(content) > 4 << 20 > len(content)

    async def scenario(running: Running, stubs: Stubs) -> None:
        await stubs.send(*(make_bundle(sequence) for sequence in range(1, count + 1)))

        def write(connection: Any) -> None:
            version = find_version(connection, 1)
            rows = connection.execute(select(observations)).all()
            new = [NewPrediction(row.id, version, row.instrument_id, row.id, 7, content, False) for row in rows]
            write_predictions(connection, new)

        await asyncio.wrap_future(running.store.write(write))
        expected = list(range(1, count + 1))
        listed, token = list[int](), ""
        while len(listed) < count:
            request = predictions_service_pb2.ListPredictionsRequest(page_token=token)
            page = await stubs.predictions.List(request)
            listed += [each.sequence for each in page.predictions]
            token = page.next_page_token
        assert listed == expected and not token
        stream = stubs.predictions.Stream(predictions_service_pb2.StreamPredictionsRequest())
        assert [each.sequence async for page in stream for each in page.predictions] == expected
        watched = list[int]()
        watch = stubs.predictions.Watch(predictions_service_pb2.WatchPredictionsRequest(after_prediction_id=0))
        async for message in watch:
            watched += [each.sequence for each in message.predictions]
            assert not message.predictions or message.seen_prediction_id == message.predictions[-1].prediction_id
            if len(watched) == count:
                break
        assert watched == expected

    run(tmp_path, scenario, database_url=database_url)
