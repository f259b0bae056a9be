"""Builds the parts of the server and hands them to each other: settings, store, core, gateways, workers, gRPC."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

from fieldpost.broker_url import BrokerUrl, parse_broker_url
from server.analyses import find_analyses
from server.api.credentials import Listen
from server.api.server import GrpcServer, Parts
from server.archive.retention import Retention
from server.archive.shelf import open_shelf
from server.batching.batcher import Batcher, Request
from server.batching.policy import BatchPolicy
from server.batching.trace import TracedPolicy
from server.broadcast import Broadcast
from server.ingest.core import Ingest
from server.ingest.registry import read_stations_file, register
from server.ingest.uploads import Uploads
from server.models import catalogue
from server.models.desk import ModelDesk
from server.models.files import ModelFiles
from server.models.rollback import Rollback
from server.models.trial import TrialLimits
from server.mqtt.broker import EmbeddedBroker
from server.mqtt.command_desk import CommandDesk
from server.mqtt.gateway import Gateway, TlsFiles
from server.mqtt.refused import RefusedMessages
from server.mqtt.shards import ShardPart, parse_shard_part
from server.operation.capacity import CapacityDesk
from server.operation.readings import (
    read_archive,
    read_batcher,
    read_brokers,
    read_disk,
    read_gaps,
    read_ingest,
    read_predictions,
    read_stations,
)
from server.prediction.inference import Inference
from server.prediction.predicting import Predicting
from server.settings import Settings
from server.storage import notices
from server.storage.store import Store
from server.telemetry.metrics import Metrics
from server.telemetry.observer import Observer
from server.telemetry.tracing import open_tracer
from server.workers.protocol import WorkerEvents
from server.workers.worker_pool import PoolPlan, WorkerPool, open_pool

logger = logging.getLogger(__name__)

STOP_GRACE_S = 5.0
StartPool = Callable[[WorkerEvents], WorkerPool]


@dataclass(frozen=True, slots=True)
class _Told:
    """Who is told of what."""

    stored: Broadcast
    predicted: Broadcast
    models_changed: Broadcast


async def serve(settings: Settings) -> None:
    """Serves until SIGTERM or SIGINT, then stops without losing what it has taken."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    urls = [parse_broker_url(url, ("mqtt", "mqtts", "embedded")) for url in settings.mqtt_urls]
    shards = parse_shard_part(settings.mqtt_shards)
    listen = _listen(settings)  # what would be unsafe is refused before anything is started
    start_pool = _open_pool(settings)
    async with AsyncExitStack() as parts:  # ends them in the opposite order
        metrics, observer = _start_observing(parts, settings)
        store = Store(settings.database, settings.segments)
        parts.callback(store.close)
        await _register(settings, store)
        told = _Told(Broadcast(), Broadcast(), Broadcast())
        ingest = Ingest(
            store,
            payload_bytes_max=settings.payload_bytes_max,
            on_stored=told.stored.tell_from_thread,
            observer=observer,
        )
        parts.callback(ingest.close)
        uploads = Uploads(settings.data_folder / "uploads", store, ingest, payload_bytes_max=settings.upload_bytes_max)
        await asyncio.to_thread(uploads.forget_old)
        files = ModelFiles(settings.models)
        models = ModelDesk(
            store,
            files,
            changed=told.models_changed,
            limits=_trial_limits(settings),
            sample_bytes_max=settings.payload_bytes_max,
        )
        batcher = _start_batcher(parts, settings, start_pool)
        async with asyncio.TaskGroup() as tasks:
            running = [
                tasks.create_task(_listen_to_others(settings, told), name="notices"),
                tasks.create_task(_forget_uploads(uploads), name="uploads"),
            ]
            shelf = open_shelf(settings.archive, settings.archive_staging)
            if settings.hot_days:
                retention = Retention(store, shelf, hot_days=settings.hot_days)
                running.append(tasks.create_task(retention.run(), name="retention"))
            inference = None
            if batcher is not None:
                predicting = Predicting(
                    store,
                    batcher,
                    files,
                    stored=told.stored,
                    predicted=told.predicted,
                    models_changed=told.models_changed,
                    observer=observer,
                )
                inference = Inference(predicting.find, batcher, payload_bytes_max=settings.payload_bytes_max)
                running.append(tasks.create_task(predicting.run(), name="predicting"))
                running.append(tasks.create_task(Rollback(store, models, batcher).run(), name="rollback"))
            commands, capacity = CommandDesk(), CapacityDesk(ingest, batcher, settings.data_folder)
            services = Parts(
                store,
                ingest,
                uploads,
                commands,
                capacity,
                models,
                inference,
                told.stored,
                told.predicted,
                observer,
                shelf,
            )
            grpc_server = GrpcServer(
                services, listen, message_bytes_max=settings.message_bytes_max, model_bytes_max=settings.model_bytes_max
            )
            port = await grpc_server.start()
            try:
                gateways = _start_gateways(parts, settings, urls, shards, ingest, store, commands)
                stored = (read_stations(store), read_gaps(store), read_archive(store), read_predictions(store))
                for read in (read_ingest(ingest), read_disk(settings.data_folder), *stored):
                    metrics.add(read)
                metrics.add(read_brokers(gateways))
                if batcher is not None:
                    metrics.add(read_batcher(batcher, loop))
                if settings.metrics_address:
                    parts.callback(metrics.serve(settings.metrics_address))
                logger.info("server ready", extra={"grpc_port": port, "brokers": [str(url) for url in urls]})
                await stop.wait()
                logger.info("server stopping")
            finally:  # also where a broker's port is taken
                await grpc_server.stop(STOP_GRACE_S)
            for task in running:
                task.cancel()
    logger.info("server stopped")


def _listen(settings: Settings) -> Listen:
    return Listen(
        grpc_address=settings.grpc_address,
        grpc_cert_file=settings.grpc_cert_file,
        grpc_key_file=settings.grpc_key_file,
        grpc_client_ca_file=settings.grpc_client_ca_file,
        grpc_token_address=settings.grpc_token_address,
        access_file=settings.access_file,
    )


def _open_pool(settings: Settings) -> StartPool | None:
    """What starts the workers; None where there are to be none."""
    if settings.workers == 0 and settings.devices == ["cpu"]:
        return None
    plan = PoolPlan(
        workers=settings.workers,
        workers_max=settings.workers_max,
        devices=tuple(settings.devices),
        threads=settings.worker_threads,
        memory_bytes=settings.worker_memory_bytes,
        users_memory_bytes=settings.trial_memory_bytes_max,
        oldest_max_s=settings.worker_start_age_s,
    )
    return open_pool(settings.engine, plan)


def _trial_limits(settings: Settings) -> TrialLimits:
    return TrialLimits(
        model_bytes_max=settings.model_bytes_max,
        memory_bytes=settings.trial_memory_bytes_max,
        wall_s=settings.trial_max_s,
        threads=settings.worker_threads,
    )


def _start_observing(parts: AsyncExitStack, settings: Settings) -> tuple[Metrics, Observer]:
    metrics = Metrics()
    tracer = None
    if settings.otlp_endpoint:
        tracer = open_tracer(settings.otlp_endpoint, settings.trace_ratio)
        parts.callback(tracer.close)
    return metrics, Observer(metrics.durations, tracer)


async def _register(settings: Settings, store: Store) -> None:
    """Brings the registry, and the built-in model versions, to what this checkout and the stations file say."""
    cards = find_analyses()
    await asyncio.wrap_future(store.write(lambda connection: catalogue.register_built_in(connection, cards)))
    if settings.stations_file is not None:
        registered = read_stations_file(settings.stations_file)
        await asyncio.wrap_future(store.write(lambda connection: register(connection, registered)))


def _start_batcher(parts: AsyncExitStack, settings: Settings, start_pool: StartPool | None) -> Batcher | None:
    if start_pool is None:
        return None
    limits: dict[str, Any] = {
        "batch_seconds_max": settings.batch_seconds_max,
        "queue_count_max": settings.queue_count_max,
        "queue_bytes_max": settings.queue_bytes_max,
    }
    policy: BatchPolicy[Request] = BatchPolicy(**limits)
    if settings.batch_trace_file is not None:
        policy = traced = TracedPolicy[Request](settings.batch_trace_file, **limits)
        parts.callback(traced.close)
    batcher = Batcher(start_pool, policy, batch_bytes_max=settings.batch_bytes_max)
    parts.callback(batcher.close)
    return batcher


async def _listen_to_others(settings: Settings, told: _Told) -> None:
    await notices.listen(
        settings.database,
        {
            notices.OBSERVATIONS: told.stored,
            notices.PREDICTIONS: told.predicted,
            notices.MODELS: told.models_changed,
        },
    )


async def _forget_uploads(uploads: Uploads) -> None:
    """Once a day, what nobody came back to finish."""
    while True:
        await asyncio.sleep(86_400)
        await asyncio.to_thread(uploads.forget_old)


def _start_gateways(
    parts: AsyncExitStack,
    settings: Settings,
    urls: list[BrokerUrl],
    shards: ShardPart,
    ingest: Ingest,
    store: Store,
    desk: CommandDesk,
) -> list[Gateway]:
    refused = RefusedMessages(settings.data_folder / "refused")
    client_id = settings.mqtt_client_id or f"fieldpost-server-{socket.gethostname()}-{os.getpid()}"
    files = (settings.mqtt_ca_file, settings.mqtt_cert_file, settings.mqtt_key_file)
    tls = TlsFiles(*(str(path) if path else None for path in files))
    gateways = []
    for url in urls:
        if url.is_embedded:
            parts.callback(EmbeddedBroker(url.host, url.port).close)
        gateway = Gateway(
            url,
            client_id,
            ingest,
            store,
            refused,
            message_bytes_max=settings.message_bytes_max,
            shards=shards,
            tls=tls,
            on_result=desk.note_result,
        )
        desk.add_way(gateway.publish)
        parts.callback(gateway.close)
        gateways.append(gateway)
    return gateways
