"""Predicting at once: together on one stream, in order, with deadlines, over restarts."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sdk_support import AsyncInBlockingTests, Connect, both_clients, until_online

from fieldpost import AsyncClient, Client
from fieldpost._predict_desk import MESSAGE_MAX_BYTES, MESSAGE_MAX_COUNT, Asked, PredictDesk, predict_item, target
from fieldpost.errors import (
    BrokenStateError,
    InvalidRequestError,
    OfflineError,
    OverloadedError,
    RejectedError,
    UnknownModelError,
)
from fieldpost.testing import RecordingServer
from fieldpost.v1 import inference_service_pb2 as pb
from fieldpost.v1.inference_service_pb2_grpc import InferenceServicer, add_InferenceServicer_to_server
from fieldpost.v1.prediction_pb2 import Variable

SIZE = "payload_size"


def measure(analysis: str, payload: bytes) -> list[Variable]:
    if payload == b"bad":
        raise RejectedError("expected an image, but got bad")
    return [
        Variable(name=SIZE, unit="1", values=[len(payload)]),
        Variable(name="tissue", unit="1", values=[len(payload) % 2], flag_meanings=["healthy", "burnt"]),
    ]


@pytest.fixture
def server() -> Iterator[RecordingServer]:
    with RecordingServer(predict=measure) as running:
        yield running


@both_clients
def test_a_prediction_has_values_units_and_names_of_classes(server: RecordingServer, connect: Connect) -> None:
    with connect(server.address) as client:
        answer = client.predict("size", b"12345", measure_time="2025-06-01T12:00Z")
    assert (answer.analysis, answer.model_version, answer.failure) == ("size", 1, None)
    assert answer[SIZE].tolist() == [5.0] and answer[SIZE].dtype == np.float32 and answer.units[SIZE] == "1"
    assert answer.labels("tissue") == ["burnt"]
    assert answer.time.tolist() == np.array(["2025-06-01T12:00"], "datetime64[ns]").tolist()
    assert answer.rows() == [{"time": "2025-06-01T12:00:00Z", SIZE: 5.0, "tissue": "burnt"}]
    with pytest.raises(KeyError, match="payload_size, tissue"):
        answer["height"]
    with pytest.raises(KeyError, match="classes"):
        answer.labels(SIZE)


@both_clients
def test_a_payload_that_the_model_refuses_is_an_error_of_one_and_an_answer_of_many(
    server: RecordingServer, connect: Connect
) -> None:
    with connect(server.address) as client:
        with pytest.raises(InvalidRequestError, match="expected an image, but got bad") as caught:
            client.predict("size", b"bad")
        assert caught.value.hint
        answers = list(client.predict_each("size", [b"1", b"bad", b"333"]))
    assert [None if each.failure else each[SIZE][0] for each in answers] == [1, None, 3]
    assert isinstance(answers[1].failure, RejectedError)


@both_clients
def test_a_series_comes_in_its_order_however_long_it_is(server: RecordingServer, connect: Connect) -> None:
    with connect(server.address) as client:
        sizes = [int(each[SIZE][0]) for each in client.predict_each("size", (bytes(n % 50) for n in range(2000)))]
    assert sizes == [n % 50 for n in range(2000)]


@both_clients
def test_a_series_that_is_left_in_the_middle_disturbs_nobody(server: RecordingServer, connect: Connect) -> None:
    with connect(server.address) as client:
        answers = client.predict_each("size", [b"x"] * 600)
        next(answers)
        answers.close()
        assert client.predict("size", b"12")[SIZE][0] == 2


@both_clients
def test_an_unknown_analysis_is_told_to_who_asked_for_it(server: RecordingServer, connect: Connect) -> None:
    server.predict = None
    with connect(server.address) as client, pytest.raises(UnknownModelError, match="no model size") as caught:
        client.predict("size", b"1")
    assert "fieldpost models list" in caught.value.hint


@both_clients
@pytest.mark.parametrize(("analysis", "version"), [("", None), ("size", 0), ("size", -1)])
def test_what_cannot_be_asked_is_refused_before_it_is_sent(
    connect: Connect, free_port: int, analysis: str, version: int | None
) -> None:
    with connect(f"127.0.0.1:{free_port}") as client, pytest.raises(InvalidRequestError):
        client.predict(analysis, b"1", version=version)


@both_clients
def test_a_server_that_is_not_there_is_an_offline_error_at_once(connect: Connect, free_port: int) -> None:
    with connect(f"127.0.0.1:{free_port}") as client, pytest.raises(OfflineError, match=str(free_port)):
        client.predict("size", b"1")


@both_clients
def test_a_server_that_was_restarted_in_between_is_asked_once_more(server: RecordingServer, connect: Connect) -> None:
    with connect(server.address) as client:
        for _ in range(3):
            assert client.predict("size", b"1")[SIZE][0] == 1
            server.stop()
            server.start()


@both_clients
def test_what_is_on_the_way_when_the_server_goes_is_asked_for_again_when_it_is_back(connect: Connect) -> None:
    is_first = threading.Event()
    let_go = threading.Event()

    def slow_at_first(analysis: str, payload: bytes) -> list[Variable]:
        if payload == b"slow" and not is_first.is_set():
            is_first.set()
            let_go.wait(20)
        return measure(analysis, payload)

    def restart() -> None:
        is_first.wait(20)
        threading.Timer(0.2, let_go.set).start()  # the old server's thread must end before stop() returns
        server.stop()
        server.start()

    with RecordingServer(predict=slow_at_first) as server, connect(server.address) as client:
        client.predict("size", b"1")
        helper = threading.Thread(target=restart)
        helper.start()
        assert client.predict("size", b"slow")[SIZE][0] == 4
        helper.join()


@both_clients
def test_a_timeout_ends_one_wait_and_the_stream_goes_on(connect: Connect) -> None:
    let_go = threading.Event()

    def slow(analysis: str, payload: bytes) -> list[Variable]:
        if payload == b"slow":
            let_go.wait(20)
        return measure(analysis, payload)

    with RecordingServer(predict=slow) as server, connect(server.address) as client:
        with pytest.raises(OfflineError, match=r"within 0\.2 s"):
            client.predict("size", b"slow", timeout_s=0.2)
        let_go.set()
        assert client.predict("size", b"12")[SIZE][0] == 2


@both_clients
def test_a_series_asks_again_where_the_server_has_too_much_to_do(connect: Connect) -> None:
    refused = []

    def busy_at_first(analysis: str, payload: bytes) -> list[Variable]:
        if len(refused) < 3:
            refused.append(payload)
            raise OverloadedError("too much waits")
        return measure(analysis, payload)

    with RecordingServer(predict=busy_at_first) as server, connect(server.address) as client:
        with pytest.raises(OverloadedError, match="too much waits"):
            client.predict("size", b"1")
        assert [int(each[SIZE][0]) for each in client.predict_each("size", [b"1", b"22", b"333"])] == [1, 2, 3]
    assert len(refused) == 3


class Counting(InferenceServicer):
    """Answers, and counts how many items came in how many messages; refuses the analysis "unknown" with the stream."""

    def __init__(self) -> None:
        self.message_counts: list[int] = []
        self.may_answer = threading.Event()
        self.may_answer.set()

    def Predict(self, request: pb.PredictRequest, context: grpc.ServicerContext) -> pb.PredictResponse:
        if request.analysis == "unknown":
            context.abort(grpc.StatusCode.NOT_FOUND, "no such analysis")
        return pb.PredictResponse(result=self._result(request.item))

    def PredictStream(
        self, request_iterator: Iterable[pb.PredictStreamRequest], context: grpc.ServicerContext
    ) -> Iterator[pb.PredictStreamResponse]:
        for request in request_iterator:
            if request.analysis == "unknown":
                context.abort(grpc.StatusCode.NOT_FOUND, "no such analysis")
            self.message_counts.append(len(request.items))
            self.may_answer.wait(20)
            # In any order: here the last first.
            yield pb.PredictStreamResponse(results=[self._result(item) for item in reversed(request.items)])

    def _result(self, item: pb.PredictItem) -> pb.PredictResult:
        variable = Variable(name=SIZE, unit="1", values=[len(item.payload)])
        return pb.PredictResult(item_id=item.item_id, model_version=1, sample_unix_nanos=[1], variables=[variable])


@pytest.fixture
def counting() -> Iterator[tuple[Counting, str]]:
    servicer = Counting()
    running = grpc.server(ThreadPoolExecutor(8))
    add_InferenceServicer_to_server(servicer, running)
    port = running.add_insecure_port("127.0.0.1:0")
    running.start()
    yield servicer, f"127.0.0.1:{port}"
    running.stop(None).wait()


def test_threads_that_ask_at_once_travel_together_and_each_gets_its_own(counting: tuple[Counting, str]) -> None:
    servicer, address = counting
    servicer.may_answer.clear()
    with Client(address) as client, ThreadPoolExecutor(64) as threads:
        # What the network holds is full soon, and what waits behind it goes together.
        asked = [threads.submit(client.predict, "size", bytes(200_000 + n)) for n in range(64)]
        while len(client._predictor._desk) < 64:
            time.sleep(0.001)
        servicer.may_answer.set()
        assert [int(each.result(20)[SIZE][0]) for each in asked] == [200_000 + n for n in range(64)]
    assert sum(servicer.message_counts) == 64 and len(servicer.message_counts) < 48


def test_coroutines_that_ask_at_once_travel_together_and_each_gets_its_own(counting: tuple[Counting, str]) -> None:
    async def run() -> list[int]:
        async with AsyncClient(address) as client:
            answers = await asyncio.gather(*(client.predict("size", bytes(n)) for n in range(1000)))
            return [int(each[SIZE][0]) for each in answers]

    servicer, address = counting
    assert asyncio.run(run()) == list(range(1000))
    assert sum(servicer.message_counts) == 1000 and len(servicer.message_counts) < 20


def test_cancelling_one_disturbs_no_other(counting: tuple[Counting, str]) -> None:
    async def run() -> list[int]:
        async with AsyncClient(address) as client:
            tasks = [asyncio.create_task(client.predict("size", bytes(n))) for n in range(100)]
            await asyncio.sleep(0)  # all have asked
            for task in tasks[::2]:
                task.cancel()
            done = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(isinstance(each, asyncio.CancelledError) for each in done[::2])
            return [int(each[SIZE][0]) for each in done[1::2] if not isinstance(each, BaseException)]

    _, address = counting
    assert asyncio.run(run()) == list(range(1, 100, 2))


def test_one_who_asks_for_what_is_not_there_does_not_spoil_it_for_the_others(counting: tuple[Counting, str]) -> None:
    async def run() -> list[object]:
        async with AsyncClient(address) as client:
            asked = (client.predict("unknown" if n == 50 else "size", bytes(n)) for n in range(100))
            return await asyncio.gather(*asked, return_exceptions=True)

    def in_threads(client: Client, n: int) -> object:
        try:
            return client.predict("unknown" if n == 50 else "size", bytes(n))
        except UnknownModelError as error:
            return error

    _, address = counting
    with Client(address) as client, ThreadPoolExecutor(32) as threads:
        of_threads = list(threads.map(lambda n: in_threads(client, n), range(100)))
    for done in (asyncio.run(run()), of_threads):
        assert [n for n, each in enumerate(done) if isinstance(each, UnknownModelError)] == [50]
        assert not [each for n, each in enumerate(done) if n != 50 and isinstance(each, BaseException)]


def test_closing_the_client_ends_the_waits_of_other_threads() -> None:
    asked = threading.Event()
    let_go = threading.Event()

    def slow(analysis: str, payload: bytes) -> list[Variable]:
        asked.set()
        let_go.wait(20)
        return []

    with RecordingServer(predict=slow) as server, ThreadPoolExecutor(1) as threads:
        client = Client(server.address)
        waiting = threads.submit(client.predict, "size", b"1")
        asked.wait(20)
        client.close()
        with pytest.raises(OfflineError, match="closed"):
            waiting.result(20)
        let_go.set()


def test_a_client_leaves_no_thread_behind(server: RecordingServer) -> None:
    with Client(server.address) as client:
        client.stations()
        before = set(threading.enumerate())
        client.predict("size", b"1")
        started = [each for each in threading.enumerate() if each not in before and "recording" not in each.name]
    assert started
    for thread in started:
        thread.join(timeout=10)
        assert not thread.is_alive()


def test_an_asyncio_client_that_is_closed_ends_its_waits_and_answers_no_more(server: RecordingServer) -> None:
    with AsyncInBlockingTests(server.address) as client:
        client.predict("size", b"1")
        client.close()
        with pytest.raises(OfflineError, match="closed"):
            client.predict("size", b"1")


def test_after_a_long_absence_the_server_is_found_again(server: RecordingServer) -> None:
    with Client(server.address, timeout_s=0.3) as client:
        client.predict("size", b"1")
        server.stop()
        with pytest.raises(OfflineError):
            client.predict("size", b"1")
        server.start()
        assert until_online(lambda: client.predict("size", b"1"))[SIZE][0] == 1


def ask(desk: PredictDesk[int], handle: int, size: int = 1, *, deadline_s: float = 10.0, analysis: str = "a") -> int:
    return desk.add(Asked((analysis, 0), predict_item(bytes(size), None, None), deadline_s, handle))


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, MESSAGE_MAX_BYTES)), max_size=40))
def test_everything_travels_once_in_order_and_no_message_is_too_large(asked: list[tuple[str, int]]) -> None:
    desk: PredictDesk[int] = PredictDesk()
    for number, (analysis, size) in enumerate(asked):
        ask(desk, number, size, analysis=analysis)
    sent: dict[str, list[int]] = {}
    while (request := desk.next_request(0.0)) is not None:
        assert len(request.items) == 1 or sum(len(item.payload) for item in request.items) <= MESSAGE_MAX_BYTES
        assert all(item.timeout_s == 10 for item in request.items)
        sent.setdefault(request.analysis, []).extend(item.item_id for item in request.items)
    for name in "abc":
        assert sent.get(name, []) == [n for n, (analysis, _) in enumerate(asked, 1) if analysis == name]


def test_those_who_ask_different_models_take_turns() -> None:
    desk: PredictDesk[int] = PredictDesk()
    for number in range(2 * MESSAGE_MAX_COUNT):
        ask(desk, number, analysis="much")
    ask(desk, 0, analysis="little")
    order = [request.analysis for _ in range(3) if (request := desk.next_request(0.0)) is not None]
    assert order == ["much", "little", "much"]


def test_what_nobody_waits_for_any_more_is_not_sent() -> None:
    desk: PredictDesk[int] = PredictDesk()
    ask(desk, 1, deadline_s=1.0)
    forgotten = ask(desk, 2)
    kept = ask(desk, 3)
    desk.forget(forgotten)
    request = desk.next_request(2.0)
    assert request is not None and [item.item_id for item in request.items] == [kept]
    assert desk.next_request(2.0) is None


def test_a_broken_stream_is_worth_one_more_try_and_only_for_what_was_sent() -> None:
    desk: PredictDesk[int] = PredictDesk()
    sent = ask(desk, 1)
    desk.next_request(0.0)
    waiting = ask(desk, 2)
    assert desk.stream_broke(is_worth_a_second_try=True) == []
    request = desk.next_request(0.0)
    assert request is not None and {item.item_id for item in request.items} == {sent, waiting}
    assert [each.handle for each in desk.stream_broke(is_worth_a_second_try=True)] == [1]
    assert [each.handle for each in desk.stream_broke(is_worth_a_second_try=False)] == [2]
    assert len(desk) == 0


def test_a_payload_that_no_message_can_hold_is_refused_with_what_to_do() -> None:
    with pytest.raises(InvalidRequestError, match="at most") as caught:
        predict_item(bytes(64 * 1024 * 1024), None, None)
    assert "send it as an observation" in caught.value.hint
    assert target("a", None) == ("a", 0)


def test_an_answer_in_a_wrong_shape_is_a_broken_state() -> None:
    def wrong(analysis: str, payload: bytes) -> list[Variable]:
        return [Variable(name="a", values=[1.0, 2.0]), Variable(name="b", values=[1.0])]

    with (
        RecordingServer(predict=wrong) as server,
        Client(server.address) as client,
        pytest.raises(BrokenStateError, match="2 values of b, but got 1"),
    ):
        client.predict("size", b"1")
