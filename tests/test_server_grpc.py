"""The gRPC services on a real server, asked through the generated stubs."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import grpc
import pytest
from api_support import Running, Stubs, run
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from server_support import make_bundle, make_observation

from fieldpost.errors import BrokenStateError, FieldpostError, OverloadedError, RejectedError, TryAgainError
from fieldpost.v1 import ingest_service_pb2, predictions_service_pb2, stations_service_pb2
from server.api.credentials import Listen
from server.api.server import GrpcServer
from server.api.status import code_for


def test_receipts_come_in_the_order_of_the_bundles(tmp_path: Path) -> None:
    async def scenario(running: Running, stubs: Stubs) -> None:
        receipts = await stubs.send(*(make_bundle(2 * i + 1, 2 * i + 2) for i in range(40)))
        assert [each.held_ranges[0].first_sequence for each in receipts] == [2 * i + 1 for i in range(40)]

    run(tmp_path, scenario)


def test_a_bundle_without_identity_ends_the_call_as_invalid_argument(tmp_path: Path) -> None:
    async def scenario(running: Running, stubs: Stubs) -> None:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stubs.send(make_bundle(1, station="NOT A NAME"))
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "NOT A NAME" in (caught.value.details() or "")
        assert len(await stubs.send(make_bundle(1))) == 1  # and nothing else is disturbed

    run(tmp_path, scenario)


def test_a_message_above_the_limit_is_refused_by_status_and_the_server_goes_on(tmp_path: Path) -> None:
    async def scenario(running: Running, stubs: Stubs) -> None:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            big = make_observation(1)
            big.payload = os.urandom(1 << 23)
            await stubs.send(ingest_service_pb2.SendRequest(bundle={"observations": [big]}).bundle)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert len(await stubs.send(make_bundle(1))) == 1

    run(tmp_path, scenario)


def test_predictions_are_listed_by_time_range_and_page(tmp_path: Path) -> None:
    async def scenario(running: Running, stubs: Stubs) -> None:
        await stubs.send(make_bundle(*range(1, 11)))
        await running.predict(*range(10, 0, -1))
        request = predictions_service_pb2.ListPredictionsRequest(station="lindenberg", page_size=4)
        request.start_time.CopyFrom(make_observation(2).header.measure_time)
        request.end_time.CopyFrom(make_observation(10).header.measure_time)
        sequences, pages = [], 0
        while True:
            page = await stubs.predictions.List(request)
            sequences += [each.sequence for each in page.predictions]
            pages += 1
            if not page.next_page_token:
                break
            request.page_token = page.next_page_token
        assert sequences == list(range(2, 10))
        assert pages == 3

    run(tmp_path, scenario)


def test_a_listed_prediction_says_what_it_is_of(tmp_path: Path) -> None:
    async def scenario(running: Running, stubs: Stubs) -> None:
        await stubs.send(make_bundle(1))
        await running.predict(1)
        (prediction,) = (
            await stubs.predictions.List(predictions_service_pb2.ListPredictionsRequest(analysis="height"))
        ).predictions
        header = make_observation(1).header
        assert (prediction.station, prediction.instrument) == ("lindenberg", "cl51")
        assert (prediction.epoch, prediction.sequence) == (header.epoch, 1)
        assert (prediction.analysis, prediction.model_version) == ("height", 1)
        assert prediction.capture_time == header.capture_clock.wall_time
        assert [(v.name, v.unit, list(v.values)) for v in prediction.variables] == [("height", "m", [1.5])]

    run(tmp_path, scenario)


@pytest.mark.parametrize(
    "request_",
    [
        predictions_service_pb2.ListPredictionsRequest(instrument="cl51"),
        predictions_service_pb2.ListPredictionsRequest(model_version=1),
        predictions_service_pb2.ListPredictionsRequest(page_token="what?"),
        predictions_service_pb2.ListPredictionsRequest(page_token=f"{2**70}-1"),
        predictions_service_pb2.ListPredictionsRequest(start_time={"seconds": 10**15}),
        predictions_service_pb2.ListPredictionsRequest(end_time={"seconds": 200_000_000_000}),
    ],
)
def test_a_request_that_makes_no_sense_says_what_was_expected(
    tmp_path: Path, request_: predictions_service_pb2.ListPredictionsRequest
) -> None:
    async def scenario(running: Running, stubs: Stubs) -> None:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stubs.predictions.List(request_)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "expected" in (caught.value.details() or "")

    run(tmp_path, scenario)


def test_a_watcher_that_resumes_misses_nothing_and_sees_nothing_twice(tmp_path: Path) -> None:
    async def watch(stubs: Stubs, after_id: int, count: int) -> list[Any]:
        request = predictions_service_pb2.WatchPredictionsRequest(after_prediction_id=after_id)
        call, seen = stubs.predictions.Watch(request), []
        async for answer in call:
            seen += answer.predictions
            if len(seen) >= count:
                call.cancel()
                return seen
        return seen

    async def scenario(running: Running, stubs: Stubs) -> None:
        await stubs.send(make_bundle(*range(1, 9)))
        await running.predict(1, 2)
        first = await watch(stubs, 0, 2)
        await running.predict(3, 4)  # while nobody watches
        second = asyncio.create_task(watch(stubs, first[-1].prediction_id, 4))
        await running.predict(5, 6)
        assert [each.sequence for each in [*first, *await second]] == [1, 2, 3, 4, 5, 6]

    run(tmp_path, scenario)


def test_a_prediction_is_stored_once_for_each_pair(tmp_path: Path) -> None:
    async def scenario(running: Running, stubs: Stubs) -> None:
        await stubs.send(make_bundle(1, 2))
        await running.predict(1, 2)
        await running.predict(2, 1)
        listed = await stubs.predictions.List(predictions_service_pb2.ListPredictionsRequest())
        assert [each.sequence for each in listed.predictions] == [1, 2]

    run(tmp_path, scenario)


def test_stations_are_listed_with_their_counts(tmp_path: Path) -> None:
    async def scenario(running: Running, stubs: Stubs) -> None:
        await stubs.send(make_bundle(1, 2), make_bundle(2, 3))
        (station,) = (await stubs.stations.List(stations_service_pb2.ListStationsRequest())).stations
        (instrument,) = station.instruments
        assert (station.station, instrument.instrument, instrument.instrument_model) == ("lindenberg", "cl51", "cl51")
        assert (instrument.observation_count, instrument.duplicate_count) == (3, 1)
        assert instrument.last_measure_time == make_observation(3).header.measure_time

    run(tmp_path, scenario)


def test_health_and_reflection_answer(tmp_path: Path) -> None:
    async def scenario(running: Running, stubs: Stubs) -> None:
        health = health_pb2_grpc.HealthStub(stubs.channel)
        answer = await health.Check(health_pb2.HealthCheckRequest(service="fieldpost.v1.Ingest"))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        reflection = reflection_pb2_grpc.ServerReflectionStub(stubs.channel)
        async for listed in reflection.ServerReflectionInfo(
            iter([reflection_pb2.ServerReflectionRequest(list_services="")])
        ):
            names = {each.name for each in listed.list_services_response.service}
        assert {"fieldpost.v1.Ingest", "fieldpost.v1.Predictions", "fieldpost.v1.Stations"} <= names

    run(tmp_path, scenario)


def test_a_second_server_on_the_same_port_is_told_so(tmp_path: Path) -> None:
    async def scenario(running: Running, stubs: Stubs) -> None:
        listen = Listen(f"127.0.0.1:{running.port}")
        server = GrpcServer(running.parts, listen, message_bytes_max=1 << 20, model_bytes_max=1 << 20)
        with pytest.raises(TryAgainError, match="cannot listen"):
            await server.start()
        await server.stop(0)

    run(tmp_path, scenario)


def subclasses(kind: type[FieldpostError]) -> list[type[FieldpostError]]:
    return [kind, *(each for sub in kind.__subclasses__() for each in subclasses(sub))]


def test_every_error_has_its_status_code() -> None:
    families: dict[type[FieldpostError], set[str]] = {
        RejectedError: {"INVALID_ARGUMENT", "NOT_FOUND", "PERMISSION_DENIED", "UNAUTHENTICATED"},
        TryAgainError: {"UNAVAILABLE", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"},
    }
    for family, codes in families.items():
        assert {code_for(kind("x")).name for kind in subclasses(family)} == codes
    assert code_for(OverloadedError("x")) is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert code_for(BrokenStateError("x")) is grpc.StatusCode.DATA_LOSS
