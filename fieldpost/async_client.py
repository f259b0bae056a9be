"""The client for asyncio programs: the same calls as Client, with the same arguments, answers and errors.

It translates and calls; what to ask, how to bundle and when to try again is decided in the private modules beside it,
which it shares with Client.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Coroutine, Generator, Iterable
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self, TypeAlias, TypeVar, Unpack

import grpc
from grpc import aio

from fieldpost._channel import DEFAULT_TIMEOUT_S, OPTIONS, Tls
from fieldpost._commands import COMMAND_TIMEOUT_S, check_result
from fieldpost._requests import PredictionQuery, WatchQuery, list_request, next_page, watch_request
from fieldpost._sending import BUNDLES_IN_FLIGHT, Bundler, SendReport, Tally, send_request
from fieldpost._status import ended_early, error_for, error_from, no_answer, watch_ended
from fieldpost._table import PredictionTable, to_table
from fieldpost._watching import WatchState
from fieldpost.errors import BrokenStateError, FieldpostError, OfflineError
from fieldpost.v1 import command_pb2, ingest_service_pb2, predictions_service_pb2, receipt_pb2, stations_service_pb2
from fieldpost.v1 import observation_pb2 as pb
from fieldpost.v1.ingest_service_pb2_grpc import IngestStub
from fieldpost.v1.prediction_pb2 import Prediction
from fieldpost.v1.predictions_service_pb2_grpc import PredictionsStub
from fieldpost.v1.stations_service_pb2_grpc import StationsStub

logger = logging.getLogger(__name__)


_Response = TypeVar("_Response")
_SendCall: TypeAlias = "aio.StreamStreamCall[ingest_service_pb2.SendRequest, ingest_service_pb2.SendResponse]"


_WatchCall: TypeAlias = (
    "aio.UnaryStreamCall[predictions_service_pb2.WatchPredictionsRequest, "
    "predictions_service_pb2.WatchPredictionsResponse]"
)


class AsyncClient:
    """A connection to a Fieldpost server; make it in a running event loop, and use it in an `async with` statement.

    Args:
        address: The server, as "host:port".
        tls: How to prove who is who; without it the connection is in the clear.
        timeout_s: How long one answer may take. A watch may be silent for ever.
    """

    def __init__(self, address: str, *, tls: Tls | None = None, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        self.address = address
        self._timeout_s = timeout_s
        self._is_closed = False
        self._channel = (
            aio.secure_channel(address, tls.credentials(), OPTIONS) if tls else aio.insecure_channel(address, OPTIONS)
        )
        self._ingest = IngestStub(self._channel)
        self._predictions = PredictionsStub(self._channel)
        self._stations = StationsStub(self._channel)

    async def close(self) -> None:
        """Ends what is under way, watches included, and the connection."""
        self._is_closed = True
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def send(self, observations: AsyncIterable[pb.Observation] | Iterable[pb.Observation]) -> SendReport:
        """Sends observations, and returns when each has its answer; see Client.send."""
        tally = Tally()
        async for receipt in self._send(observations, tally):
            tally.add_receipt(receipt)
        return tally.report()

    def send_each(
        self, observations: AsyncIterable[pb.Observation] | Iterable[pb.Observation]
    ) -> AsyncIterator[receipt_pb2.Receipt]:
        """Sends observations while it is iterated; yields the receipts; see Client.send_each."""
        return self._send(observations, Tally())

    async def _send(
        self, observations: AsyncIterable[pb.Observation] | Iterable[pb.Observation], tally: Tally
    ) -> AsyncIterator[receipt_pb2.Receipt]:
        call = self._ingest.Send()
        status = _FirstStatus(call)
        in_flight = 0
        try:
            async for bundle in _bundles(observations):
                tally.add_sent(bundle)
                await self._write(call, bundle, status)
                in_flight += 1
                if in_flight == BUNDLES_IN_FLIGHT:
                    yield await self._next_receipt(call)
                    in_flight -= 1
            await self._in_time(call.done_writing())
            for _ in range(in_flight):
                yield await self._next_receipt(call)
            await self._in_time(call.read())  # the status: OK, or why the server is not content after all
        finally:
            call.cancel()

    async def _write(self, call: _SendCall, bundle: pb.Bundle, status: _FirstStatus) -> None:
        try:
            await self._in_time(call.write(send_request(bundle)))
        except (asyncio.InvalidStateError, BrokenStateError) as error:  # the call is over
            if status.code in (None, grpc.StatusCode.OK):
                raise ended_early(self.address) from error
            raise error_for(status.code, status.details, self.address) from error

    async def _next_receipt(self, call: _SendCall) -> receipt_pb2.Receipt:
        response = await self._in_time(call.read())
        if not isinstance(response, ingest_service_pb2.SendResponse):  # aio.EOF
            raise ended_early(self.address)
        return response.receipt

    async def predictions(self, **query: Unpack[PredictionQuery]) -> PredictionTable:
        """Reads predictions into columns; asks for as many pages as there are; see Client.predictions."""
        return to_table([prediction async for prediction in self.iter_predictions(**query)])

    def iter_predictions(self, **query: Unpack[PredictionQuery]) -> AsyncIterator[Prediction]:
        """Reads predictions one by one, by measure time; never holds more than a page of them."""
        return self._pages(list_request(**query))

    async def _pages(self, request: predictions_service_pb2.ListPredictionsRequest) -> AsyncIterator[Prediction]:
        while True:
            page = await self._call(self._predictions.List, request)
            for prediction in page.predictions:
                yield prediction
            if not page.next_page_token:
                return
            request = next_page(request, page.next_page_token)

    def watch(
        self, *, after_prediction_id: int | None = None, resume: bool = True, **query: Unpack[WatchQuery]
    ) -> AsyncIterator[Prediction]:
        """Watches predictions as they are made, and goes on by itself after a broken connection; see Client.watch.

        It begins when it is first iterated, and ends where the client is closed.
        """
        return self._watch(WatchState(watch_request(**query), after_prediction_id, resume=resume))

    async def _watch(self, state: WatchState) -> AsyncIterator[Prediction]:
        while not self._is_closed:
            call = self._predictions.Watch(state.request())
            try:
                await self._begin(call, state)
                async for response in call:
                    for prediction in state.take(response):
                        yield prediction
                failure: FieldpostError = watch_ended(self.address)
                cause: BaseException | None = None
            except grpc.RpcError as error:
                failure, cause = error_from(error, self.address), error
            except OfflineError as error:  # it did not begin in time
                failure, cause = error, error.__cause__
            except asyncio.CancelledError:
                if self._is_closed:  # the call was cancelled, by close(); not the task that waits for it
                    return
                raise
            finally:
                call.cancel()
            await self._pause(state, failure, cause)

    async def _begin(self, call: _WatchCall, state: WatchState) -> None:
        await self._in_time(call.initial_metadata())  # comes when the server has begun; also where the call has failed
        if not call.done():
            state.begin()

    async def _pause(self, state: WatchState, failure: FieldpostError, cause: BaseException | None) -> None:
        delay_s = state.delay_after_s(failure, random.random())
        if delay_s is None:
            raise failure from cause
        logger.warning("watch interrupted", extra={"server": self.address, "delay_s": delay_s, "error": str(failure)})
        await asyncio.sleep(delay_s)

    async def stations(self) -> list[stations_service_pb2.Station]:
        """The stations and their instruments, as the server knows them, by name."""
        return list((await self._call(self._stations.List, stations_service_pb2.ListStationsRequest())).stations)

    async def command(
        self, station: str, command: command_pb2.Command, *, timeout_s: float = COMMAND_TIMEOUT_S
    ) -> None:
        """Asks a station for something, and waits for its answer.

        Args:
            station: Its name.
            command: For example `Command(report=ReportCommand())`. The server fills in a command_id, and the epoch of a
                replay, where they are empty.
            timeout_s: How long the station may take. It is asked again and again, and does it once.

        Raises:
            RejectedError: The station refuses it, and says why.
            TryAgainError: The station does not answer, or the server cannot be reached.
        """
        request = stations_service_pb2.CommandStationRequest(station=station, command=command)
        check_result(station, (await self._call(self._stations.Command, request, timeout_s)).result)

    async def _call(
        self, method: Callable[..., Awaitable[_Response]], request: object, timeout_s: float | None = None
    ) -> _Response:
        with self._translated():
            return await method(request, timeout=timeout_s or self._timeout_s)

    async def _in_time(self, step: Awaitable[_Response]) -> _Response:
        """Awaits one step of a stream: gRPC has deadlines for whole streams only."""
        try:
            with self._translated():
                async with asyncio.timeout(self._timeout_s):
                    return await step
        except TimeoutError as error:
            raise no_answer(self.address, self._timeout_s) from error

    @contextmanager
    def _translated(self) -> Generator[None]:
        try:
            yield
        except grpc.RpcError as error:
            raise error_from(error, self.address) from error


class _FirstStatus:
    """The status that a call ended with, as it was first.

    Where a write fails because the call has just ended, grpc.aio puts INTERNAL in the place of the status that came
    from the server (https://github.com/grpc/grpc/issues/36066), and whether to try again could not be told any more.
    Where the connection broke, it may put INTERNAL there before any status has come, and none comes after it.

    Attributes:
        code: None where there was none, or none that can be trusted.
        details: What was said beside it.
    """

    def __init__(self, call: _SendCall) -> None:
        self.code: grpc.StatusCode | None = None
        self.details = ""
        call.add_done_callback(self._keep)

    def _keep(self, call: Any) -> None:
        code = _result_now(call.code())
        if self.code is None and code is not grpc.StatusCode.INTERNAL:
            self.code, self.details = code, _result_now(call.details()) or ""


def _result_now(coroutine: Coroutine[Any, None, _Response]) -> _Response | None:
    """The result of a coroutine that has nothing to wait for; None where it has."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        result: _Response = stop.value
        return result
    coroutine.close()
    return None


async def _bundles(
    observations: AsyncIterable[pb.Observation] | Iterable[pb.Observation],
) -> AsyncIterator[pb.Bundle]:
    bundler = Bundler()
    async for observation in _as_async(observations):
        for bundle in bundler.add(observation):
            yield bundle
    for bundle in bundler.rest():
        yield bundle


async def _as_async(
    observations: AsyncIterable[pb.Observation] | Iterable[pb.Observation],
) -> AsyncIterator[pb.Observation]:
    if isinstance(observations, AsyncIterable):
        async for observation in observations:
            yield observation
    else:
        for observation in observations:
            yield observation
