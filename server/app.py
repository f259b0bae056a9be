"""Builds the parts of the server and hands them to each other: settings, store, core, gateways, workers, gRPC."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from contextlib import AsyncExitStack
from functools import partial

from fieldpost.broker_url import BrokerUrl, parse_broker_url
from server.analyses import find_analyses
from server.batcher import Batcher
from server.broadcast import Broadcast
from server.broker import EmbeddedBroker
from server.command_desk import CommandDesk
from server.dispatcher import Dispatcher
from server.gateway import Gateway, TlsFiles
from server.grpc_api import GrpcServer
from server.ingest import Ingest
from server.pending import activate_models
from server.refused import RefusedMessages
from server.registry import read_stations_file, register
from server.settings import Settings
from server.store import Store
from server.workers import LocalWorker

logger = logging.getLogger(__name__)

STOP_GRACE_S = 5.0


async def serve(settings: Settings) -> None:
    """Serves until SIGTERM or SIGINT, then stops without losing what it has taken."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    urls = [parse_broker_url(url, ("mqtt", "mqtts", "embedded")) for url in settings.mqtt_urls]
    async with AsyncExitStack() as parts:  # ends them in the opposite order
        store = Store(settings.database, settings.segments)
        parts.callback(store.close)
        if settings.stations_file is not None:
            registered = read_stations_file(settings.stations_file)
            await asyncio.wrap_future(store.write(lambda connection: register(connection, registered)))
        stored, predicted = Broadcast(), Broadcast()
        ingest = Ingest(store, payload_bytes_max=settings.payload_bytes_max, on_stored=stored.tell_from_thread)
        parts.callback(ingest.close)
        desk = CommandDesk()
        grpc_server = GrpcServer(store, ingest, predicted, desk, message_bytes_max=settings.message_bytes_max)
        port = await grpc_server.start(settings.grpc_address)
        parts.push_async_callback(grpc_server.stop, STOP_GRACE_S)
        _start_gateways(parts, settings, urls, ingest, store, desk)
        async with asyncio.TaskGroup() as tasks:
            running = await _start_predicting(parts, tasks, settings, store, stored, predicted)
            logger.info("server ready", extra={"grpc_port": port, "brokers": [str(url) for url in urls]})
            await stop.wait()
            logger.info("server stopping")
            for task in running:
                task.cancel()
    logger.info("server stopped")


def _start_gateways(
    parts: AsyncExitStack,
    settings: Settings,
    urls: list[BrokerUrl],
    ingest: Ingest,
    store: Store,
    desk: CommandDesk,
) -> None:
    refused = RefusedMessages(settings.data_folder / "refused")
    client_id = settings.mqtt_client_id or f"fieldpost-server-{socket.gethostname()}-{os.getpid()}"
    files = (settings.mqtt_ca_file, settings.mqtt_cert_file, settings.mqtt_key_file)
    tls = TlsFiles(*(str(path) if path else None for path in files))
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
            tls=tls,
            on_result=desk.note_result,
        )
        desk.add_way(gateway.publish)
        parts.callback(gateway.close)


async def _start_predicting(
    parts: AsyncExitStack,
    tasks: asyncio.TaskGroup,
    settings: Settings,
    store: Store,
    stored: Broadcast,
    predicted: Broadcast,
) -> list[asyncio.Task[None]]:
    """Starts the workers and one dispatcher for each active model version; nothing where there are no workers."""
    if settings.workers == 0:
        return []
    cards = find_analyses()
    models = await asyncio.wrap_future(store.write(lambda connection: activate_models(connection, cards)))
    batcher = Batcher(cards, [partial(LocalWorker, settings.worker_threads)] * settings.workers)
    parts.callback(batcher.close)
    dispatchers = [Dispatcher(store, batcher, model, stored=stored, predicted=predicted) for model in models]
    return [tasks.create_task(each.run(), name="dispatcher") for each in dispatchers]
