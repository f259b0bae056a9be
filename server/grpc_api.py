"""The gRPC services: translate, call, translate back."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Literal

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from fieldpost.errors import InvalidRequestError, OverloadedError
from fieldpost.v1 import (
    command_pb2,
    ingest_service_pb2,
    ingest_service_pb2_grpc,
    prediction_pb2,
    predictions_service_pb2,
    predictions_service_pb2_grpc,
    receipt_pb2,
    stations_service_pb2,
    stations_service_pb2_grpc,
)
from server.broadcast import Broadcast
from server.command_desk import CommandDesk
from server.ingest import Ingest
from server.instants import is_storable, to_nanos
from server.predictions import PredictionFilter, last_prediction_id, list_after, list_predictions
from server.stations import last_status, list_stations
from server.status import as_status
from server.store import Store

logger = logging.getLogger(__name__)

BUNDLES_MAX = 48
"""Bundles of one caller between arrival and receipt; beyond them it is not read from. Several commits' worth: with one
commit's, nobody reads or checks while it is written (measured: 25,000 observations a second instead of 30,000)."""
WATCH_PAGE = 1000
WATCH_LOOK_AGAIN_S = 10.0
COMMAND_TIMEOUT_S = 60.0

Context = grpc.aio.ServicerContext[object, object]


class IngestServicer(ingest_service_pb2_grpc.IngestServicer):
    """Takes observations over gRPC."""

    def __init__(self, ingest: Ingest) -> None:
        self._ingest = ingest

    async def Send(  # noqa: D102  (the protocol's names and comments)
        self, requests: AsyncIterator[ingest_service_pb2.SendRequest], context: Context
    ) -> AsyncIterator[ingest_service_pb2.SendResponse]:
        receipts: asyncio.Queue[asyncio.Future[receipt_pb2.Receipt] | None] = asyncio.Queue(BUNDLES_MAX)
        reader = asyncio.create_task(self._read(requests, receipts))
        try:
            async with as_status(context):
                while (receipt := await receipts.get()) is not None:
                    yield ingest_service_pb2.SendResponse(receipt=await receipt)
                await reader  # raises what ended it early
        finally:
            reader.cancel()

    async def _read(
        self,
        requests: AsyncIterator[ingest_service_pb2.SendRequest],
        receipts: asyncio.Queue[asyncio.Future[receipt_pb2.Receipt] | None],
    ) -> None:
        try:
            async for request in requests:
                try:
                    future = self._ingest.submit(request.bundle, timeout_s=0)
                except OverloadedError:  # wait, without stopping everyone else's calls
                    future = await asyncio.to_thread(self._ingest.submit, request.bundle)
                await receipts.put(asyncio.wrap_future(future))
        finally:
            await receipts.put(None)


class PredictionsServicer(predictions_service_pb2_grpc.PredictionsServicer):
    """Serves predictions."""

    def __init__(self, store: Store, predicted: Broadcast) -> None:
        self._store = store
        self._predicted = predicted

    async def List(  # noqa: D102
        self, request: predictions_service_pb2.ListPredictionsRequest, context: Context
    ) -> predictions_service_pb2.ListPredictionsResponse:
        async with as_status(context):
            wanted = PredictionFilter(
                request.station,
                request.instrument,
                request.analysis,
                request.model_version,
                _nanos(request, "start_time"),
                _nanos(request, "end_time"),
            )
            return await asyncio.to_thread(self._list, wanted, request.page_size, request.page_token)

    def _list(
        self, wanted: PredictionFilter, page_size: int, page_token: str
    ) -> predictions_service_pb2.ListPredictionsResponse:
        with self._store.read() as connection:
            page, token = list_predictions(connection, wanted, page_size, page_token)
        return predictions_service_pb2.ListPredictionsResponse(predictions=page, next_page_token=token)

    async def Watch(  # noqa: D102
        self, request: predictions_service_pb2.WatchPredictionsRequest, context: Context
    ) -> AsyncIterator[predictions_service_pb2.WatchPredictionsResponse]:
        async with as_status(context):
            wanted = PredictionFilter(request.station, request.instrument, request.analysis)
            if request.HasField("after_prediction_id"):
                after_id = request.after_prediction_id
            else:
                after_id = await asyncio.to_thread(self._last_id)
            await context.send_initial_metadata(())  # tells the caller that from here on it misses nothing
            yield predictions_service_pb2.WatchPredictionsResponse(seen_prediction_id=after_id)
            while True:
                told = self._predicted.listen()  # before looking: what comes while we look is told again
                page, after_id = await asyncio.to_thread(self._after, wanted, after_id)
                if page:
                    yield predictions_service_pb2.WatchPredictionsResponse(
                        predictions=page, seen_prediction_id=after_id
                    )
                if len(page) < WATCH_PAGE:
                    with suppress(TimeoutError):
                        await asyncio.wait_for(told, WATCH_LOOK_AGAIN_S)

    def _last_id(self) -> int:
        with self._store.read() as connection:
            return last_prediction_id(connection)

    def _after(self, wanted: PredictionFilter, after_id: int) -> tuple[list[prediction_pb2.Prediction], int]:
        """The next page, and up to where everything has been seen: also what the filter left out."""
        with self._store.read() as connection:
            last_id = last_prediction_id(connection)
            page = list_after(connection, wanted, after_id, WATCH_PAGE)
        if len(page) == WATCH_PAGE:
            return page, page[-1].prediction_id
        return page, max(last_id, after_id, *(each.prediction_id for each in page[-1:]))


class StationsServicer(stations_service_pb2_grpc.StationsServicer):
    """Serves stations."""

    def __init__(self, store: Store, ingest: Ingest, desk: CommandDesk) -> None:
        self._store = store
        self._ingest = ingest
        self._desk = desk

    async def List(  # noqa: D102
        self, request: stations_service_pb2.ListStationsRequest, context: Context
    ) -> stations_service_pb2.ListStationsResponse:
        async with as_status(context):
            return stations_service_pb2.ListStationsResponse(stations=await asyncio.to_thread(self._list))

    async def Command(  # noqa: D102
        self, request: stations_service_pb2.CommandStationRequest, context: Context
    ) -> stations_service_pb2.CommandStationResponse:
        async with as_status(context):
            command = await asyncio.to_thread(self._completed, request.station, request.command)
            result = await self._desk.ask(request.station, command, _time_left_s(context))
            return stations_service_pb2.CommandStationResponse(result=result)

    def _completed(self, station: str, command: command_pb2.Command) -> command_pb2.Command:
        with self._store.read() as connection:
            status = last_status(connection, station)
        if command.HasField("replay") and not command.replay.epoch:
            command.replay.epoch = status.epoch
        return command

    def _list(self) -> list[stations_service_pb2.Station]:
        with self._store.read() as connection:
            return list_stations(connection, self._ingest.counts)


class GrpcServer:
    """The running gRPC server, with health and reflection."""

    def __init__(
        self, store: Store, ingest: Ingest, predicted: Broadcast, desk: CommandDesk, *, message_bytes_max: int
    ) -> None:
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", message_bytes_max),
                ("grpc.max_send_message_length", message_bytes_max),
                ("grpc.so_reuseport", 0),  # a second server on the same port must fail, not share it
                # Clients probe a silent watch every 30 s; gRPC's default takes that for an attack.
                ("grpc.http2.min_ping_interval_without_data_ms", 20_000),
            ]
        )
        ingest_service_pb2_grpc.add_IngestServicer_to_server(IngestServicer(ingest), self._server)
        predictions_service_pb2_grpc.add_PredictionsServicer_to_server(
            PredictionsServicer(store, predicted), self._server
        )
        stations_service_pb2_grpc.add_StationsServicer_to_server(StationsServicer(store, ingest, desk), self._server)
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        modules = (ingest_service_pb2, predictions_service_pb2, stations_service_pb2)
        self._services = [name for each in modules for name in _service_names(each)]
        reflection.enable_server_reflection(
            [*self._services, health.SERVICE_NAME, reflection.SERVICE_NAME], self._server
        )

    async def start(self, address: str) -> int:
        """Listens; returns the port.

        Raises:
            TryAgainError: The address is taken.
        """
        try:
            port = self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise OverloadedError(
                f"gRPC cannot listen on {address}: {error}",
                hint="another program may use the port; choose another grpc_address",
            ) from error
        await self._server.start()
        for service in ("", *self._services):
            await self._health.set(service, health_pb2.HealthCheckResponse.SERVING)
        return port

    async def stop(self, grace_s: float) -> None:
        """Says so to health checks, takes no new calls, and ends the running ones after grace_s."""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(grace_s)


def _time_left_s(context: Context) -> float:
    """How long the caller still waits, less what an answer needs on its way."""
    left_s = context.time_remaining()
    return COMMAND_TIMEOUT_S if left_s is None else max(0.1, left_s - 0.5)


def _service_names(module: object) -> list[str]:
    return [each.full_name for each in module.DESCRIPTOR.services_by_name.values()]  # type: ignore[attr-defined]


def _nanos(
    request: predictions_service_pb2.ListPredictionsRequest, field: Literal["start_time", "end_time"]
) -> int | None:
    """The instant of a field; None where it is absent."""
    if not request.HasField(field):
        return None
    instant = request.start_time if field == "start_time" else request.end_time
    if not is_storable(instant):
        raise InvalidRequestError(f"expected a {field} between the years 1678 and 2261, but got {instant.seconds} s")
    return to_nanos(instant)
