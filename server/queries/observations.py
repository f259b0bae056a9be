"""Observations as the server serves them: listed by time, watched by number, found by either of their names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, Select, func, select

from fieldpost.errors import InvalidRequestError, UnknownObservationError
from fieldpost.v1 import observations_service_pb2 as pb
from server.queries.pages import ALWAYS, TimeSpan, make_token, next_positions, page_size, parse_token
from server.queries.stations import find_instrument_ids
from server.storage.segments import Place
from server.storage.tables import epochs, instruments, observations, segments, stations

WATCH_SPAN = 50_000
"""Rows that one look of a watcher passes at most: one that wants few of many sees how far it has come."""
ID_MAX = 2**63 - 1


@dataclass(frozen=True, slots=True)
class ObservationFilter:
    """Which observations are meant; what is left empty matches all."""

    station: str = ""
    instrument: str = ""
    span: TimeSpan = ALWAYS

    def __post_init__(self) -> None:
        if self.instrument and not self.station:
            raise InvalidRequestError("expected a station together with an instrument", hint="name the station too")


def list_observations(
    connection: Connection, wanted: ObservationFilter, wanted_size: int, page_token: str
) -> tuple[list[tuple[pb.HeldObservation, Place]], str]:
    """One page, ordered by measure time and then id, and the token of the next one (empty at the end).

    Raises:
        InvalidRequestError: The token is not one of ours.
    """
    after, size = parse_token(page_token), page_size(wanted_size)
    instrument_ids = find_instrument_ids(connection, wanted.station, wanted.instrument)
    found = next_positions(connection, observations, instrument_ids, wanted.span, after, size)
    query = _select().where(observations.c.id.in_([each.row_id for each in found]))
    rows = {row.id: row for row in connection.execute(query)}
    token = make_token(found[-1]) if len(found) == size else ""
    return [(_to_message(rows[each.row_id]), _place(rows[each.row_id])) for each in found], token


def list_after(
    wanted: ObservationFilter, connection: Connection, after_id: int, limit: int
) -> tuple[list[pb.HeldObservation], int, bool]:
    """The first observations numbered above after_id, by number.

    Returns:
        The observations, up to which number everything has been looked at, and whether that is all there is.
    """
    last_id, after_id = last_observation_id(connection), max(after_id, 0)
    end_id = min(last_id, after_id + WATCH_SPAN)
    query = _select().where(observations.c.id > after_id, observations.c.id <= end_id)
    if wanted.station:
        instrument_ids = find_instrument_ids(connection, wanted.station, wanted.instrument)
        query = query.where(observations.c.instrument_id.in_(instrument_ids))
    rows = connection.execute(query.order_by(observations.c.id).limit(limit)).all()
    seen_id = rows[-1].id if len(rows) == limit else max(end_id, after_id)
    return [_to_message(row) for row in rows], seen_id, seen_id >= last_id


def last_observation_id(connection: Connection) -> int:
    """The highest number that is held; 0 where there is none."""
    return int(connection.scalar(select(func.max(observations.c.id))) or 0)


def find_place(connection: Connection, observation_id: int, identity: tuple[str, str, int]) -> Place:
    """Where an observation lies, by its number or, where that is 0, by (station, epoch, sequence).

    Raises:
        UnknownObservationError: It is not held.
    """
    query = _select()
    if observation_id:
        query = query.where(observations.c.id == min(observation_id, ID_MAX))
        name = f"number {observation_id}"
    else:
        station, epoch, sequence = identity
        owner = select(stations.c.id).where(stations.c.name == station).scalar_subquery()
        query = query.where(epochs.c.station_id == owner, epochs.c.epoch == epoch, observations.c.sequence == sequence)
        name = f"sequence {sequence} of ({station[:63]}, {epoch[:32]})"
    row = connection.execute(query).one_or_none()
    if row is None:
        raise UnknownObservationError(
            f"expected an observation that this server holds, but got {name}",
            hint="`fieldpost observations` lists what is held; what was archived long ago is in its bag",
        )
    return _place(row)


def _select() -> Select[Any]:
    return (
        select(
            observations.c.id,
            observations.c.sequence,
            observations.c.measure_unix_nanos,
            observations.c.capture_unix_nanos,
            observations.c.payload_bytes,
            observations.c.sha256,
            observations.c.segment_offset,
            observations.c.stored_bytes,
            segments.c.name.label("segment"),
            epochs.c.epoch,
            instruments.c.name.label("instrument"),
            stations.c.name.label("station"),
        )
        .join(segments, segments.c.id == observations.c.segment_id)
        .join(epochs, epochs.c.id == observations.c.epoch_id)
        .join(instruments, instruments.c.id == observations.c.instrument_id)
        .join(stations, stations.c.id == instruments.c.station_id)
    )


def _to_message(row: Row[Any]) -> pb.HeldObservation:
    message = pb.HeldObservation(observation_id=row.id)
    header = message.header
    header.station = row.station
    header.instrument = row.instrument
    header.epoch = row.epoch
    header.sequence = row.sequence
    header.sha256 = row.sha256
    header.payload_bytes = row.payload_bytes
    header.measure_time.FromNanoseconds(row.measure_unix_nanos)
    message.capture_time.FromNanoseconds(row.capture_unix_nanos)
    return message


def _place(row: Row[Any]) -> Place:
    return Place(row.segment, row.segment_offset, row.stored_bytes)
