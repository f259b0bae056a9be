"""Predicting at once: what is answered, what is refused, and that nobody computes for who has gone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from api_support import Running, Stubs, payload_lengths, run

from fieldpost.v1 import inference_service_pb2 as pb
from server.analyses import AnalysisResult
from server.prediction.inference import IN_FLIGHT_MAX
from server.workers.jobs import WorkItem


class Gate:
    """A model that answers once it is let."""

    def __init__(self) -> None:
        self.is_open = asyncio.Event()
        self.started = asyncio.Event()

    async def __call__(self, items: list[WorkItem]) -> list[AnalysisResult | str]:
        self.started.set()
        await self.is_open.wait()
        return await payload_lengths(items)


def ask(payload: bytes = b"four", **fields: Any) -> pb.PredictRequest:
    return pb.PredictRequest(analysis="height", item=pb.PredictItem(item_id=7, payload=payload, **fields))


def items(*payloads: bytes, first_id: int = 0, **fields: Any) -> pb.PredictStreamRequest:
    made = [pb.PredictItem(item_id=first_id + i, payload=each, **fields) for i, each in enumerate(payloads)]
    return pb.PredictStreamRequest(analysis="height", items=made)


async def stream(stubs: Stubs, *requests: pb.PredictStreamRequest) -> dict[int, pb.PredictResult]:
    async def sent() -> AsyncIterator[pb.PredictStreamRequest]:
        for each in requests:
            yield each

    return {each.item_id: each async for answer in stubs.inference.PredictStream(sent()) for each in answer.results}


async def until(condition: Any) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


def waiting(running: Running) -> int:
    return sum(each.live_count for each in running.batcher.queues())


def test_a_payload_gets_its_prediction(tmp_path: Path) -> None:
    async def scenario(running: Running, stubs: Stubs) -> None:
        answer = await stubs.inference.Predict(ask())
        assert (answer.result.item_id, answer.result.model_version) == (7, 1)
        assert [(v.name, list(v.values)) for v in answer.result.variables] == [("height", [4.0])]

    run(tmp_path, scenario)


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (ask(b"bad"), grpc.StatusCode.INVALID_ARGUMENT),
        (ask(instrument_model="chm15k"), grpc.StatusCode.INVALID_ARGUMENT),
        (ask(timeout_s=float("nan")), grpc.StatusCode.INVALID_ARGUMENT),
        (ask(payload_bytes=1 << 40, payload_encoding=2), grpc.StatusCode.INVALID_ARGUMENT),
        (ask(measure_time={"seconds": 10**15}), grpc.StatusCode.INVALID_ARGUMENT),
        (pb.PredictRequest(analysis="depth"), grpc.StatusCode.NOT_FOUND),
        (pb.PredictRequest(analysis="height", model_version=9), grpc.StatusCode.NOT_FOUND),
    ],
)
def test_what_cannot_be_predicted_says_why(tmp_path: Path, request_: pb.PredictRequest, code: grpc.StatusCode) -> None:
    async def scenario(running: Running, stubs: Stubs) -> None:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stubs.inference.Predict(request_)
        assert caught.value.code() is code
        assert caught.value.details()

    run(tmp_path, scenario)


def test_a_call_that_is_cancelled_leaves_the_queue_and_is_never_computed(tmp_path: Path) -> None:
    gate = Gate()

    async def scenario(running: Running, stubs: Stubs) -> None:
        first = asyncio.ensure_future(stubs.inference.Predict(ask(b"first")))
        await gate.started.wait()
        second = stubs.inference.Predict(ask(b"second"))
        await until(lambda: waiting(running) == 1)
        second.cancel()
        await until(lambda: waiting(running) == 0)
        gate.is_open.set()
        await first
        await stubs.inference.Predict(ask(b"third"))
        assert [each.payload for batch in running.worker.batches for each in batch] == [b"first", b"third"]

    run(tmp_path, scenario, compute=gate)


def test_a_call_past_its_deadline_leaves_the_queue(tmp_path: Path) -> None:
    gate = Gate()

    async def scenario(running: Running, stubs: Stubs) -> None:
        first = asyncio.ensure_future(stubs.inference.Predict(ask(b"first")))
        await gate.started.wait()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stubs.inference.Predict(ask(b"late"), timeout=0.2)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await until(lambda: waiting(running) == 0)
        gate.is_open.set()
        await first
        assert [each.payload for batch in running.worker.batches for each in batch] == [b"first"]

    run(tmp_path, scenario, compute=gate)


def test_each_item_of_a_stream_gets_its_own_answer(tmp_path: Path) -> None:
    async def scenario(running: Running, stubs: Stubs) -> None:
        sent = [
            items(b"a", b"bad", b"ccc"),
            items(b"dddd", first_id=10),
            items(b"e", instrument_model="x", first_id=20),
        ]
        unknown = pb.PredictStreamRequest(analysis="depth", items=[pb.PredictItem(item_id=30, payload=b"f")])
        answers = await stream(stubs, *sent, unknown)
        values = {key: each.variables[0].values[0] for key, each in answers.items() if not each.failure}
        assert values == {0: 1.0, 2: 3.0, 10: 4.0}
        failures = {key: each.failure for key, each in answers.items() if each.failure}
        assert failures == dict.fromkeys([1, 20, 30], pb.PREDICT_FAILURE_REJECTED)
        assert all(answers[key].failure_detail for key in failures)

    run(tmp_path, scenario)


def test_an_item_that_is_late_expires_and_the_others_are_answered(tmp_path: Path) -> None:
    gate = Gate()

    async def scenario(running: Running, stubs: Stubs) -> None:
        call = asyncio.create_task(
            stream(stubs, items(b"a"), items(b"b", first_id=1, timeout_s=0.05), items(b"c", first_id=2))
        )
        await until(lambda: running.batcher.counts.expired == 1)
        gate.is_open.set()
        answers = await call
        assert [answers[i].failure for i in range(3)] == [0, pb.PREDICT_FAILURE_EXPIRED, 0]

    run(tmp_path, scenario, compute=gate)


def test_a_stream_that_breaks_off_leaves_the_queue(tmp_path: Path) -> None:
    gate = Gate()

    async def scenario(running: Running, stubs: Stubs) -> None:
        call = stubs.inference.PredictStream()
        await call.write(items(*[b"x"] * 500))
        await until(lambda: waiting(running) > 400)
        call.cancel()
        await until(lambda: waiting(running) == 0)
        gate.is_open.set()

    run(tmp_path, scenario, compute=gate)


def test_what_is_ready_together_travels_together(tmp_path: Path) -> None:
    async def scenario(running: Running, stubs: Stubs) -> None:
        call = stubs.inference.PredictStream()
        await call.write(items(*[b"x"] * 64))
        messages = [await call.read()]
        while sum(len(each.results) for each in messages) < 64:
            messages.append(await call.read())
        assert len(messages) <= 1 + len(running.worker.batches)
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF

    run(tmp_path, scenario)


def test_a_caller_that_does_not_read_is_not_read_from(tmp_path: Path) -> None:
    async def wide(batch: list[WorkItem]) -> list[AnalysisResult | str]:
        import numpy as np

        from server.analyses import AnalysisVariable

        samples = np.arange(4096)
        return [AnalysisResult(samples, (AnalysisVariable("v", "1", samples.astype(np.float32)),)) for _ in batch]

    async def scenario(running: Running, stubs: Stubs) -> None:
        call = stubs.inference.PredictStream()
        written = 0

        async def write() -> None:
            nonlocal written
            while True:
                await call.write(items(*[b"y" * 100] * 64))
                written += 64

        writer = asyncio.create_task(write())

        def taken() -> int:
            return sum(len(batch) for batch in running.worker.batches)

        await until(lambda: taken() >= IN_FLIGHT_MAX)
        before = -1
        while written != before:  # until it stands still
            before = written
            await asyncio.sleep(0.3)
        writer.cancel()
        call.cancel()
        assert taken() <= 4 * IN_FLIGHT_MAX  # what is in flight, and what the sockets hold

    run(tmp_path, scenario, compute=wide)


def test_a_full_queue_is_told_as_overload(tmp_path: Path) -> None:
    gate = Gate()

    async def scenario(running: Running, stubs: Stubs) -> None:
        async def one() -> Any:
            try:
                return await stream(stubs, items(*[b"z"] * IN_FLIGHT_MAX))
            except grpc.aio.AioRpcError:
                return {}

        calls = [asyncio.create_task(one()) for _ in range(12)]
        await until(lambda: running.batcher.counts.refused > 0)
        gate.is_open.set()
        failures = [each.failure for call in calls for each in (await call).values()]
        assert len(failures) == 12 * IN_FLIGHT_MAX
        assert set(failures) == {0, pb.PREDICT_FAILURE_OVERLOADED}

    run(tmp_path, scenario, compute=gate)
