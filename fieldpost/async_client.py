"""The client for asyncio programs: the same calls as Client, with the same arguments, answers and errors.

It translates and calls; what to ask, how to bundle and when to try again is decided in the private modules beside it,
which it shares with Client.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import grpc

from fieldpost._answers import Answer
from fieldpost._archive_calls import AsyncArchive
from fieldpost._async_connection import AsyncConnection
from fieldpost._async_predicting import AsyncPredictor
from fieldpost._async_sending import AsyncSender, upload
from fieldpost._channel import DEFAULT_TIMEOUT_S, Tls
from fieldpost._commands import COMMAND_TIMEOUT_S, check_result
from fieldpost._models import AsyncModels
from fieldpost._observation_requests import (
    ObservationQuery,
    WatchObservationsQuery,
    WhichObservation,
    content_pages,
    observation_filter,
    read_request,
)
from fieldpost._predict_desk import predict_item, target
from fieldpost._reading import Reading, held_content
from fieldpost._requests import (
    PredictionQuery,
    RetryQuery,
    WatchQuery,
    list_request,
    prediction_pages,
    retry_request,
    watch_request,
)
from fieldpost._sending import Progress, SendReport, Tally
from fieldpost._status import error_from, watch_ended
from fieldpost._table import PredictionTable, to_table
from fieldpost._times import Moment
from fieldpost._uploading import Sendable
from fieldpost._watching import OBSERVATIONS, PREDICTIONS, WatchState
from fieldpost.errors import FieldpostError, OfflineError, UnknownObservationError
from fieldpost.v1 import capacity_service_pb2, command_pb2, observations_service_pb2, receipt_pb2, stations_service_pb2
from fieldpost.v1.archive_service_pb2_grpc import ArchiveStub
from fieldpost.v1.capacity_service_pb2_grpc import CapacityStub
from fieldpost.v1.inference_service_pb2_grpc import InferenceStub
from fieldpost.v1.ingest_service_pb2_grpc import IngestStub
from fieldpost.v1.models_service_pb2_grpc import ModelsStub
from fieldpost.v1.observations_service_pb2 import HeldObservation
from fieldpost.v1.observations_service_pb2_grpc import ObservationsStub
from fieldpost.v1.prediction_pb2 import Prediction
from fieldpost.v1.predictions_service_pb2_grpc import PredictionsStub
from fieldpost.v1.stations_service_pb2_grpc import StationsStub

logger = logging.getLogger(__name__)

_Item = TypeVar("_Item")


class AsyncClient:
    """A connection to a Fieldpost server; make it in a running event loop, and use it in an `async with` statement.

    Args:
        address: The server, as "host:port".
        tls: How to prove who is who; without it the connection is in the clear.
        token: What the server's operator gave you, where it asks for one; only with tls.
        timeout_s: How long one answer may take. A watch may be silent for ever.

    Attributes:
        address: The server.
        models: The calls about models: submit, list, get, shadow, activate, roll_back, retire, restrict.
        archive: The calls about the archive: list, iter, get, files, fetch.
    """

    def __init__(
        self,
        address: str,
        *,
        tls: Tls | None = None,
        token: str | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> None:
        self.address = address
        self._is_closed = False
        self._connection = AsyncConnection(address, tls, token, timeout_s)
        channel = self._connection.channel
        self._ingest = IngestStub(channel)
        self._observations = ObservationsStub(channel)
        self._predictions = PredictionsStub(channel)
        self._stations = StationsStub(channel)
        self._capacity = CapacityStub(channel)
        self._predictor = AsyncPredictor(self._connection, InferenceStub(channel))
        self.models = AsyncModels(self._connection, ModelsStub(channel))
        self.archive = AsyncArchive(self._connection, ArchiveStub(channel))

    async def close(self) -> None:
        """Ends what is under way, watches included, and the connection."""
        self._is_closed = True
        await self._predictor.close()
        await self._connection.channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def send(
        self, observations: AsyncIterable[Sendable] | Iterable[Sendable], *, progress: Progress | None = None
    ) -> SendReport:
        """Sends observations, and returns when each has its answer; see Client.send."""
        tally = Tally(progress)
        async for receipt in AsyncSender(self._connection, self._ingest, tally).receipts(observations):
            tally.add_receipt(receipt)
        return tally.report()

    def send_each(
        self, observations: AsyncIterable[Sendable] | Iterable[Sendable]
    ) -> AsyncIterator[receipt_pb2.Receipt]:
        """Sends observations while it is iterated; yields the receipts; see Client.send_each."""
        return AsyncSender(self._connection, self._ingest, Tally()).receipts(observations)

    async def upload(self, observation: Sendable, *, progress: Progress | None = None) -> SendReport:
        """Sends one observation in pieces, of any size; see Client.upload."""
        tally = Tally(progress)
        tally.add_sent(observation)
        tally.add_receipt(await upload(self._connection, self._ingest, observation, tally.note_upload))
        return tally.report()

    async def observations(self, **query: Unpack[ObservationQuery]) -> list[HeldObservation]:
        """Lists what is known of observations that the server holds, by measure time; see Client.observations."""
        return [held async for held in self.iter_observations(**query)]

    def iter_observations(self, **query: Unpack[ObservationQuery]) -> AsyncIterator[HeldObservation]:
        """The same one by one; never holds more than a page of them."""
        return self._observation_pages(observation_filter(**query))

    async def _observation_pages(
        self, wanted: observations_service_pb2.ObservationFilter
    ) -> AsyncIterator[HeldObservation]:
        request = observations_service_pb2.ListObservationsRequest(filter=wanted)
        while True:
            page = await self._connection.call(self._observations.List, request)
            for held in page.observations:
                yield held
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    def iter_contents(self, **query: Unpack[ObservationQuery]) -> AsyncIterator[tuple[HeldObservation, bytes]]:
        """Reads observations with the instrument's bytes, by measure time; see Client.iter_contents."""
        return self._contents(observation_filter(**query))

    async def _contents(
        self, wanted: observations_service_pb2.ObservationFilter
    ) -> AsyncIterator[tuple[HeldObservation, bytes]]:
        pages = content_pages(wanted, self._connection.timeout_s)
        async for held in self._connection.resumed(self._observations.Stream, pages):
            content = held_content(held)
            yield held, await self.read(held) if content is None else content

    async def read(self, which: WhichObservation) -> bytes:
        """Reads the instrument's bytes of an observation: unpacked, their SHA-256 checked; see Client.read."""
        return b"".join([piece async for piece in self.iter_read(which)])

    def iter_read(self, which: WhichObservation) -> AsyncIterator[bytes]:
        """The same in pieces, for what does not fit into memory; the SHA-256 is checked before the last piece."""
        reading = Reading(read_request(which), self._connection.timeout_s)
        return self._connection.resumed(self._observations.Read, reading, UnknownObservationError)

    def watch_observations(
        self, *, after_observation_id: int | None = None, resume: bool = True, **query: Unpack[WatchObservationsQuery]
    ) -> AsyncIterator[HeldObservation]:
        """Watches observations as they are stored; see Client.watch_observations.

        It begins when it is first iterated, and ends where the client is closed.
        """
        request = observations_service_pb2.WatchObservationsRequest(filter=observation_filter(**query))
        state = WatchState(OBSERVATIONS, request, after_observation_id, resume=resume)
        return self._watch(self._observations.Watch, state)

    async def predictions(self, **query: Unpack[PredictionQuery]) -> PredictionTable:
        """Reads predictions into columns; see Client.predictions."""
        return to_table([prediction async for prediction in self.iter_predictions(**query)])

    def iter_predictions(self, **query: Unpack[PredictionQuery]) -> AsyncIterator[Prediction]:
        """Reads predictions one by one, by measure time; see Client.iter_predictions."""
        pages = prediction_pages(list_request(**query), self._connection.timeout_s)
        return self._connection.resumed(self._predictions.Stream, pages)

    def watch(
        self, *, after_prediction_id: int | None = None, resume: bool = True, **query: Unpack[WatchQuery]
    ) -> AsyncIterator[Prediction]:
        """Watches predictions as they are made, and goes on by itself after a broken connection; see Client.watch.

        It begins when it is first iterated, and ends where the client is closed.
        """
        state = WatchState(PREDICTIONS, watch_request(**query), after_prediction_id, resume=resume)
        return self._watch(self._predictions.Watch, state)

    async def _watch(self, open_call: Callable[..., Any], state: WatchState[Any, Any, _Item]) -> AsyncIterator[_Item]:
        while not self._is_closed:
            call = open_call(state.request())
            try:
                # Comes when the server has begun; also where the call has failed.
                await self._connection.in_time(call.initial_metadata())
                if not call.done():
                    state.patience.begin()
                async for response in call:
                    for item in state.take(response):
                        yield item
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

    async def _pause(
        self, state: WatchState[Any, Any, _Item], failure: FieldpostError, cause: BaseException | None
    ) -> None:
        delay_s = state.patience.delay_after_s(failure, random.random(), time.monotonic())
        if delay_s is None:
            raise failure from cause
        logger.warning("watch interrupted", extra={"server": self.address, "delay_s": delay_s, "error": str(failure)})
        await asyncio.sleep(delay_s)

    async def retry_predictions(self, analysis: str, **query: Unpack[RetryQuery]) -> int:
        """Forgets failures, so that their observations are predicted again; see Client.retry_predictions."""
        return (await self._connection.call(self._predictions.Retry, retry_request(analysis, **query))).retry_count

    async def predict(
        self,
        analysis: str,
        payload: bytes,
        *,
        version: int | None = None,
        instrument_model: str | None = None,
        measure_time: Moment | None = None,
        timeout_s: float | None = None,
    ) -> Answer:
        """Predicts a payload at once; nothing of it is stored; see Client.predict.

        Cancelling the coroutine takes its payload back, and disturbs no other.
        """
        item = predict_item(payload, instrument_model, measure_time)
        return await self._predictor.predict(target(analysis, version), item, timeout_s or self._connection.timeout_s)

    def predict_each(
        self,
        analysis: str,
        payloads: AsyncIterable[bytes] | Iterable[bytes],
        *,
        version: int | None = None,
        instrument_model: str | None = None,
        measure_time: Moment | None = None,
        timeout_s: float | None = None,
    ) -> AsyncIterator[Answer]:
        """Predicts payloads while it is iterated; yields the answers in their order; see Client.predict_each."""
        asks = target(analysis, version)
        return self._predictor.predict_each(
            asks, payloads, instrument_model, measure_time, timeout_s or self._connection.timeout_s
        )

    async def capacity(self) -> capacity_service_pb2.GetCapacityResponse:
        """What the server has to compute with, and how busy it is: workers, queues, ingest, machine."""
        return await self._connection.call(self._capacity.Get, capacity_service_pb2.GetCapacityRequest())

    async def stations(self) -> list[stations_service_pb2.Station]:
        """The stations and their instruments, as the server knows them, by name."""
        request = stations_service_pb2.ListStationsRequest()
        return list((await self._connection.call(self._stations.List, request)).stations)

    async def ask(
        self, station: str, command: command_pb2.Command, *, timeout_s: float = COMMAND_TIMEOUT_S
    ) -> command_pb2.CommandResult:
        """Asks a station for something; returns its answer, a refusal too; see Client.ask."""
        request = stations_service_pb2.CommandStationRequest(station=station, command=command)
        response = await self._connection.call(self._stations.Command, request, timeout_s=timeout_s)
        return response.result

    async def command(
        self, station: str, command: command_pb2.Command, *, timeout_s: float = COMMAND_TIMEOUT_S
    ) -> None:
        """Asks a station for something, and waits until it has accepted; see Client.command."""
        check_result(station, await self.ask(station, command, timeout_s=timeout_s))
