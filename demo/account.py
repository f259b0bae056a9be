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
from sqlalchemy import Connection, func, select

from demo.heights import ANALYSIS, HeightAccount, account_for_heights
from demo.plan import PlannedInstrument, PlannedStation
from edge_agent.storage.day_file import DayFile
from edge_agent.storage.day_files import list_day_files
from fieldpost import Client
from server.queries.predictions import last_prediction_id
from server.storage.tables import bags, epochs, instruments, observations, predictions, stations


@dataclass(frozen=True, slots=True)
class Quarantined:
    """An input that the station set aside."""

    name: str
    reason: str


@dataclass(slots=True)
class InstrumentAccount:
    """What became of one instrument's observations.

    Attributes:
        predicted: By the active version; as are failed, latencies and failures.
        heights: What each version says, the active one first.
    """

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
    heights: list[HeightAccount] = field(default_factory=list)
    quarantined: list[Quarantined] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


def take_account(
    stations_: Sequence[PlannedStation],
    buffers: Path,
    connection: Connection,
    client: Client,
    versions: Sequence[int],
) -> list[InstrumentAccount]:
    """The account of every instrument.

    Args:
        stations_: The stations; each has its buffer in a folder of its name below `buffers`.
        buffers: That folder.
        connection: To the server's database.
        client: To the server.
        versions: Which predict, the active one first.
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
            account = _account(station.name, instrument, written.get(instrument.name, Counter()), connection)
            _add_predictions(account, instrument, client, versions)
            account.duplicates_dropped = dropped.get((station.name, instrument.name), 0)
            account.quarantined = quarantined.get(instrument.name, [])
            accounts.append(account)
    return accounts


def _account(
    station: str,
    instrument: PlannedInstrument,
    in_buffer: Counter[bytes],
    connection: Connection,
) -> InstrumentAccount:
    in_store = _read_store(connection, station, instrument.name)
    written = instrument.written_count if instrument.written_count is not None else in_buffer.total()
    # Whatever is missing anywhere on the way: never buffered, or buffered and not held with the same bytes.
    lost = max(written - in_buffer.total(), 0) + (in_buffer - in_store).total()
    return InstrumentAccount(
        station=station,
        instrument=instrument.name,
        instrument_model=instrument.instrument_model,
        written=written,
        held=in_store.total(),
        archived=_read_archived(connection, station, instrument.name),
        lost=lost,
    )


def _add_predictions(
    account: InstrumentAccount, instrument: PlannedInstrument, client: Client, versions: Sequence[int]
) -> None:
    atmosphere = instrument.sky.atmosphere() if instrument.sky is not None else None
    for version in versions:
        made = list(
            client.iter_predictions(
                station=account.station, instrument=account.instrument, analysis=ANALYSIS, model_version=version
            )
        )
        account.heights.append(account_for_heights(version, made, atmosphere))
        if version == versions[0] and made:
            reasons = Counter(each.failure for each in made if each.failure)
            account.failed = reasons.total()
            account.predicted = len(made) - account.failed
            account.failures = [f"{count} x {reason}" for reason, count in reasons.most_common(5)]
            latencies = [each.predict_time.ToNanoseconds() - each.capture_time.ToNanoseconds() for each in made]
            account.latency_p50_s, account.latency_p99_s = (float(x) / 1e9 for x in np.percentile(latencies, (50, 99)))


def count_made_again(connection: Connection) -> int:
    """Predictions whose place another one has taken: numbers are never given twice."""
    return last_prediction_id(connection) - (connection.scalar(select(func.count()).select_from(predictions)) or 0)


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
