"""Whether everything arrived: each station's buffer held against the server's store, byte for byte by SHA-256.

The buffers and the store are read from disk, past the programs that wrote them.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, func, select

from demo.plan import PlannedInstrument, PlannedStation
from edge_agent.storage.day_file import DayFile
from edge_agent.storage.day_files import list_day_files
from fieldpost import Client
from fieldpost.simulation import Atmosphere
from server.storage.tables import bags, epochs, instruments, observations, stations

HEIGHT = "atmosphere_boundary_layer_thickness"


@dataclass(frozen=True, slots=True)
class Quarantined:
    """An input that the station set aside."""

    name: str
    reason: str


@dataclass(slots=True)
class InstrumentAccount:
    """What became of one instrument's observations. Fields of a simulated one are None for a recorded one."""

    station: str
    instrument: str
    instrument_model: str
    written: int
    held: int
    archived: int
    lost: int
    predicted: int = 0
    failed: int = 0
    duplicates_dropped: int = 0
    latency_p50_s: float | None = None
    latency_p99_s: float | None = None
    height_available_percent: float | None = None
    mean_error_m: float | None = None
    mean_absolute_error_m: float | None = None
    median_absolute_error_m: float | None = None
    quarantined: list[Quarantined] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


def take_account(
    stations_: Sequence[PlannedStation], buffers: Path, connection: Connection, client: Client
) -> list[InstrumentAccount]:
    """The account of every instrument.

    Args:
        stations_: The stations; each has its buffer in a folder of its name below `buffers`.
        buffers: That folder.
        connection: To the server's database.
        client: To the server.
    """
    dropped = {
        (station.station, each.instrument): each.duplicate_count
        for station in client.stations()
        for each in station.instruments
    }
    accounts = []
    for station in stations_:
        written = _read_buffer(buffers / station.name)
        quarantined = _read_quarantine(buffers / station.name)
        for instrument in station.instruments:
            account = _account(station.name, instrument, written.get(instrument.name, Counter()), connection, client)
            account.duplicates_dropped = dropped.get((station.name, instrument.name), 0)
            account.quarantined = quarantined.get(instrument.name, [])
            accounts.append(account)
    return accounts


def _account(
    station: str,
    instrument: PlannedInstrument,
    in_buffer: Counter[bytes],
    connection: Connection,
    client: Client,
) -> InstrumentAccount:
    in_store = _read_store(connection, station, instrument.name)
    written = instrument.written_count if instrument.written_count is not None else in_buffer.total()
    # Whatever is missing anywhere on the way: never buffered, or buffered and not held with the same bytes.
    lost = max(written - in_buffer.total(), 0) + (in_buffer - in_store).total()
    account = InstrumentAccount(
        station=station,
        instrument=instrument.name,
        instrument_model=instrument.instrument_model,
        written=written,
        held=in_store.total(),
        archived=_read_archived(connection, station, instrument.name),
        lost=lost,
    )
    _add_predictions(account, instrument, client)
    return account


def _add_predictions(account: InstrumentAccount, instrument: PlannedInstrument, client: Client) -> None:
    latencies, times, heights = [], list[int](), list[float]()
    reasons: Counter[str] = Counter()
    for prediction in client.iter_predictions(station=account.station, instrument=account.instrument):
        latencies.append(prediction.predict_time.ToNanoseconds() - prediction.capture_time.ToNanoseconds())
        if prediction.failure:
            account.failed += 1
            reasons[prediction.failure] += 1
            continue
        account.predicted += 1
        for variable in prediction.variables:
            if variable.name == HEIGHT:
                times += prediction.sample_unix_nanos
                heights += variable.values
    account.failures = [f"{count} x {reason}" for reason, count in reasons.most_common(5)]
    if latencies:
        account.latency_p50_s, account.latency_p99_s = (float(x) / 1e9 for x in np.percentile(latencies, (50, 99)))
    if not heights:
        return
    height_m = np.array(heights, np.float32)
    account.height_available_percent = float(np.isfinite(height_m).mean() * 100)
    if instrument.seed is not None:
        error_m = height_m - true_height_m(instrument.seed, np.array(times, np.int64))
        error_m = error_m[np.isfinite(error_m)]
        if len(error_m):
            account.mean_error_m = float(error_m.mean())
            account.mean_absolute_error_m = float(np.abs(error_m).mean())
            account.median_absolute_error_m = float(np.median(np.abs(error_m)))


def true_height_m(seed: int, unix_nanos: NDArray[np.int64]) -> NDArray[np.float64]:
    """The mixing height of the simulated sky, (time,), m above ground; NaN where there is none."""
    return np.asarray(Atmosphere(seed).truth(unix_nanos / 1e9).mixing_height_m, dtype=np.float64)


def _read_buffer(folder: Path) -> dict[str, Counter[bytes]]:
    """By instrument, the SHA-256 of each observation in a station's buffer."""
    found: dict[str, Counter[bytes]] = {}
    for header in _headers(folder / "days"):
        found.setdefault(header[0], Counter())[header[1]] += 1
    return found


def _headers(days: Path) -> Iterator[tuple[str, bytes]]:
    if not days.is_dir():
        return
    for name in list_day_files(days):
        file = DayFile(days / str(name))
        for record in file.read_all():
            yield record.header.instrument, record.header.sha256
        file.close()


def _read_quarantine(folder: Path) -> dict[str, list[Quarantined]]:
    found: dict[str, list[Quarantined]] = {}
    for path in sorted((folder / "quarantine").glob("*.json")):
        facts = json.loads(path.read_text())
        found.setdefault(facts["instrument"], []).append(Quarantined(facts["source"], facts["reason"]))
    return found


def _read_store(connection: Connection, station: str, instrument: str) -> Counter[bytes]:
    query = (
        select(observations.c.sha256)
        .join(instruments, instruments.c.id == observations.c.instrument_id)
        .join(stations, stations.c.id == instruments.c.station_id)
        .join(epochs, epochs.c.id == observations.c.epoch_id)
        .where(stations.c.name == station, instruments.c.name == instrument)
    )
    return Counter(connection.scalars(query))


def _read_archived(connection: Connection, station: str, instrument: str) -> int:
    """Observations in the newest bag of each day."""
    newest = (
        select(bags.c.instrument_id, bags.c.day, func.max(bags.c.version).label("version"))
        .group_by(bags.c.instrument_id, bags.c.day)
        .subquery()
    )
    query = (
        select(func.coalesce(func.sum(bags.c.observation_count), 0))
        .join(
            newest,
            (newest.c.instrument_id == bags.c.instrument_id)
            & (newest.c.day == bags.c.day)
            & (newest.c.version == bags.c.version),
        )
        .join(instruments, instruments.c.id == bags.c.instrument_id)
        .join(stations, stations.c.id == instruments.c.station_id)
        .where(stations.c.name == station, instruments.c.name == instrument)
    )
    return int(connection.scalar(query) or 0)
