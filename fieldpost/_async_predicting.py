"""Predicts at once for an AsyncClient: all its coroutines share one stream, which stays open.

What travels together, and what is tried again, is decided in _predict_desk.py.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from typing import TYPE_CHECKING, TypeAlias

import grpc
from grpc import aio

from fieldpost._answers import Answer, refused_answer, to_answer
from fieldpost._async_connection import AsyncConnection
from fieldpost._predict_desk import (
    WINDOW_BYTES,
    WINDOW_COUNT,
    Asked,
    PredictDesk,
    Target,
    failure_of,
    predict_item,
)
from fieldpost._resuming import retry_delay_s
from fieldpost._status import error_from, no_answer, watch_ended
from fieldpost._times import Moment
from fieldpost._unknown import as_unknown
from fieldpost.errors import (
    FieldpostError,
    OfflineError,
    OverloadedError,
    RejectedError,
    TryAgainError,
    UnknownModelError,
)
from fieldpost.v1 import inference_service_pb2 as pb

if TYPE_CHECKING:
    from fieldpost.v1.inference_service_pb2_grpc import InferenceAsyncStub

_Call: TypeAlias = "aio.StreamStreamCall[pb.PredictStreamRequest, pb.PredictStreamResponse]"
_Future: TypeAlias = "asyncio.Future[pb.PredictResult | None]"
"""The result; None where it has to be asked for alone."""


class AsyncPredictor:
    """Predicts over one connection, for any number of coroutines of its event loop."""

    def __init__(self, connection: AsyncConnection, stub: InferenceAsyncStub) -> None:
        self._connection = connection
        self._stub = stub
        self._desk: PredictDesk[_Future] = PredictDesk()
        self._wake = asyncio.Event()
        self._call: _Call | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_closed = False
        self._has_answered = False

    async def close(self) -> None:
        """Ends the stream; whoever waits gets OfflineError."""
        self._is_closed = True
        call, self._call = self._call, None
        error = OfflineError("expected an answer, but the client was closed", hint="make a new client")
        for asked in self._desk.stream_broke(is_worth_a_second_try=False):
            _fail(asked, error)
        if call is not None:
            call.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def predict(self, target: Target, item: pb.PredictItem, timeout_s: float) -> Answer:
        """Predicts one payload."""
        asked = self._ask(target, item, time.monotonic() + timeout_s)
        result = await self._wait(asked, timeout_s)
        failure = failure_of(asked, result)
        if failure is not None:
            raise failure
        return to_answer(target[0], result)

    def _ask(self, target: Target, item: pb.PredictItem, deadline_s: float) -> Asked[_Future]:
        if self._is_closed:
            raise OfflineError("expected an open client, but it is closed", hint="make a new client")
        future: _Future = asyncio.get_running_loop().create_future()
        asked = Asked(target, item, deadline_s, future)
        self._desk.add(asked)
        if self._call is None:
            self._open()
        self._wake.set()
        return asked

    async def _wait(self, asked: Asked[_Future], timeout_s: float) -> pb.PredictResult:
        try:
            async with asyncio.timeout(asked.deadline_s - time.monotonic()):
                return await asked.handle or await self._ask_alone(asked)
        except TimeoutError as error:
            raise no_answer(self._connection.address, timeout_s) from error
        finally:
            self._desk.forget(asked.item.item_id)

    async def _ask_alone(self, asked: Asked[_Future]) -> pb.PredictResult:
        """Asks with a call of its own, after the server has refused a stream on which others asked, too."""
        request = pb.PredictRequest(analysis=asked.target[0], model_version=asked.target[1], item=asked.item)
        left_s = max(asked.deadline_s - time.monotonic(), 0.001)
        response = await self._connection.call(self._stub.Predict, request, timeout_s=left_s, unknown=UnknownModelError)
        return response.result

    def _open(self) -> None:
        """Opens a stream, with a task that writes to it and one that hands out its answers."""
        call = self._stub.PredictStream(wait_for_ready=self._has_answered)
        self._call = call
        for work in (self._write(call), self._hand_out(call)):
            task = asyncio.get_running_loop().create_task(work)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _write(self, call: _Call) -> None:
        try:
            while self._call is call:
                request = self._desk.next_request(time.monotonic())
                if request is not None:
                    await call.write(request)
                    continue
                self._wake.clear()
                await self._wake.wait()
        except (grpc.RpcError, asyncio.InvalidStateError):
            return  # the call has ended; whoever reads it is told why

    async def _hand_out(self, call: _Call) -> None:
        failure: FieldpostError = watch_ended(self._connection.address)
        try:
            while isinstance(response := await call.read(), pb.PredictStreamResponse):
                self._has_answered = True
                for asked, result in self._desk.take(response):
                    if not asked.handle.done():
                        asked.handle.set_result(result)
        except grpc.RpcError as error:
            failure = as_unknown(error_from(error, self._connection.address), UnknownModelError)
        self._stream_ended(call, failure)

    def _stream_ended(self, call: _Call, failure: FieldpostError) -> None:
        if self._call is not call:
            return  # closed by us
        self._call = None
        self._wake.set()  # the writer of the old stream ends
        is_offline = isinstance(failure, OfflineError)
        given_up = self._desk.stream_broke(is_worth_a_second_try=is_offline and self._has_answered)
        if self._desk.is_anything_waiting:
            self._open()
        for asked in given_up:
            if isinstance(failure, TryAgainError):
                _fail(asked, failure)
            elif not asked.handle.done():
                asked.handle.set_result(None)  # one of all is refused: each finds out by himself whether it is he

    async def predict_each(
        self,
        target: Target,
        payloads: AsyncIterable[bytes] | Iterable[bytes],
        instrument_model: str | None,
        measure_time: Moment | None,
        timeout_s: float,
    ) -> AsyncIterator[Answer]:
        """Predicts payloads as they come; yields the answers in their order."""
        window: deque[Asked[_Future]] = deque()
        window_bytes = 0
        try:
            async for payload in _as_async(payloads):
                item = predict_item(payload, instrument_model, measure_time)
                window.append(self._ask(target, item, time.monotonic() + timeout_s))
                window_bytes += len(payload)
                while window and (len(window) >= WINDOW_COUNT or window_bytes > WINDOW_BYTES):
                    window_bytes -= len(window[0].item.payload)
                    yield await self._answer_of(window.popleft(), timeout_s)
            while window:
                yield await self._answer_of(window.popleft(), timeout_s)
        finally:
            for asked in window:
                self._desk.forget(asked.item.item_id)

    async def _answer_of(self, asked: Asked[_Future], timeout_s: float) -> Answer:
        """The answer to one of a series. Where the server has too much to do, the series is what it has to do."""
        attempt = 0
        while True:
            result = await self._wait(asked, timeout_s)
            failure = failure_of(asked, result)
            if failure is None:
                return to_answer(asked.target[0], result)
            if isinstance(failure, RejectedError) and not isinstance(failure, UnknownModelError):
                return refused_answer(asked.target[0], result.model_version, failure)
            if not isinstance(failure, OverloadedError) or time.monotonic() >= asked.deadline_s:
                raise failure
            await asyncio.sleep(retry_delay_s(attempt, random.random()))
            attempt += 1
            asked = self._ask(asked.target, asked.item, asked.deadline_s)


def _fail(asked: Asked[_Future], error: FieldpostError) -> None:
    if not asked.handle.done():
        asked.handle.set_exception(error)


async def _as_async(payloads: AsyncIterable[bytes] | Iterable[bytes]) -> AsyncIterator[bytes]:
    if isinstance(payloads, AsyncIterable):
        async for payload in payloads:
            yield payload
    else:
        for payload in payloads:
            yield payload
