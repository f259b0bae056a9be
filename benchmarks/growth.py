"""What the store's queries cost while it grows from ten thousand observations to ten million.

    python -m benchmarks.growth [--json] [--observations N] [--database sqlite|postgresql]

Each decade has ten times the observations and instruments of the one before (10,000 instruments at 10^7 observations),
and more model versions (1, 5, 20, 100): one active version predicted everything, and all of them the day that is looked
at. The rows are real ones, of the real schema and inserted as the server does; the payloads of all but one instrument
are the same few bytes. Then, in each decade, through the server's own functions: listing a day (1000 observations) of
one instrument, and its predictions by the active version and by all; finding what is pending at the end, and that
nothing is; storing a further bundle of 64 with its receipt; pruning an archived day, by row. Times are medians of
wall-clock time in ms of one process, the database warm; growth is the last decade's over the first's.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path

import numpy as np
from sqlalchemy import func, insert, select, text, update

from benchmarks.report import median, print_report
from demo.postgres import Postgres
from fieldpost.payload import encode_payload
from fieldpost.v1 import observation_pb2 as pb
from flows.archiving.archivist import Archivist
from flows.site import Site as FlowSite
from flows.site import open_shelves
from server.analyses import AnalysisResult, AnalysisVariable
from server.archive.retention import prune
from server.ingest.core import Ingest
from server.ingest.observation_rows import ObservationRow, insert_observations
from server.ingest.registry import RegisteredInstrument, RegisteredStation, register
from server.models.card import ModelCard, ModelKind, ModelState
from server.prediction.pending import Span, find_pending, last_observation_id
from server.queries.observations import ObservationFilter, list_observations
from server.queries.pages import TimeSpan
from server.queries.predictions import (
    NewPrediction,
    PredictionFilter,
    encode_result,
    list_predictions,
    write_predictions,
)
from server.settings import Settings
from server.storage.store import Store
from server.storage.tables import epochs, instruments, model_versions, observations, stations
from server.workers.jobs import ModelKey

DAY_ROWS = 1000
INTERVAL_NANOS = 86_400 * 10**9 // DAY_ROWS
DAY_NANOS = 1_750_032_000 * 10**9
"""The first instant of 2025-06-16."""
INSTRUMENTS_PER_STATION = 10
DECADE_VERSIONS = (1, 5, 20, 100)
CHUNK_ROWS = 50_000
ROUNDS = 15
BUNDLE = 64
ANALYSIS = "boundary-layer-height"
MODEL = "cl51"
CONTENT = encode_result(
    AnalysisResult(np.array([DAY_NANOS]), (AnalysisVariable("height", "m", np.array([812.5], np.float32)),))
)


class Site:
    """A store that grows."""

    def __init__(self, database_url: str, folder: Path) -> None:
        self.store = Store(database_url, folder / "segments")
        self._folder = folder
        self._is_postgresql = not database_url.startswith("sqlite")
        self._instrument_count = 0

    def close(self) -> None:
        """Ends the store's threads."""
        self.store.close()

    def grow(self, observation_count: int, version_count: int) -> None:
        """Adds instruments with a day each, predicted by version 1, until there are so many observations."""
        self._add_versions(version_count)
        wanted = observation_count // DAY_ROWS
        names = [f"i{number}" for number in range(self._instrument_count, wanted)]
        groups = [
            names[start : start + INSTRUMENTS_PER_STATION] for start in range(0, len(names), INSTRUMENTS_PER_STATION)
        ]
        registered = [
            RegisteredStation(
                name=f"station-{group[0]}",
                instruments=[RegisteredInstrument(name=name, instrument_model=MODEL) for name in group],
            )
            for group in groups
        ]
        self.store.write(lambda connection: register(connection, registered)).result()
        first_id = self._last_id() + 1
        for chunk in _chunks(self._rows([station.name for station in registered]), CHUNK_ROWS):
            self.store.write(lambda connection, chunk=chunk: insert_observations(connection, chunk)).result()  # type: ignore[misc]
        self._predict_all(first_id)
        self._instrument_count = max(wanted, self._instrument_count)
        if self._is_postgresql:  # which sees to that by itself, in a minute; SQLite never does
            self.store.write(lambda connection: connection.execute(text("ANALYZE"))).result()

    def _rows(self, names: list[str]) -> Iterator[ObservationRow]:
        """A day of each instrument of these stations, the payload of all of them the same few bytes."""
        place = self._shared_place()
        for name in names:
            epoch_id, ids = self._begin_epoch(name)
            for number, instrument_id in enumerate(ids):
                for index in range(DAY_ROWS):
                    measured = DAY_NANOS + index * INTERVAL_NANOS
                    sequence = index * len(ids) + number + 1
                    facts = (measured, measured, 7, os.urandom(32), *place)
                    yield ObservationRow(epoch_id, sequence, instrument_id, *facts, False)

    def _shared_place(self) -> tuple[int, int, int]:
        ingest = Ingest(self.store, payload_bytes_max=2**20, on_stored=lambda: None)
        name = f"shared-{self._instrument_count}"
        self.register(name)
        ingest.submit(pb.Bundle(observations=[make_observation(name, 1, b"payload", 0)])).result()
        ingest.close()
        columns = (observations.c.segment_id, observations.c.segment_offset, observations.c.stored_bytes)
        with self.store.read() as connection:
            newest = select(*columns).order_by(observations.c.id.desc()).limit(1)
            segment_id, offset, length = connection.execute(newest).one()
        return segment_id, offset, length

    def _begin_epoch(self, station: str) -> tuple[int, list[int]]:
        with self.store.read() as connection:
            station_id = connection.scalar(select(stations.c.id).where(stations.c.name == station))
            ids = list(connection.scalars(select(instruments.c.id).where(instruments.c.station_id == station_id)))
        made = insert(epochs).values(station_id=station_id, epoch=epoch_of(station)).returning(epochs.c.id)
        return int(self.store.write(lambda connection: connection.scalar(made)).result() or 0), ids

    def _predict_all(self, first_id: int) -> None:
        """Version 1 on everything from an observation on, copied by the database itself."""
        columns = "observation_id, model_version_id, instrument_id, measure_unix_nanos, predict_unix_nanos, "
        query = text(
            f"INSERT INTO prediction ({columns} content, is_failure) SELECT id, :version, instrument_id, "
            "measure_unix_nanos, measure_unix_nanos, :content, :failed FROM observation "
            "WHERE id BETWEEN :first AND :last"
        )
        facts = {"version": self.version_ids[0], "content": CONTENT, "failed": False}
        for first in range(first_id, self._last_id() + 1, CHUNK_ROWS):
            span = {"first": first, "last": first + CHUNK_ROWS - 1}
            self.store.write(lambda connection, span=span: connection.execute(query, facts | span)).result()  # type: ignore[misc]
        self.settle()

    def settle(self) -> None:
        """Nothing waits for any version."""
        values = {"settled_observation_id": self._last_id()}
        self.store.write(lambda connection: connection.execute(update(model_versions).values(**values))).result()

    def _last_id(self) -> int:
        with self.store.read() as connection:
            return last_observation_id(connection)

    def _add_versions(self, version_count: int) -> None:
        with self.store.read() as connection:
            before = connection.scalar(select(func.count()).select_from(model_versions)) or 0
        rows = [
            {
                "analysis": ANALYSIS,
                "version": version,
                "state": ModelState.ACTIVE if version == 1 else ModelState.RETIRED,
                "kind": ModelKind.BUILT_IN,
                "first_active_unix_nanos": 0,
            }
            for version in range(before + 1, version_count + 1)
        ]
        if rows:
            self.store.write(lambda connection: connection.execute(insert(model_versions), rows)).result()
        with self.store.read() as connection:
            self.version_ids = list(connection.scalars(select(model_versions.c.id).order_by(model_versions.c.version)))

    def register(self, station: str) -> None:
        """A station with one instrument."""
        instrument = RegisteredInstrument(name="main", instrument_model=MODEL)
        registered = [RegisteredStation(name=station, instruments=[instrument])]
        self.store.write(lambda connection: register(connection, registered)).result()

    def add_real_day(self, station: str) -> None:
        """A day with payloads of its own through the ingest, predicted by every version."""
        self.register(station)
        ingest = Ingest(self.store, payload_bytes_max=2**20, on_stored=lambda: None)
        for first in range(0, DAY_ROWS, BUNDLE):
            indices = range(first, min(first + BUNDLE, DAY_ROWS))
            bundle = [make_observation(station, index + 1, b"%d " % index * 40, index) for index in indices]
            ingest.submit(pb.Bundle(observations=bundle)).result()
        ingest.close()
        last_id = self._last_id()
        where = observations.c.id > last_id - DAY_ROWS
        with self.store.read() as connection:
            query = select(observations.c.id, observations.c.instrument_id, observations.c.measure_unix_nanos)
            rows = connection.execute(query.where(where)).all()
        for version_id in self.version_ids:
            new = [NewPrediction(row[0], version_id, row[1], row[2], row[2], CONTENT, False) for row in rows]
            self.store.write(lambda connection, new=new: write_predictions(connection, new)).result()  # type: ignore[misc]

    def measure(self, station: str) -> dict[str, float]:
        """Times each operation, in ms."""
        span = TimeSpan(DAY_NANOS, DAY_NANOS + 86_400 * 10**9)
        named = PredictionFilter(station, "main", ANALYSIS, 1, *span)
        served = PredictionFilter(station, "main", start_unix_nanos=span[0], end_unix_nanos=span[1])
        card = ModelCard(
            self.version_ids[0], ModelKey(ANALYSIS, 1), ModelState.ACTIVE, ModelKind.BUILT_IN, frozenset({MODEL})
        )
        end = self._last_id()
        store, times = self.store, {}

        def read(operation: Callable[..., object], *arguments: object) -> Callable[[], object]:
            def run() -> object:
                with store.read() as connection:
                    return operation(connection, *arguments)

            return run

        times["list_observations_ms"] = timed(
            read(list_observations, ObservationFilter(station, "main", span), 1000, "")
        )
        times["list_predictions_ms"] = timed(read(list_predictions, named, 1000, ""))
        times["list_predictions_of_all_versions_ms"] = timed(read(list_predictions, served, 1000, ""))
        times["store_bundle_ms"] = self._time_bundles(station)
        times["find_pending_ms"] = timed(read(find_pending, card, Span(False, end, end), 1000))
        self._predict_all(end + 1)
        times["find_nothing_pending_ms"] = timed(read(find_pending, card, Span(False, self._last_id(), end), 1000))
        times["prune_row_ms"] = self._time_prune(station)
        return times

    def _time_bundles(self, station: str) -> float:
        ingest = Ingest(self.store, payload_bytes_max=2**20, on_stored=lambda: None)
        first = iter(range(DAY_ROWS + 1, 10**9, BUNDLE))

        def store_bundle() -> None:
            start = next(first)
            bundle = [make_observation(station, start + i, b"%d" % i * 99, start + i) for i in range(BUNDLE)]
            ingest.submit(pb.Bundle(observations=bundle)).result()

        took_ms = timed(store_bundle)
        ingest.close()
        return took_ms

    def _time_prune(self, station: str) -> float:
        """An archived day of one instrument, by row that goes: 1000 observations and every version's predictions."""
        settings = Settings(data_folder=self._folder)
        site = FlowSite(settings, self.store, *open_shelves(settings))
        day = datetime.fromtimestamp(DAY_NANOS // 10**9, UTC).date()
        archivist = Archivist(site)
        (found,) = archivist.find_days(day, day, station=station)
        archivist.archive(found, time.time_ns())
        now = DAY_NANOS + 40 * 86_400 * 10**9
        dry = prune(self.store, site.shelf, hot_days=30, now_unix_nanos=now, is_dry_run=True, is_sweeping=False)
        assert dry.observation_count == DAY_ROWS, dry
        start = time.perf_counter()
        report = prune(self.store, site.shelf, hot_days=30, now_unix_nanos=now, is_sweeping=False)
        took_ms = (time.perf_counter() - start) * 1000
        assert report.observation_count == DAY_ROWS, report
        return took_ms / (report.observation_count + report.prediction_count)


def make_observation(station: str, sequence: int, content: bytes, index: int) -> pb.Observation:
    """A sound observation of a station's one instrument."""
    payload, encoding = encode_payload(content)
    header = pb.ObservationHeader(station=station, instrument="main", epoch=epoch_of(station), sequence=sequence)
    header.sha256, header.payload_bytes = hashlib.sha256(content).digest(), len(content)
    header.payload_encoding, header.payload_format = encoding, "vaisala-cl"
    header.measure_time.FromNanoseconds(DAY_NANOS + index * INTERVAL_NANOS)
    header.capture_clock.wall_time.FromNanoseconds(DAY_NANOS + index * INTERVAL_NANOS)
    return pb.Observation(header=header, payload=payload)


def epoch_of(station: str) -> str:
    """The one epoch that a station has here."""
    return hashlib.sha256(station.encode()).hexdigest()[:32]


def timed(operation: Callable[[], object]) -> float:
    """The median of some runs, in ms, after one that warms up."""
    times = []
    for _ in range(ROUNDS + 1):
        start = time.perf_counter()
        operation()
        times.append((time.perf_counter() - start) * 1000)
    return median(times[1:])


def _chunks(rows: Iterable[ObservationRow], size: int) -> Iterator[list[ObservationRow]]:
    remaining = iter(rows)
    while chunk := list(islice(remaining, size)):
        yield chunk


@contextmanager
def opened(database: str) -> Iterator[Site]:
    """An empty store in a folder of its own, on the checkout's disk."""
    base = Path("benchmark-output")
    base.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=base) as name, ExitStack() as parts:
        folder = Path(name).absolute()
        folder.chmod(0o755)  # PostgreSQL runs as another user
        url = f"sqlite:///{folder / 'fieldpost.db'}"
        if database == "postgresql":
            postgres = Postgres(folder / "pg")
            postgres.start()
            parts.callback(postgres.stop)
            url = postgres.create_database("fieldpost")
        site = Site(url, folder)
        parts.callback(site.close)
        yield site


def measure_growth(database: str, observation_count: int) -> dict[str, object]:
    """The table of one database: by observations, each operation's time in ms; and how it grew."""
    table: dict[str, dict[str, float]] = {}
    with opened(database) as site:
        for power, version_count in enumerate(DECADE_VERSIONS, 4):
            if 10**power > observation_count:
                break
            start = time.perf_counter()
            site.grow(10**power, version_count)
            rows = {"instruments": 10**power / DAY_ROWS, "model_versions": version_count}
            rows["fill_s"] = time.perf_counter() - start
            station = f"measured-{power}"
            site.add_real_day(station)
            site.settle()
            table[str(10**power)] = rows | site.measure(station)
    first, *_, last = table.values()
    growth = {name.removesuffix("_ms"): last[name] / first[name] for name in first if name.endswith("_ms")}
    return {"decades": table, "growth": growth}


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print only one JSON object")
    parser.add_argument("--observations", type=int, help="the last decade; default 10^7 on SQLite, 10^6 on PostgreSQL")
    parser.add_argument("--database", choices=["sqlite", "postgresql"], help="default: both, one after the other")
    options = parser.parse_args()
    databases = [options.database] if options.database else ["sqlite", "postgresql"]
    last = {"sqlite": 10**7, "postgresql": 10**6}
    result = {each: measure_growth(each, options.observations or last[each]) for each in databases}
    print_report(result, as_json=options.json)


if __name__ == "__main__":
    main()
