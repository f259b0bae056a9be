"""What each part of the server counts, under the names of the metrics. Reads, and changes nothing."""

from __future__ import annotations

import asyncio
import math
import shutil
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from sqlalchemy import select

from fieldpost.v1 import station_pb2
from server.batching.batcher import Batcher
from server.ingest.core import Ingest
from server.mqtt.gateway import Gateway
from server.queries.gaps import EpochLook, list_epochs, look_at
from server.queries.network import list_unarchived_days, read_archive_stand
from server.queries.predictions import count_provisional
from server.storage.store import Store
from server.storage.tables import instruments, stations
from server.telemetry.metrics import Read, Sample

ASK_TIMEOUT_S = 5.0
SEQUENCES_PER_VISIT = 200_000
"""Counted in some tens of milliseconds, so that a visit of Prometheus is answered at once however much is held."""
ARCHIVE_LOOK_S = 300.0
LATE_DAYS = (timedelta(days=10), timedelta(days=4))
"""A day that ended so long ago should have a bag; the first and the last that are looked at."""


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
    """How many stations there are, and how each is."""

    def read() -> dict[str, list[Sample]]:
        now = time.time_ns()
        with store.read() as connection:
            rows = connection.execute(select(stations.c.name, stations.c.status, stations.c.status_unix_nanos)).all()
            measured = connection.execute(
                select(stations.c.name, instruments.c.name, instruments.c.last_measure_unix_nanos)
                .join(stations, stations.c.id == instruments.c.station_id)
                .where(instruments.c.last_measure_unix_nanos.is_not(None))
            ).all()
        said = [(name, station_pb2.StationStatus.FromString(status), at) for name, status, at in rows if status]
        return {
            "stations_registered": [((), len(rows))],
            "stations_online": [((), sum(status.is_online for _, status, _ in said))],
            "station_last_seen_seconds": [((name,), (now - at) / 1e9) for name, _, at in said],
            "station_backlog_observations": [((name,), status.backlog_count) for name, status, _ in said],
            "instrument_last_measured_seconds": [((*names,), (now - at) / 1e9) for *names, at in measured],
        }

    return read


def read_gaps(store: Store) -> Read:
    """What stations numbered and this server lacks. Each visit looks at what is new, and a bounded part of the old."""
    looks: dict[tuple[str, str], EpochLook] = {}

    def read() -> dict[str, list[Sample]]:
        counts: dict[str, int] = {}
        left = SEQUENCES_PER_VISIT
        with store.read() as connection:  # one view: what a station had delivered when it spoke is in it
            for facts in list_epochs(connection):
                before = looks.get((facts.station, facts.epoch))
                look = looks[facts.station, facts.epoch] = look_at(connection, facts, before, left)
                left -= max(0, look.through - (before.through if before else 0))
                gap = max(0, len(look.missing) - facts.backlog_count - facts.refused_count)
                counts[facts.station] = counts.get(facts.station, 0) + gap
        return {"station_gap_observations": [((name,), count) for name, count in counts.items()]}

    return read


def read_archive(store: Store) -> Read:
    """How the archive stands, as it is recorded. Looked up anew every few minutes: it changes once a day."""
    found: dict[str, list[Sample]] = {}
    newest_unix_nanos: int | None = None
    look_at_s = -math.inf

    def read() -> dict[str, list[Sample]]:
        nonlocal found, newest_unix_nanos, look_at_s
        if time.monotonic() >= look_at_s:
            today = datetime.now(UTC).date()
            with store.read() as connection:
                stand = read_archive_stand(connection)
                days = list_unarchived_days(connection, today - LATE_DAYS[0], today - LATE_DAYS[1])
            newest_unix_nanos = stand.newest_unix_nanos
            found = {
                "archive_days_without_bag": [((), len(days))],
                "archive_damaged_bags": [((), stand.damaged_count)],
            }
            look_at_s = time.monotonic() + ARCHIVE_LOOK_S
        if newest_unix_nanos is None:
            return found
        return {**found, "archive_newest_bag_seconds": [((), (time.time_ns() - newest_unix_nanos) / 1e9)]}

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
