"""How the network stands, for whoever watches it: what instruments usually do, and which days have no bag yet.

Each question costs a look or two into an index for each instrument, however much is held. Knows no alarm.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from itertools import pairwise
from statistics import median

from sqlalchemy import Connection, bindparam, func, select

from server.archive.bags import day_to_unix_nanos
from server.storage.tables import bags, instruments, observations, stations

RECENT_OBSERVATIONS = 21
"""Enough for a median of intervals that one pause does not move."""
RECENT_MIN = 5

_RECENT = (
    select(observations.c.measure_unix_nanos, observations.c.capture_unix_nanos)
    .where(observations.c.instrument_id == bindparam("instrument_id"))
    .order_by(observations.c.measure_unix_nanos.desc())
    .limit(RECENT_OBSERVATIONS)
)
_IS_MEASURED = (
    select(observations.c.id)
    .where(
        observations.c.instrument_id == bindparam("instrument_id"),
        observations.c.measure_unix_nanos >= bindparam("start"),
        observations.c.measure_unix_nanos < bindparam("end"),
    )
    .limit(1)
)


@dataclass(frozen=True, slots=True)
class InstrumentPace:
    """When an instrument measures.

    Attributes:
        station: Its station.
        instrument: Its name.
        interval_s: The usual time between two measurements; None where too few are held to tell.
        last_capture_unix_nanos: When the newest was captured; None where none is held.
    """

    station: str
    instrument: str
    interval_s: float | None
    last_capture_unix_nanos: int | None


@dataclass(frozen=True, slots=True)
class UnarchivedDay:
    """A day of an instrument that has observations and no bag."""

    station: str
    instrument: str
    day: date


@dataclass(frozen=True, slots=True)
class ArchiveStand:
    """What is recorded of the bags.

    Attributes:
        newest_unix_nanos: When the last bag was made; None where there is none.
        damaged_count: Bags that are damaged, and could not be repaired.
    """

    newest_unix_nanos: int | None
    damaged_count: int


def list_paces(connection: Connection) -> list[InstrumentPace]:
    """All instruments, by station and name."""
    return [_pace(connection, *row) for row in _list_instruments(connection)]


def _list_instruments(connection: Connection) -> list[tuple[int, str, str]]:
    query = select(instruments.c.id, stations.c.name, instruments.c.name).join(stations)
    rows = connection.execute(query.order_by(stations.c.name, instruments.c.name)).all()
    return [(row[0], row[1], row[2]) for row in rows]


def _pace(connection: Connection, instrument_id: int, station: str, instrument: str) -> InstrumentPace:
    rows = connection.execute(_RECENT, {"instrument_id": instrument_id}).all()
    measured = [row[0] for row in rows]
    steps = [(later - earlier) / 1e9 for later, earlier in pairwise(measured)]
    interval_s = median(steps) if len(rows) >= RECENT_MIN else None
    return InstrumentPace(station, instrument, interval_s, max((row[1] for row in rows), default=None))


def list_unarchived_days(connection: Connection, first_day: date, last_day: date) -> list[UnarchivedDay]:
    """The days, both ends included, that have observations and no bag: by day, then station and instrument."""
    between = bags.c.day.between(first_day.isoformat(), last_day.isoformat())
    archived = {tuple(row) for row in connection.execute(select(bags.c.instrument_id, bags.c.day).where(between))}
    listed = _list_instruments(connection)
    return [
        UnarchivedDay(station, instrument, day)
        for day in _days(first_day, last_day)
        for instrument_id, station, instrument in listed
        if (instrument_id, day.isoformat()) not in archived and _is_measured(connection, instrument_id, day)
    ]


def _days(first_day: date, last_day: date) -> Iterator[date]:
    return (first_day + timedelta(days=number) for number in range((last_day - first_day).days + 1))


def _is_measured(connection: Connection, instrument_id: int, day: date) -> bool:
    start, end = day_to_unix_nanos(day), day_to_unix_nanos(day + timedelta(days=1))
    given = {"instrument_id": instrument_id, "start": start, "end": end}
    return connection.scalar(_IS_MEASURED, given) is not None


def read_archive_stand(connection: Connection) -> ArchiveStand:
    """What is recorded of the bags."""
    newest = connection.scalar(select(func.max(bags.c.archive_unix_nanos)))
    damaged = connection.scalar(select(func.count()).select_from(bags).where(bags.c.damage != ""))
    return ArchiveStand(newest, damaged or 0)
