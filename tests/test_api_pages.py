"""Observations and predictions by page, stream and watch, on both databases; and tokens that nobody gave out."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import grpc
import pytest
from api_support import Running, Stubs, find_version, run
from hypothesis import given
from hypothesis import strategies as st
from server_support import EPOCH, make_bundle, make_observation, open_store
from sqlalchemy import Connection, insert, select, text

from fieldpost.errors import InvalidRequestError
from fieldpost.payload import decode_payload
from fieldpost.v1 import observation_pb2, observations_service_pb2, predictions_service_pb2
from server.api.reading import Reading
from server.queries.pages import Position, TimeSpan, make_token, next_positions, parse_token
from server.storage.tables import epochs, instruments, observations, predictions, segments

NAMES = tuple(f"i{number}" for number in range(7))
NUMBERS = st.integers(-(2**63) + 1, 2**63 - 1)


@given(NUMBERS, st.integers(0, 2**63 - 1))
def test_a_token_leads_back_to_its_row(measure: int, row_id: int) -> None:
    assert parse_token(make_token(Position(measure, row_id))) == (measure, row_id)


@given(
    st.text()
    | st.from_regex(r"-?[0-9]{1,30}-[0-9]{1,30}", fullmatch=True)
    | st.sampled_from(["٣-٣", "1-", "-1", "--1-1"])
)
def test_a_token_that_nobody_gave_out_is_refused_or_harmless(token: str) -> None:
    try:
        position = parse_token(token)
    except InvalidRequestError as error:
        assert "page_token" in str(error)
    else:
        assert position is None or all(abs(each) < 2**63 for each in position)


def fill(connection: Connection, places: list[tuple[int, int]]) -> None:
    """Observations, and predictions of them by two versions, of (instrument number, measure time)."""
    ids = list(connection.scalars(select(instruments.c.id).order_by(instruments.c.id)))
    connection.execute(insert(epochs).values(station_id=1, epoch=EPOCH))
    connection.execute(insert(segments).values(name="a"))
    rows = [
        {"epoch_id": 1, "sequence": i, "instrument_id": ids[number], "measure_unix_nanos": at, "capture_unix_nanos": at}
        | {"payload_bytes": 1, "sha256": b"", "segment_id": 1, "segment_offset": 0, "stored_bytes": 1}
        for i, (number, at) in enumerate(places, 1)
    ]
    connection.execute(insert(observations), rows)
    for version in (1, 2):
        row_id = find_version(connection, version)
        new = [
            {"observation_id": i, "model_version_id": row_id, "instrument_id": row["instrument_id"]}
            | {
                "measure_unix_nanos": row["measure_unix_nanos"],
                "predict_unix_nanos": 1,
                "content": b"",
                "is_failure": False,
            }
            for i, row in enumerate(rows, 1)
        ]
        connection.execute(insert(predictions), new)


def test_pages_over_several_instruments_are_those_of_a_sort(tmp_path: Path, database_url: str) -> None:
    store = open_store(tmp_path, instruments=NAMES, database_url=database_url)
    try:
        # one dense instrument, one that begins late, one empty, some at the very same instants
        places = [(0, 10 * i) for i in range(60)] + [(1, 500 + i) for i in range(40)] + [(3, 100)] * 9
        places += [(number, 100 * i) for number in (4, 5, 6) for i in range(10)]
        store.write(lambda connection: fill(connection, places)).result()
        with store.read() as connection:
            ids = list(connection.scalars(select(instruments.c.id).order_by(instruments.c.id)))
            for table, versions in ((observations, None), (predictions, [find_version(connection, 2)])):
                for chosen in (ids, ids[1:2], ids[3:6], [ids[2]], list(reversed(ids)), []):
                    for span in (TimeSpan(), TimeSpan(90, 510), TimeSpan(None, 100), TimeSpan(600, None)):
                        query = select(table.c.measure_unix_nanos, table.c.id).where(table.c.instrument_id.in_(chosen))
                        if versions:
                            query = query.where(table.c.model_version_id.in_(versions))
                        wanted = sorted(
                            tuple(row)
                            for row in connection.execute(query)
                            if (span[0] or 0) <= row[0] < (span[1] or 10**9)
                        )
                        found: list[Any] = []
                        while page := next_positions(
                            connection, table, chosen, span, found[-1] if found else None, 4, versions
                        ):
                            found += page
                        assert found == wanted
    finally:
        store.close()


def test_a_page_of_one_instrument_among_many_rows_is_found_by_the_index(tmp_path: Path) -> None:
    store = open_store(tmp_path, instruments=NAMES)
    try:
        from sqlalchemy.dialects import sqlite

        from server.queries import pages

        for table, versions in ((observations, None), (predictions, [1])):
            query = pages._first_of_each("sqlite", table, [1, 2], TimeSpan(5, 9), Position(6, 6), None, 10, versions)
            compiled = str(query.compile(dialect=sqlite.dialect(), compile_kwargs={"literal_binds": True}))
            with store.read() as connection:
                plan = [row[3] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {compiled}")]
            assert any(
                f"ix_{table.name}_instrument_time (instrument_id=? AND measure_unix_nanos" in step for step in plan
            )
            assert not any(step.startswith("SCAN") for step in plan)
    finally:
        store.close()


def test_observations_are_listed_streamed_and_read_as_they_were_sent(tmp_path: Path, database_url: str) -> None:
    async def scenario(running: Running, stubs: Stubs) -> None:
        large = make_observation(9, bytes(range(256)) * 5000)
        large.payload, large.header.payload_encoding = (
            bytes(range(256)) * 5000,
            observation_pb2.PAYLOAD_ENCODING_IDENTITY,
        )
        bundle = make_bundle(*range(1, 9))
        bundle.observations.append(large)
        await stubs.send(bundle)
        listed, token = [], ""
        while True:
            page = await stubs.observations.List(
                observations_service_pb2.ListObservationsRequest(
                    filter={"station": "lindenberg"}, page_size=4, page_token=token
                )
            )
            listed += page.observations
            token = page.next_page_token
            if not token:
                break
        assert [each.header.sequence for each in listed] == list(range(1, 10))
        assert not any(each.payload for each in listed)
        streamed = [
            each
            async for message in stubs.observations.Stream(observations_service_pb2.StreamObservationsRequest())
            for each in message.observations
        ]
        assert [each.header for each in streamed] == [each.header for each in bundle.observations]
        assert [each.payload for each in streamed[:8]] == [each.payload for each in bundle.observations[:8]]
        assert not streamed[8].payload
        for held, sent in zip(listed, bundle.observations, strict=True):
            for offset in (0, len(sent.payload) // 2, len(sent.payload)):
                request = observations_service_pb2.ReadObservationRequest(
                    observation_id=held.observation_id, offset_bytes=offset
                )
                pieces = [each async for each in stubs.observations.Read(request)]
                assert b"".join(each.content for each in pieces) == sent.payload[offset:]
                assert (pieces[0].header, pieces[0].encoded_bytes) == (sent.header, len(sent.payload))
        header = bundle.observations[2].header
        named = observations_service_pb2.ReadObservationRequest(station="lindenberg", epoch=EPOCH, sequence=3)
        (piece,) = [each async for each in stubs.observations.Read(named)]
        assert decode_payload(piece.content, header.payload_encoding, header.payload_bytes) == b"observation 3 " * 20

    run(tmp_path, scenario, database_url=database_url)


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        ({"observation_id": 4711}, grpc.StatusCode.NOT_FOUND),
        ({"observation_id": -1}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"observation_id": 2**63 - 1}, grpc.StatusCode.NOT_FOUND),
        ({"station": "x", "epoch": "y", "sequence": -(2**63)}, grpc.StatusCode.NOT_FOUND),
        ({"observation_id": 1, "offset_bytes": 10**9}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"observation_id": 1, "offset_bytes": -1}, grpc.StatusCode.INVALID_ARGUMENT),
    ],
)
def test_what_cannot_be_read_says_why(tmp_path: Path, request_: dict[str, Any], code: grpc.StatusCode) -> None:
    async def scenario(running: Running, stubs: Stubs) -> None:
        await stubs.send(make_bundle(1))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stubs.observations.Read(observations_service_pb2.ReadObservationRequest(**request_)).read()
        assert caught.value.code() is code

    run(tmp_path, scenario)


def test_observations_are_watched_each_once_also_over_a_reconnect(tmp_path: Path, database_url: str) -> None:
    async def watch(stubs: Stubs, after_id: int | None, count: int) -> tuple[list[int], int]:
        call = stubs.observations.Watch(
            observations_service_pb2.WatchObservationsRequest(
                filter={"station": "lindenberg"}, after_observation_id=after_id
            )
        )
        seen: list[int] = []
        seen_id = 0
        while len(seen) < count:
            message = await call.read()
            seen += [each.header.sequence for each in message.observations]
            seen_id = message.seen_observation_id
        call.cancel()
        return seen, seen_id

    async def scenario(running: Running, stubs: Stubs) -> None:
        await stubs.send(make_bundle(1, 2))
        first, seen_id = await watch(stubs, 0, 2)
        await stubs.send(make_bundle(3))
        rest = asyncio.create_task(watch(stubs, seen_id, 3))
        await stubs.send(make_bundle(4, 5))
        assert (first, (await rest)[0]) == ([1, 2], [3, 4, 5])
        assert (await watch(stubs, -(2**63), 5))[0] == [1, 2, 3, 4, 5]

    run(tmp_path, scenario, database_url=database_url)


def test_a_version_that_never_was_active_is_served_to_who_names_it(tmp_path: Path, database_url: str) -> None:
    async def scenario(running: Running, stubs: Stubs) -> None:
        await stubs.send(make_bundle(1, 2, 3))
        await running.predict(1, 2)
        await running.predict(1, 2, 3, version=2, is_served=False)

        async def versions(**fields: Any) -> list[tuple[int, int]]:
            request = predictions_service_pb2.ListPredictionsRequest(**fields)
            stream = stubs.predictions.Stream(predictions_service_pb2.StreamPredictionsRequest(list=request))
            streamed = [each async for message in stream for each in message.predictions]
            listed = (await stubs.predictions.List(request)).predictions
            assert list(listed) == streamed
            return [(each.model_version, each.sequence) for each in listed]

        assert await versions() == await versions(analysis="height") == [(1, 1), (1, 2)]
        assert await versions(analysis="height", model_version=2) == [(2, 1), (2, 2), (2, 3)]
        assert await versions(station="nowhere") == []
        call = stubs.predictions.Watch(predictions_service_pb2.WatchPredictionsRequest(after_prediction_id=0))
        seen = [await call.read(), await call.read()]
        assert [each.model_version for message in seen for each in message.predictions] == [1, 1]

    run(tmp_path, scenario, database_url=database_url)


def test_failures_are_forgotten_so_that_they_are_tried_again(tmp_path: Path, database_url: str) -> None:
    async def scenario(running: Running, stubs: Stubs) -> None:
        await stubs.send(make_bundle(*range(1, 7)))
        await running.predict(*range(1, 7), failing=(2, 4, 5))

        def settle(connection: Connection) -> None:
            connection.execute(text("UPDATE modelversion SET settled_observation_id = 6"))

        await asyncio.wrap_future(running.store.write(settle))
        retry = predictions_service_pb2.RetryPredictionsRequest(analysis="height", station="lindenberg")
        retry.start_time.CopyFrom(make_observation(3).header.measure_time)
        assert (await stubs.predictions.Retry(retry)).retry_count == 2
        with running.store.read() as connection:
            ids = {row.sequence: row.id for row in connection.execute(select(observations))}
            left = set(connection.scalars(select(predictions.c.observation_id)))
            assert left == {ids[each] for each in (1, 2, 3, 6)}
            assert connection.scalar(text("SELECT settled_observation_id FROM modelversion")) == ids[4] - 1
        assert (await stubs.predictions.Retry(retry)).retry_count == 0

    run(tmp_path, scenario, database_url=database_url)


def test_a_query_whose_caller_has_gone_is_interrupted(tmp_path: Path, database_url: str) -> None:
    began, ended = threading.Event(), threading.Event()
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n"

    def ask(connection: Connection) -> None:
        began.set()
        try:
            connection.execute(text(endless if connection.dialect.name == "sqlite" else "SELECT pg_sleep(600)"))
        finally:
            ended.set()

    async def main() -> None:
        store = open_store(tmp_path, database_url=database_url)
        reading = Reading(store)
        asked = asyncio.create_task(reading.query(ask))
        await asyncio.to_thread(began.wait, 10)
        await asyncio.sleep(0.1)  # the statement itself begins
        asked.cancel()
        await asyncio.to_thread(ended.wait, 20)
        assert ended.is_set()
        assert await reading.query(lambda connection: connection.scalar(text("SELECT 7"))) == 7
        reading.close()
        store.close()

    asyncio.run(main())


def test_a_list_past_its_deadline_is_not_sent(tmp_path: Path) -> None:
    async def scenario(running: Running, stubs: Stubs) -> None:
        await stubs.send(make_bundle(1))
        request = observations_service_pb2.ListObservationsRequest()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stubs.observations.List(request, timeout=1e-6)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert len((await stubs.observations.List(request)).observations) == 1

    run(tmp_path, scenario)


def test_capacity_tells_workers_queues_ingest_and_machine(tmp_path: Path) -> None:
    from fieldpost.v1 import capacity_service_pb2, inference_service_pb2

    async def scenario(running: Running, stubs: Stubs) -> None:
        await stubs.send(make_bundle(1, 2), make_bundle(2))
        await stubs.inference.Predict(inference_service_pb2.PredictRequest(analysis="height", item={"payload": b"x"}))
        answer = await stubs.capacity.Get(capacity_service_pb2.GetCapacityRequest())
        assert [(each.worker, each.is_ready) for each in answer.workers] == [("loop-1", True)]
        assert [(each.analysis, each.predicted_count, each.live_count) for each in answer.queues] == [("height", 1, 0)]
        assert (answer.ingest.stored_count, answer.ingest.duplicate_count) == (2, 1)
        machine = answer.machine
        assert machine.processor_count >= 1
        assert min(machine.memory_bytes, machine.memory_free_bytes, machine.disk_free_bytes) > 1 << 20

    run(tmp_path, scenario)
