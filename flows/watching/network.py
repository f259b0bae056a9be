"""Reads how the network stands now. Looks only at what is new since the last look; knows no event and no Prefect."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from fieldpost.ranges import RangeSet
from fieldpost.v1 import stations_service_pb2
from flows.gap_filling.gaps import Missing, choose_gap, common
from flows.watching.looks import InstrumentSeen, StationSeen
from server.queries.gaps import EpochFacts, EpochLook, list_epochs, look_at
from server.queries.network import UnarchivedDay, list_paces, list_unarchived_days
from server.queries.stations import list_stations
from server.storage.store import Store

ARCHIVE_LOOK_DAYS = 7
"""So many days are looked at, up to the last one that should have a bag by now."""

EpochLooks = Mapping[tuple[str, str], EpochLook]
"""By station and epoch."""


@dataclass(frozen=True, slots=True)
class NetworkSeen:
    """The network at this look.

    Attributes:
        stations: By name.
        epochs: How far their sequences have been looked through, for the next look.
        missing: By station and epoch: what is missing.
        gaps: Of that, what does not come by itself.
        unarchived: Days that should have a bag by now, the oldest first.
    """

    stations: list[StationSeen]
    epochs: dict[tuple[str, str], EpochLook]
    missing: dict[str, dict[str, RangeSet]]
    gaps: dict[str, dict[str, RangeSet]]
    unarchived: list[UnarchivedDay]


def see_network(store: Store, before: EpochLooks, *, archive_days: int, now_unix_nanos: int) -> NetworkSeen:
    """Looks at all stations, instruments and the record of the archive.

    Args:
        store: The server's.
        before: What NetworkSeen.epochs was last time; empty at the first look, which counts every row once.
        archive_days: So many days after its end, a day should have a bag.
        now_unix_nanos: The time.
    """
    with store.read() as connection:  # one view: what a station had delivered when it spoke is in it
        listed = list_epochs(connection)
        epochs = {
            (facts.station, facts.epoch): look_at(connection, facts, before.get((facts.station, facts.epoch)))
            for facts in listed
        }
        missing: dict[str, dict[str, RangeSet]] = {}
        gaps: dict[str, dict[str, RangeSet]] = {}
        for facts in listed:
            found = epochs[facts.station, facts.epoch].missing
            missing.setdefault(facts.station, {})[facts.epoch] = found
            gaps.setdefault(facts.station, {})[facts.epoch] = _gap(
                facts, found, before.get((facts.station, facts.epoch))
            )
        paces: dict[str, list[InstrumentSeen]] = {}
        for pace in list_paces(connection):
            captured = pace.last_capture_unix_nanos
            age_s = None if captured is None else (now_unix_nanos - captured) / 1e9
            paces.setdefault(pace.station, []).append(InstrumentSeen(pace.instrument, pace.interval_s, age_s))
        listed_stations = list_stations(connection, {})
        last_day = datetime.fromtimestamp(now_unix_nanos // 10**9, UTC).date() - timedelta(days=archive_days + 1)
        unarchived = list_unarchived_days(connection, last_day - timedelta(days=ARCHIVE_LOOK_DAYS - 1), last_day)
    stations = [
        _see(each, now_unix_nanos, sum(map(len, gaps.get(each.station, {}).values())), paces.get(each.station, []))
        for each in listed_stations
    ]
    return NetworkSeen(stations, epochs, missing, gaps, unarchived)


def _gap(facts: EpochFacts, missing: RangeSet, before: EpochLook | None) -> RangeSet:
    """Cheaper than a time of grace: while a station still delivers, or a program may still be sending, nothing is."""
    told = Missing(missing, facts.is_current, facts.backlog_count, facts.refused_count)
    gap = choose_gap(told, lambda first, last: facts.is_current)
    return gap if facts.is_current or before is None else common(gap, before.missing)


def _see(
    station: stations_service_pb2.Station, now_unix_nanos: int, gap_count: int, instruments: list[InstrumentSeen]
) -> StationSeen:
    status = station.status
    return StationSeen(
        name=station.station,
        age_s=(now_unix_nanos - station.status_time.ToNanoseconds()) / 1e9 if station.HasField("status") else None,
        is_online=status.is_online,
        backlog_count=status.backlog_count,
        gap_count=gap_count,
        disk_left_days=status.disk_left_days if status.HasField("disk_left_days") else None,
        alarms=tuple(status.alarms),
        instruments=tuple(instruments),
    )
