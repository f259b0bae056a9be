"""The gRPC server: all services behind one door, with health and reflection."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import cast

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from fieldpost.v1 import (
    archive_service_pb2,
    archive_service_pb2_grpc,
    capacity_service_pb2,
    capacity_service_pb2_grpc,
    inference_service_pb2,
    inference_service_pb2_grpc,
    ingest_service_pb2,
    ingest_service_pb2_grpc,
    models_service_pb2,
    models_service_pb2_grpc,
    observations_service_pb2,
    observations_service_pb2_grpc,
    predictions_service_pb2,
    predictions_service_pb2_grpc,
    stations_service_pb2,
    stations_service_pb2_grpc,
)
from server.api.archive import ArchiveServicer
from server.api.calls import GuardedServer
from server.api.capacity import CapacityServicer
from server.api.credentials import Door, Listen, open_ports
from server.api.inference import InferenceServicer
from server.api.ingest import IngestServicer
from server.api.models import ModelsServicer
from server.api.observations import ObservationsServicer
from server.api.predictions import PredictionsServicer
from server.api.reading import Reading
from server.api.stations import StationsServicer
from server.archive.shelf import Shelf
from server.broadcast import Broadcast
from server.ingest.core import Ingest
from server.ingest.uploads import Uploads
from server.models.desk import ModelDesk
from server.mqtt.command_desk import CommandDesk
from server.operation.capacity import CapacityDesk
from server.prediction.inference import Inference
from server.queries.stations import is_registered
from server.storage.store import Store
from server.telemetry.observer import Observer

KEEPALIVE_TIME_MS, KEEPALIVE_TIMEOUT_MS = 30_000, 20_000


@dataclass(frozen=True, slots=True)
class Parts:
    """What the services are a door to.

    Attributes:
        store: Observations and predictions.
        ingest: Takes observations.
        uploads: Takes large ones.
        commands: Asks stations.
        capacity: Tells how things stand.
        models: Keeps model versions.
        inference: Predicts at once; None where there are no workers.
        stored: Tells that observations were stored.
        predicted: Tells that predictions were made.
        observer: Hears of each call; None for nobody.
        shelf: Where the archive's bags lie; None where there is no archive.
    """

    store: Store
    ingest: Ingest
    uploads: Uploads
    commands: CommandDesk
    capacity: CapacityDesk
    models: ModelDesk
    inference: Inference | None
    stored: Broadcast
    predicted: Broadcast
    observer: Observer | None = None
    shelf: Shelf | None = None


class GrpcServer:
    """The running gRPC server.

    Args:
        parts: What it serves.
        listen: Where, and how it is secured.
        message_bytes_max: Larger messages are refused.
        model_bytes_max: Larger models are refused.

    Raises:
        InvalidRequestError: The access file is missing or wrong.
    """

    def __init__(self, parts: Parts, listen: Listen, *, message_bytes_max: int, model_bytes_max: int) -> None:
        self._listen = listen
        self._reading = Reading(parts.store)
        self._looking_up = Reading(parts.store, threads=1)  # its own: a station must not wait for readers' queries
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", message_bytes_max),
                ("grpc.max_send_message_length", message_bytes_max),
                ("grpc.so_reuseport", 0),  # a second server on the same port must fail, not share it
                # Clients probe a silent watch every 30 s; gRPC's default takes that for an attack.
                ("grpc.http2.min_ping_interval_without_data_ms", 20_000),
                # Who lost power says no goodbye. Within a minute what it holds is let go, its uploads above all.
                ("grpc.keepalive_time_ms", KEEPALIVE_TIME_MS),
                ("grpc.http2.ping_timeout_ms", KEEPALIVE_TIMEOUT_MS),
            ]
        )
        note_call = parts.observer.note_call if parts.observer is not None else None
        door = Door(listen.access_file, self._is_station, is_secured=listen.grpc_cert_file is not None)
        # Cast: it is as much of a server as generated code knows.
        guarded = cast(grpc.aio.Server, GuardedServer(self._server, door, note_call))
        self._services = _add_services(guarded, parts, self._reading, door, model_bytes_max)
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, guarded)
        names = [*self._services, health.SERVICE_NAME, reflection.SERVICE_NAME]
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(reflection.aio.ReflectionServicer(names), guarded)

    async def start(self) -> int:
        """Listens; returns the port of grpc_address.

        Raises:
            InvalidRequestError: A certificate or key cannot be read.
            TryAgainError: An address is taken.
        """
        port = open_ports(self._server, self._listen)
        await self._server.start()
        for service in ("", *self._services):
            await self._health.set(service, health_pb2.HealthCheckResponse.SERVING)
        return port

    async def stop(self, grace_s: float) -> None:
        """Says so to health checks, takes no new calls, and ends the running ones after grace_s."""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(grace_s)
        self._reading.close()
        self._looking_up.close()

    async def _is_station(self, name: str) -> bool:
        return await self._looking_up.query(partial(is_registered, station=name))


def _add_services(
    server: grpc.aio.Server, parts: Parts, reading: Reading, door: Door, model_bytes_max: int
) -> list[str]:
    """Adds every service that this server has; returns their names."""
    ingest_service_pb2_grpc.add_IngestServicer_to_server(IngestServicer(parts.ingest, parts.uploads, door), server)
    observations_service_pb2_grpc.add_ObservationsServicer_to_server(
        ObservationsServicer(reading, parts.stored), server
    )
    predictions_service_pb2_grpc.add_PredictionsServicer_to_server(
        PredictionsServicer(reading, parts.predicted), server
    )
    stations_service_pb2_grpc.add_StationsServicer_to_server(
        StationsServicer(reading, parts.ingest, parts.commands), server
    )
    models_service_pb2_grpc.add_ModelsServicer_to_server(
        ModelsServicer(parts.models, door, model_bytes_max=model_bytes_max), server
    )
    capacity_service_pb2_grpc.add_CapacityServicer_to_server(CapacityServicer(parts.capacity), server)
    modules = [
        ingest_service_pb2,
        observations_service_pb2,
        predictions_service_pb2,
        stations_service_pb2,
        models_service_pb2,
        capacity_service_pb2,
    ]
    if parts.inference is not None:
        inference_service_pb2_grpc.add_InferenceServicer_to_server(InferenceServicer(parts.inference), server)
        modules.append(inference_service_pb2)
    if parts.shelf is not None:
        archive_service_pb2_grpc.add_ArchiveServicer_to_server(ArchiveServicer(reading, parts.shelf), server)
        modules.append(archive_service_pb2)
    return [name for each in modules for name in _service_names(each)]


def _service_names(module: ModuleType) -> list[str]:
    return [each.full_name for each in module.DESCRIPTOR.services_by_name.values()]
