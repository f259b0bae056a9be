"""Stations and instruments, as the server knows them."""

from __future__ import annotations

import math
from collections.abc import Mapping

from sqlalchemy import Connection, select

from fieldpost.errors import InvalidRequestError
from fieldpost.v1 import station_pb2, stations_service_pb2
from server.ingest.ledger import InstrumentCounts
from server.storage.tables import instruments, stations


def list_stations(
    connection: Connection, counts: Mapping[tuple[str, str], InstrumentCounts]
) -> list[stations_service_pb2.Station]:
    """All registered stations with their instruments, by name; counts are those since the server started."""
    listed = {}
    for row in connection.execute(select(stations).order_by(stations.c.name)):
        station = stations_service_pb2.Station(station=row.name)
        if row.status is not None:
            station.status.CopyFrom(station_pb2.StationStatus.FromString(row.status))
            station.status_time.FromNanoseconds(row.status_unix_nanos)
        listed[row.id] = station
    for row in connection.execute(select(instruments).order_by(instruments.c.name)):
        station = listed[row.station_id]
        since_start = counts.get((station.station, row.name), InstrumentCounts())
        instrument = station.instruments.add(
            instrument=row.name,
            instrument_model=row.instrument_model,
            latitude_deg=_or_nan(row.latitude_deg),
            longitude_deg=_or_nan(row.longitude_deg),
            altitude_m=_or_nan(row.altitude_m),
            observation_count=row.observation_count,
            duplicate_count=since_start.duplicates,
            rejected_count=since_start.rejected,
        )
        if row.last_measure_unix_nanos is not None:
            instrument.last_measure_time.FromNanoseconds(row.last_measure_unix_nanos)
    return list(listed.values())


def find_instrument_ids(connection: Connection, station: str, instrument: str) -> list[int]:
    """The instruments of these names, by id; an empty name matches all. Unknown ones have none."""
    query = select(instruments.c.id).order_by(instruments.c.id)
    if station:
        query = query.join(stations, stations.c.id == instruments.c.station_id).where(stations.c.name == station)
    if instrument:
        query = query.where(instruments.c.name == instrument)
    return list(connection.scalars(query))


def is_registered(connection: Connection, station: str) -> bool:
    """Whether there is a station of this name."""
    return connection.scalar(select(stations.c.id).where(stations.c.name == station)) is not None


def last_status(connection: Connection, station: str) -> station_pb2.StationStatus:
    """What a station said of itself last; an empty status where it never said anything.

    Raises:
        InvalidRequestError: It is not registered.
    """
    row = connection.execute(select(stations.c.status).where(stations.c.name == station)).one_or_none()
    if row is None:
        raise InvalidRequestError(
            f"expected a registered station, but got {station[:63]!r}", hint="`fieldpost stations` lists them"
        )
    return station_pb2.StationStatus.FromString(row.status or b"")


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value
