"""What each part of the server counts, under the names of the metrics. Reads, and changes nothing."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Sequence
from pathlib import Path

from sqlalchemy import select

from fieldpost.v1 import station_pb2
from server.batching.batcher import Batcher
from server.ingest.core import Ingest
from server.mqtt.gateway import Gateway
from server.queries.predictions import count_provisional
from server.storage.store import Store
from server.storage.tables import stations
from server.telemetry.metrics import Read, Sample

ASK_TIMEOUT_S = 5.0


def read_ingest(ingest: Ingest) -> Read:
    """What comes in."""

    def read() -> dict[str, list[Sample]]:
        load = ingest.load()
        return {
            "observations_stored_total": [((), load.stored_count)],
            "observations_duplicate_total": [((), load.duplicate_count)],
            "observations_refused_total": [((), load.rejected_count)],
            "ingest_waiting_bundles": [((), load.waiting_bundle_count)],
            "ingest_waiting_bytes": [((), load.waiting_bytes)],
        }

    return read


def read_disk(folder: Path) -> Read:
    """How much room there is."""
    return lambda: {"disk_free_bytes": [((), float(shutil.disk_usage(folder).free))]}


def read_brokers(gateways: Sequence[Gateway]) -> Read:
    """Which brokers are there."""
    return lambda: {"broker_connected": [((str(each.url),), float(each.is_connected.is_set())) for each in gateways]}


def read_stations(store: Store) -> Read:
    """How many stations there are, and are online."""

    def read() -> dict[str, list[Sample]]:
        with store.read() as connection:
            rows = connection.execute(select(stations.c.status)).scalars().all()
        online = sum(station_pb2.StationStatus.FromString(status).is_online for status in rows if status)
        return {"stations_registered": [((), len(rows))], "stations_online": [((), online)]}

    return read


def read_predictions(store: Store) -> Read:
    """What is to be made again."""

    def read() -> dict[str, list[Sample]]:
        with store.read() as connection:
            counts = count_provisional(connection)
        return {"predictions_provisional": [((str(key),), count) for key, count in counts.items()]}

    return read


def read_batcher(batcher: Batcher, loop: asyncio.AbstractEventLoop) -> Read:
    """What waits, and what computes. The batcher lives in the event loop, and is asked there."""

    async def ask() -> dict[str, list[Sample]]:
        counts, queues, workers = batcher.counts, batcher.queues(), batcher.workers()
        by_worker = [((each.name, each.device), each) for each in workers]
        waiting: list[Sample] = []
        for each in queues:
            for priority in ("live", "backfill", "shadow"):
                waiting.append(((str(each.key), priority), getattr(each, f"{priority}_count")))
        predictions: list[Sample] = []
        for key, done in batcher.model_counts.items():
            predictions += [((str(key), "good"), done.predicted), ((str(key), "failed"), done.failed)]
        return {
            "predictions_total": predictions,
            "waiting_observations": waiting,
            "oldest_waiting_seconds": [((str(each.key),), each.oldest_s) for each in queues],
            "batch_limit_observations": [((str(each.key),), each.max_batch_count) for each in queues],
            "batches_total": [((), counts.batches)],
            "batched_observations_total": [((), counts.observations)],
            "expired_total": [((), counts.expired)],
            "worker_deaths_total": [((), counts.deaths)],
            "worker_up": [(labels, float(each.is_ready)) for labels, each in by_worker],
            "worker_batches_total": [(labels, each.batch_count) for labels, each in by_worker],
            "worker_restarts_total": [(labels, each.restart_count) for labels, each in by_worker],
            "worker_busy_seconds_total": [(labels, each.busy_s) for labels, each in by_worker],
            "worker_memory_bytes": [(labels, each.memory_bytes) for labels, each in by_worker],
        }

    return lambda: asyncio.run_coroutine_threadsafe(ask(), loop).result(ASK_TIMEOUT_S)
