"""Watching predictions: what comes, in which order, and what happens when the connection breaks."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from itertools import islice

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldpost import AsyncClient, Client
from fieldpost._requests import watch_request
from fieldpost._resuming import RETRY_MAX_S, retry_delay_s
from fieldpost._watching import PREDICTIONS, WatchState
from fieldpost.errors import InvalidRequestError, OfflineError, OverloadedError, RejectedError
from fieldpost.testing import RecordingServer, make_prediction
from fieldpost.v1.prediction_pb2 import Prediction
from fieldpost.v1.predictions_service_pb2 import WatchPredictionsResponse

HEIGHT = ("atmosphere_boundary_layer_thickness", "m")


@pytest.fixture
def server() -> Iterator[RecordingServer]:
    with RecordingServer() as running:
        yield running


def add(server: RecordingServer, count: int, station: str = "station-1") -> None:
    for _ in range(count):
        server.add_prediction(make_prediction(["2025-06-01"], {HEIGHT: [1.0]}, station=station))


def response(*ids: int) -> WatchPredictionsResponse:
    return WatchPredictionsResponse(predictions=[Prediction(prediction_id=each) for each in ids])


@given(st.lists(st.lists(st.integers(1, 30), max_size=6), max_size=8), st.one_of(st.none(), st.integers(0, 10)))
def test_whatever_a_server_repeats_each_prediction_is_handed_out_once_and_ascending(
    responses: list[list[int]], after: int | None
) -> None:
    state = WatchState(PREDICTIONS, watch_request(), after, resume=True)
    taken = [each.prediction_id for ids in responses for each in state.take(response(*sorted(ids)))]
    assert taken == sorted(set(taken))
    assert all(each > (after or 0) for each in taken)


def test_a_watch_asks_to_go_on_after_the_last_prediction_it_had() -> None:
    state = WatchState(PREDICTIONS, watch_request(station="s"), None, resume=True)
    assert not state.request().HasField("after_prediction_id")
    state.take(response(4, 9))
    assert (state.request().after_prediction_id, state.request().station) == (9, "s")


def test_a_watch_of_what_is_new_has_its_place_before_anything_has_come() -> None:
    state = WatchState(PREDICTIONS, watch_request(), None, resume=True)
    assert state.take(WatchPredictionsResponse(seen_prediction_id=7)) == []
    assert state.request().after_prediction_id == 7
    state.take(WatchPredictionsResponse(predictions=[Prediction(prediction_id=8)], seen_prediction_id=12))
    assert state.request().after_prediction_id == 12


def test_only_what_may_pass_is_waited_for_and_the_wait_grows_until_something_comes() -> None:
    state = WatchState(PREDICTIONS, watch_request(), 0, resume=True)
    state.patience.begin()
    delays = [
        state.patience.delay_after_s(error, 1.0, 0.0)
        for error in (OfflineError("x"), OverloadedError("x"), OfflineError("x"))
    ]
    assert delays == [0.2, 0.4, 0.8]
    state.take(response(1))
    assert state.patience.delay_after_s(OfflineError("x"), 1.0, 0.0) == 0.2
    assert state.patience.delay_after_s(RejectedError("x"), 1.0, 0.0) is None


def test_a_watch_that_has_not_begun_or_is_not_to_resume_waits_for_nothing() -> None:
    assert (
        WatchState(PREDICTIONS, watch_request(), 0, resume=True).patience.delay_after_s(OfflineError("x"), 1.0, 0.0)
        is None
    )
    unresumed = WatchState(PREDICTIONS, watch_request(), 0, resume=False)
    unresumed.patience.begin()
    assert unresumed.patience.delay_after_s(OfflineError("x"), 1.0, 0.0) is None


@given(st.integers(0, 10_000), st.floats(0, 1, exclude_max=True))
def test_a_delay_is_never_above_its_ceiling_and_never_nothing(attempt: int, chance: float) -> None:
    assert 0 < retry_delay_s(attempt, chance) <= RETRY_MAX_S


def test_a_watch_begins_with_what_there_is_and_goes_on_with_what_is_made(server: RecordingServer) -> None:
    add(server, 2)
    with Client(server.address) as client, client.watch(after_prediction_id=0) as watch:
        assert [each.prediction_id for each in islice(watch, 2)] == [1, 2]
        add(server, 3)
        assert [each.prediction_id for each in islice(watch, 3)] == [3, 4, 5]
        assert watch.last_prediction_id == 5


def test_a_watch_hands_out_only_what_was_asked_for(server: RecordingServer) -> None:
    add(server, 2, station="a")
    add(server, 2, station="b")
    with Client(server.address) as client, client.watch(station="b", after_prediction_id=0) as watch:
        assert [each.prediction_id for each in islice(watch, 2)] == [3, 4]


def test_a_watch_survives_restarts_of_the_server_without_loss_or_repetition(server: RecordingServer) -> None:
    with Client(server.address) as client, client.watch(after_prediction_id=0) as watch:
        seen = []
        for _ in range(3):
            add(server, 5)
            seen += [each.prediction_id for each in islice(watch, 4)]  # one is left, received or not
            server.stop()
            add(server, 5)
            server.start()
        seen += [each.prediction_id for each in islice(watch, 30 - len(seen))]
    assert seen == list(range(1, 31))


def test_a_watch_that_is_not_to_resume_raises_when_the_connection_breaks(server: RecordingServer) -> None:
    add(server, 1)
    with Client(server.address) as client, client.watch(after_prediction_id=0, resume=False) as watch:
        next(watch)
        server.stop()
        with pytest.raises(OfflineError) as caught:
            next(watch)
        assert isinstance(caught.value.__cause__, grpc.RpcError)


def test_a_watch_of_a_server_that_is_not_there_is_an_error_and_not_a_silence(free_port: int) -> None:
    with Client(f"127.0.0.1:{free_port}") as client, pytest.raises(OfflineError):
        client.watch()


def test_an_asyncio_watch_of_a_server_that_is_not_there_is_an_error_too(free_port: int) -> None:
    async def run() -> None:
        async with AsyncClient(f"127.0.0.1:{free_port}") as client:
            async for _ in client.watch():
                pass

    with pytest.raises(OfflineError):
        asyncio.run(run())


def test_a_watch_of_what_is_new_misses_nothing_that_is_made_after_it_was_opened(server: RecordingServer) -> None:
    add(server, 5)
    with Client(server.address) as client:
        for _ in range(20):
            with client.watch() as watch:
                add(server, 1)
                assert next(watch).prediction_id == len(server.predictions)


def test_a_watch_of_an_instrument_needs_its_station(server: RecordingServer) -> None:
    with Client(server.address) as client, pytest.raises(InvalidRequestError):
        client.watch(instrument="ceilometer")


@pytest.mark.parametrize("is_server_there", [True, False])
def test_a_watch_is_ended_from_another_thread_while_it_waits(server: RecordingServer, is_server_there: bool) -> None:
    add(server, 1)
    with Client(server.address) as client:
        watch = client.watch(after_prediction_id=0)
        seen = []
        reader = threading.Thread(target=lambda: seen.extend(watch))
        reader.start()
        if not is_server_there:
            server.stop()
        watch.close()
        reader.join(timeout=10)
        assert not reader.is_alive()
        assert len(seen) <= 1


def test_closing_the_client_ends_its_watches(server: RecordingServer) -> None:
    client = Client(server.address)
    watch = client.watch(after_prediction_id=0)
    reader = threading.Thread(target=lambda: list(watch))
    reader.start()
    client.close()
    reader.join(timeout=10)
    assert not reader.is_alive()


def test_an_asyncio_watch_survives_restarts_of_the_server_too(server: RecordingServer) -> None:
    async def run() -> list[int]:
        seen: list[int] = []
        async with AsyncClient(server.address) as client:
            add(server, 5)
            async for prediction in client.watch(after_prediction_id=0):
                seen.append(prediction.prediction_id)
                if len(seen) in (3, 8):
                    await asyncio.to_thread(server.stop)
                    add(server, 5)
                    await asyncio.to_thread(server.start)
                if len(seen) == 15:
                    break
        return seen

    assert asyncio.run(run()) == list(range(1, 16))


def test_an_asyncio_watch_that_is_not_to_resume_raises(server: RecordingServer) -> None:
    async def run() -> None:
        add(server, 1)
        async with AsyncClient(server.address) as client:
            async for _ in client.watch(after_prediction_id=0, resume=False):
                await asyncio.to_thread(server.stop)

    with pytest.raises(OfflineError):
        asyncio.run(run())


def test_closing_the_asyncio_client_ends_its_watches(server: RecordingServer) -> None:
    async def run() -> int:
        add(server, 1)
        first_came = asyncio.Event()
        client = AsyncClient(server.address)

        async def read() -> int:
            count = 0
            async for _ in client.watch(after_prediction_id=0):
                count += 1
                first_came.set()
            return count

        reader = asyncio.create_task(read())
        await first_came.wait()
        await client.close()
        return await asyncio.wait_for(reader, 10)

    assert asyncio.run(run()) == 1


def test_cancelling_the_task_of_an_asyncio_watch_cancels_it(server: RecordingServer) -> None:
    async def run() -> None:
        async with AsyncClient(server.address) as client:

            async def read() -> None:
                async for _ in client.watch():
                    pass

            reader = asyncio.create_task(read())
            await asyncio.sleep(0)
            reader.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asyncio.wait_for(reader, 10)

    asyncio.run(run())
