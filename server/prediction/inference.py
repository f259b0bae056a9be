"""Predicts at once: a payload in, a prediction out, nothing stored. The core of the service Inference.

A call's items share the batcher with everything else; its lane takes turns with instruments and other callers. Knows
no gRPC: deadlines come in as instants of the event loop's clock.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from fieldpost.errors import FieldpostError, InvalidRequestError, RejectedError, TryAgainError
from fieldpost.v1 import inference_service_pb2 as pb
from fieldpost.v1 import observation_pb2
from server.batching.batcher import Batcher, ExpiredError, Request
from server.batching.policy import Waiting
from server.instants import is_storable, to_nanos
from server.models.card import ModelCard
from server.prediction.answer_bytes import encode_results
from server.workers.jobs import ResultBlock, WorkItem

IN_FLIGHT_MAX = 2048
"""Items of one call between arrival and answer; beyond them it is not read from."""
IN_FLIGHT_BYTES_MAX = 64 * 1024 * 1024
ANSWER_BYTES_MAX = 1024 * 1024
"""An answer is sent when it has so much, or when nothing more is ready."""

FindModel = Callable[[str, int], Awaitable[ModelCard]]
"""(analysis, version) -> a model version that can be asked; version 0 is the active one."""


class Inference:
    """Predicts payloads.

    Args:
        find: Finds model versions; raises UnknownModelError.
        batcher: Has them asked.
        payload_bytes_max: Larger payloads are refused.
    """

    def __init__(self, find: FindModel, batcher: Batcher, *, payload_bytes_max: int) -> None:
        self.find = find
        self.batcher = batcher
        self.payload_bytes_max = payload_bytes_max

    async def predict(self, request: pb.PredictRequest, *, lane: str, deadline_s: float | None) -> bytes:
        """One prediction, as a serialised PredictResponse; whoever is cancelled while it waits has left the queue.

        Raises:
            UnknownModelError: There is no such model version.
            RejectedError: The payload, or what is said of it, cannot be predicted.
            TryAgainError: Too much waits, or it could not be in time (ExpiredError).
        """
        card = await self.find(request.analysis, request.model_version)
        work = make_work_item(request.item, card, time.time_ns(), self.payload_bytes_max)
        lone = _Lone(card.key.version)
        waiting = self.batcher.ask(card.key, work, lone, request.item.item_id, lane=lane, deadline_s=deadline_s)
        try:
            return await lone.answer
        finally:
            if not waiting.value.is_over:
                self.batcher.withdraw(waiting)


class _Lone:
    """Asks for one observation; its ticket is the item_id."""

    def __init__(self, version: int) -> None:
        self._version = version
        self.answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def take_results(self, block: ResultBlock, rows: list[int], tickets: list[int]) -> None:
        if not self.answer.done():
            self.answer.set_result(encode_results(block, rows, tickets, self._version)[0])

    def take_failure(self, ticket: int, error: FieldpostError) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)


class _Asked(NamedTuple):
    """An item that waits for its answer."""

    item_id: int
    version: int
    size_bytes: int
    waiting: Waiting[Request]


class _Ready(NamedTuple):
    """An answer that waits to be fetched: a serialised PredictStreamResponse with one result."""

    content: bytes
    item_bytes: int


class Flow:
    """The items of one streaming call, from arrival to answer. Bounded: taking waits until answers are fetched.

    Args:
        inference: Predicts.
        lane: Whose items these are.
        deadline_s: The call's own deadline; None for none.
    """

    def __init__(self, inference: Inference, *, lane: str, deadline_s: float | None) -> None:
        self._inference = inference
        self._lane = lane
        self._deadline_s = math.inf if deadline_s is None else deadline_s
        self._loop = asyncio.get_running_loop()
        self._asked: dict[int, _Asked] = {}
        self._tickets = itertools.count()
        self._ready: deque[_Ready] = deque()
        self._broken: FieldpostError | None = None
        self._count = self._bytes = 0
        self._is_ended = False
        self._news = asyncio.Event()
        self._room = asyncio.Event()

    async def take(self, request: pb.PredictStreamRequest) -> None:
        """Lets the items of a message be predicted; returns when all of them are on their way."""
        try:
            card = await self._inference.find(request.analysis, request.model_version)
        except FieldpostError as error:  # of these items, not of those that others have on the same call
            for item in request.items:
                await self._wait_for_room()
                self._answer_now(failed(item.item_id, request.model_version, error))
            return
        now_s, now_nanos, key = self._loop.time(), time.time_ns(), card.key
        ask, payload_bytes_max = self._inference.batcher.ask, self._inference.payload_bytes_max
        for item in request.items:
            if self._count >= IN_FLIGHT_MAX or self._bytes >= IN_FLIGHT_BYTES_MAX:
                await self._wait_for_room()
            ticket = next(self._tickets)
            try:
                work = make_work_item(item, card, now_nanos, payload_bytes_max)
                deadline_s = min(self._deadline_s, now_s + item.timeout_s if item.timeout_s else math.inf)
                waiting = ask(
                    key, work, self, ticket, lane=self._lane, deadline_s=None if deadline_s == math.inf else deadline_s
                )
            except FieldpostError as error:
                self._answer_now(failed(item.item_id, key.version, error))
                continue
            size_bytes = len(work.payload)
            self._asked[ticket] = _Asked(item.item_id, key.version, size_bytes, waiting)
            self._count += 1
            self._bytes += size_bytes

    def end(self) -> None:
        """Nothing more is taken; answers() ends after the last answer."""
        self._is_ended = True
        self._news.set()

    def cancel(self) -> None:
        """Nobody waits any more: what is not computed yet never will be."""
        for asked in self._asked.values():
            self._inference.batcher.withdraw(asked.waiting)
        self._asked.clear()

    async def answers(self) -> bytes | None:
        """What is ready by now, as a serialised PredictStreamResponse, as soon as something is; None at the end."""
        while not self._ready:
            if self._broken is not None:
                raise self._broken
            if self._is_ended and not self._asked:
                return None
            self._news.clear()
            await self._news.wait()
        contents, size_bytes = [], 0
        while self._ready and size_bytes < ANSWER_BYTES_MAX:
            ready = self._ready.popleft()
            self._count -= 1
            self._bytes -= ready.item_bytes
            contents.append(ready.content)
            size_bytes += len(ready.content)
        self._room.set()
        return b"".join(contents)

    def take_results(self, block: ResultBlock, rows: list[int], tickets: list[int]) -> None:
        """The batcher has results."""
        asked = [self._asked.pop(ticket) for ticket in tickets]
        contents = encode_results(block, rows, [each.item_id for each in asked], asked[0].version)
        self._ready.extend(map(_Ready, contents, [each.size_bytes for each in asked]))
        self._news.set()

    def take_failure(self, ticket: int, error: FieldpostError) -> None:
        """The batcher has no result."""
        asked = self._asked.pop(ticket)
        try:
            content = _in_response(failed(asked.item_id, asked.version, error))
        except FieldpostError as broken:
            self._broken = broken
        else:
            self._ready.append(_Ready(content, asked.size_bytes))
        self._news.set()

    async def _wait_for_room(self) -> None:
        while self._count >= IN_FLIGHT_MAX or self._bytes >= IN_FLIGHT_BYTES_MAX:
            self._room.clear()
            await self._room.wait()

    def _answer_now(self, result: pb.PredictResult) -> None:
        self._count += 1
        self._ready.append(_Ready(_in_response(result), 0))
        self._news.set()


def _in_response(result: pb.PredictResult) -> bytes:
    return pb.PredictStreamResponse(results=[result]).SerializeToString()


def make_work_item(item: pb.PredictItem, card: ModelCard, now_nanos: int, payload_bytes_max: int) -> WorkItem:
    """What a worker is given of an item.

    Raises:
        InvalidRequestError: Something that is said of the payload makes no sense.
    """
    payload = item.payload
    payload_bytes, encoding = item.payload_bytes, item.payload_encoding
    if not encoding:
        encoding = observation_pb2.PAYLOAD_ENCODING_IDENTITY
    if not payload_bytes and encoding == observation_pb2.PAYLOAD_ENCODING_IDENTITY:
        payload_bytes = len(payload)
    if not 0 <= payload_bytes <= payload_bytes_max or len(payload) > payload_bytes_max:
        raise InvalidRequestError(f"expected a payload of at most {payload_bytes_max} bytes, but got {payload_bytes}")
    if not item.timeout_s >= 0:
        raise InvalidRequestError(f"expected a timeout_s from 0 upward, but got {item.timeout_s}")
    model = item.instrument_model
    if not model and len(card.instrument_models) == 1:
        (model,) = card.instrument_models
    if model not in card.instrument_models:
        raise InvalidRequestError(
            f"expected an instrument model that {card.key} answers for, but got {model[:63]!r}",
            hint=f"it answers for {', '.join(sorted(card.instrument_models))}",
        )
    measure_unix_nanos = now_nanos
    if item.HasField("measure_time"):
        if not is_storable(item.measure_time):
            raise InvalidRequestError(
                f"expected a measure_time between the years 1678 and 2261, but got {item.measure_time.seconds} s"
            )
        measure_unix_nanos = to_nanos(item.measure_time)
    return WorkItem(payload, encoding, payload_bytes, model, measure_unix_nanos)


def failed(item_id: int, version: int, error: FieldpostError) -> pb.PredictResult:
    """The answer to an item that could not be predicted."""
    if isinstance(error, ExpiredError):
        failure = pb.PREDICT_FAILURE_EXPIRED
    elif isinstance(error, TryAgainError):
        failure = pb.PREDICT_FAILURE_OVERLOADED
    elif isinstance(error, RejectedError):
        failure = pb.PREDICT_FAILURE_REJECTED
    else:
        raise error  # ours to fix: ends the call
    detail = f"{error} ({error.hint})" if error.hint else str(error)
    return pb.PredictResult(item_id=item_id, model_version=version, failure=failure, failure_detail=detail)
