"""Predicts at once for a Client: all its threads share one stream, which stays open.

Measured, that is faster than a call for each even for a thread that is alone (docs/decisions.md). What travels
together, and what is tried again, is decided in _predict_desk.py.
"""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from typing import TypeAlias

import grpc

from fieldpost._answers import Answer, refused_answer, to_answer
from fieldpost._connection import Connection
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
from fieldpost.v1.inference_service_pb2_grpc import InferenceStub

_Call: TypeAlias = "grpc._CallIterator[pb.PredictStreamResponse]"


class _Waiter:
    """Where one thread waits for one answer. A bare lock: a Future costs ten times as much."""

    __slots__ = ("_lock", "error", "item_id", "result")

    def __init__(self) -> None:
        self.item_id = 0
        self.result: pb.PredictResult | None = None
        self.error: FieldpostError | None = None
        self._lock = threading.Lock()
        self._lock.acquire()

    def wait(self, timeout_s: float) -> bool:
        return self._lock.acquire(timeout=max(timeout_s, 0))

    def release(self) -> None:
        self._lock.release()


class Predictor:
    """Predicts over one connection, for any number of threads."""

    def __init__(self, connection: Connection, stub: InferenceStub) -> None:
        self._connection = connection
        self._stub = stub
        self._desk: PredictDesk[_Waiter] = PredictDesk()
        self._changed = threading.Condition(threading.Lock())
        self._call: _Call | None = None
        self._is_closed = False
        self._has_answered = False

    def close(self) -> None:
        """Ends the stream; whoever waits gets OfflineError."""
        with self._changed:
            self._is_closed = True
            call, self._call = self._call, None
            self._changed.notify_all()
            given_up = self._desk.stream_broke(is_worth_a_second_try=False)
        for asked in given_up:
            asked.handle.error = OfflineError("expected an answer, but the client was closed", hint="make a new client")
            asked.handle.release()
        if call is not None:
            call.cancel()

    def predict(self, target: Target, item: pb.PredictItem, timeout_s: float) -> Answer:
        """Predicts one payload."""
        asked = Asked(target, item, time.monotonic() + timeout_s, _Waiter())
        self._ask(asked)
        result = self._wait(asked, timeout_s)
        failure = failure_of(asked, result)
        if failure is not None:
            raise failure
        return to_answer(target[0], result)

    def _ask(self, asked: Asked[_Waiter]) -> None:
        with self._changed:
            if self._is_closed:
                raise OfflineError("expected an open client, but it is closed", hint="make a new client")
            asked.handle.item_id = self._desk.add(asked)
            if self._call is None:
                self._open()
            self._changed.notify()

    def _wait(self, asked: Asked[_Waiter], timeout_s: float) -> pb.PredictResult:
        waiter = asked.handle
        is_answered = False
        try:
            is_answered = waiter.wait(asked.deadline_s - time.monotonic())
        finally:
            if not is_answered:
                with self._changed:
                    self._desk.forget(waiter.item_id)
        if not is_answered:
            raise no_answer(self._connection.address, timeout_s)
        if waiter.error is not None:
            raise waiter.error
        return waiter.result or self._ask_alone(asked)

    def _ask_alone(self, asked: Asked[_Waiter]) -> pb.PredictResult:
        """Asks with a call of its own, after the server has refused a stream on which others asked, too."""
        request = pb.PredictRequest(analysis=asked.target[0], model_version=asked.target[1], item=asked.item)
        left_s = max(asked.deadline_s - time.monotonic(), 0.001)
        return self._connection.call(self._stub.Predict, request, timeout_s=left_s, unknown=UnknownModelError).result

    def _open(self) -> None:
        """Opens a stream, with a thread that hands out its answers. Called with the lock held."""
        call_or_none: list[_Call] = []
        call = self._stub.PredictStream(self._requests(call_or_none), wait_for_ready=self._has_answered)
        call_or_none.append(call)
        self._call = call
        threading.Thread(target=self._hand_out, args=(call,), name="fieldpost-predict", daemon=True).start()

    def _requests(self, of_call: list[_Call]) -> Iterator[pb.PredictStreamRequest]:
        """What waits, whenever gRPC can send: it asks in a thread of its own."""
        while True:
            with self._changed:
                if not of_call or self._call is not of_call[0]:
                    return
                request = self._desk.next_request(time.monotonic())
                if request is None:
                    self._changed.wait()
                    continue
            yield request

    def _hand_out(self, call: _Call) -> None:
        failure: FieldpostError
        try:
            for response in call:
                self._has_answered = True
                with self._changed:
                    taken = self._desk.take(response)
                for asked, result in taken:
                    asked.handle.result = result
                    asked.handle.release()
            failure = watch_ended(self._connection.address)
        except grpc.RpcError as error:
            failure = as_unknown(error_from(error, self._connection.address), UnknownModelError)
        self._stream_ended(call, failure)

    def _stream_ended(self, call: _Call, failure: FieldpostError) -> None:
        is_offline = isinstance(failure, OfflineError)
        with self._changed:
            if self._call is not call:
                return  # closed by us
            self._call = None
            self._changed.notify_all()  # the thread of the old stream ends
            given_up = self._desk.stream_broke(is_worth_a_second_try=is_offline and self._has_answered)
            if self._desk.is_anything_waiting:
                self._open()
        for asked in given_up:
            if isinstance(failure, TryAgainError):
                asked.handle.error = failure
            # Else one of them all is refused, and each finds out by himself whether it is he.
            asked.handle.release()

    def predict_each(
        self,
        target: Target,
        payloads: Iterable[bytes],
        instrument_model: str | None,
        measure_time: Moment | None,
        timeout_s: float,
    ) -> Iterator[Answer]:
        """Predicts payloads as they come; yields the answers in their order."""
        window: deque[Asked[_Waiter]] = deque()
        window_bytes = 0
        try:
            for payload in payloads:
                item = predict_item(payload, instrument_model, measure_time)
                asked = Asked(target, item, time.monotonic() + timeout_s, _Waiter())
                self._ask(asked)
                window.append(asked)
                window_bytes += len(payload)
                while window and (len(window) >= WINDOW_COUNT or window_bytes > WINDOW_BYTES):
                    window_bytes -= len(window[0].item.payload)
                    yield self._answer_of(window.popleft(), timeout_s)
            while window:
                yield self._answer_of(window.popleft(), timeout_s)
        finally:
            with self._changed:
                for asked in window:
                    self._desk.forget(asked.handle.item_id)

    def _answer_of(self, asked: Asked[_Waiter], timeout_s: float) -> Answer:
        """The answer to one of a series. Where the server has too much to do, the series is what it has to do."""
        attempt = 0
        while True:
            result = self._wait(asked, timeout_s)
            failure = failure_of(asked, result)
            if failure is None:
                return to_answer(asked.target[0], result)
            if isinstance(failure, RejectedError) and not isinstance(failure, UnknownModelError):
                return refused_answer(asked.target[0], result.model_version, failure)
            if not isinstance(failure, OverloadedError) or time.monotonic() >= asked.deadline_s:
                raise failure
            time.sleep(retry_delay_s(attempt, random.random()))
            attempt += 1
            asked = Asked(asked.target, asked.item, asked.deadline_s, _Waiter())
            self._ask(asked)
