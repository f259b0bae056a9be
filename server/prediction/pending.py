"""What is still to be predicted: observations x model versions at work - predictions. A query, not a queue."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from google.protobuf.message import DecodeError
from sqlalchemy import ColumnElement, Connection, FromClause, Row, Select, and_, exists, func, or_, select, update

from fieldpost.errors import BrokenStateError
from fieldpost.v1 import observation_pb2 as pb
from server.ingest.ledger import LIVE_AGE_NANOS
from server.models.card import ModelCard
from server.storage.database import by_index
from server.storage.segments import Place
from server.storage.tables import instruments, model_versions, observations, predictions, segments, stations
from server.telemetry.tracing import Identity
from server.workers.jobs import WorkItem

SCAN_IDS_MAX = 100_000


@dataclass(frozen=True, slots=True)
class PendingObservation:
    """An observation without its prediction."""

    observation_id: int
    instrument_id: int
    measure_unix_nanos: int
    place: Place
    instrument_model: str
    calibration: float | None
    capture_unix_nanos: int
    is_live: bool
    latitude_deg: float | None = None
    longitude_deg: float | None = None
    is_time_known: bool = True
    """False where only the payload tells when it was measured; until then measure_unix_nanos is the capture time."""
    identity: Identity | None = None
    """None until the payload is read."""


@dataclass(frozen=True, slots=True)
class Span:
    """Which observations are looked at.

    Attributes:
        is_live: Those that came fresh and after the mark; otherwise all others.
        mark_id: The last observation before the model version was put to work.
        after_id: Those after this one.
    """

    is_live: bool
    mark_id: int
    after_id: int


def find_pending(
    connection: Connection, card: ModelCard, span: Span, limit: int, *, with_provisional: bool = False
) -> tuple[list[PendingObservation], int]:
    """The first observations of a span that wait for the model version, by id, and how far was looked.

    At most SCAN_IDS_MAX ids are looked at, so that a look stays short however few among very many are meant. Where a
    version remembers, one with a provisional prediction waits, too.
    """
    last_id = last_observation_id(connection)
    until_id = max(span.after_id, min(last_id, span.after_id + SCAN_IDS_MAX))
    is_live = and_(observations.c.is_live, observations.c.id > span.mark_id)
    # Which first, and only then what is known of them: PostgreSQL would read all instruments for each observation.
    chosen = (
        select(observations)
        .where(*_is_waiting(card, span.after_id, until_id, with_provisional), is_live if span.is_live else ~is_live)
        .order_by(observations.c.id)
        .limit(limit)
        .subquery()
    )
    query = with_facts(select(chosen.c.id), chosen).order_by(chosen.c.id)
    found = [pending_of(row) for row in connection.execute(query)]
    return found, found[-1].observation_id if len(found) == limit else until_id


def with_facts(query: Select[Any], chosen: FromClause) -> Select[Any]:
    """Adds what pending_of() takes to a query on rows of observations."""
    return (
        query.add_columns(
            chosen.c.id.label("observation_id"),
            chosen.c.instrument_id,
            chosen.c.measure_unix_nanos,
            segments.c.name,
            chosen.c.segment_offset,
            chosen.c.stored_bytes,
            instruments.c.instrument_model,
            instruments.c.calibration,
            chosen.c.capture_unix_nanos,
            chosen.c.is_live,
            instruments.c.latitude_deg,
            instruments.c.longitude_deg,
        )
        .join(instruments, instruments.c.id == chosen.c.instrument_id)
        .join(segments, segments.c.id == chosen.c.segment_id)
    )


def pending_of(row: Row[Any]) -> PendingObservation:
    """An observation, from the columns that with_facts() added after the first one."""
    _, observation_id, instrument_id, measured, name, offset, length, *facts = row[:13]
    return PendingObservation(observation_id, instrument_id, measured, Place(name, offset, length), *facts)


def _is_waiting(card: ModelCard, after_id: int, until_id: int, with_provisional: bool) -> list[ColumnElement[bool]]:
    """That an observation among these ids has no prediction of the model version, and is to have one."""
    is_predicted = exists().where(
        predictions.c.observation_id == observations.c.id, predictions.c.model_version_id == card.row_id
    )
    if with_provisional:  # only then: without it, the index alone tells
        is_predicted = is_predicted.where(~predictions.c.is_provisional)
    return [
        observations.c.id > after_id,
        observations.c.id <= until_id,
        _is_meant(card),
        ~is_predicted,
    ]


def _is_meant(card: ModelCard) -> ColumnElement[bool]:
    """Whether the model version predicts for the observation's instrument.

    Asked of each observation in turn: as a list of instruments, it would lead SQLite away from the order of ids.
    """
    query = select(instruments.c.id).where(
        instruments.c.id == observations.c.instrument_id,
        instruments.c.instrument_model.in_(sorted(card.instrument_models)),
    )
    restriction = card.restriction
    if not restriction.is_none:
        full_name = stations.c.name + "/" + instruments.c.name
        query = query.join(stations, stations.c.id == instruments.c.station_id).where(
            or_(stations.c.name.in_(restriction.stations), full_name.in_(restriction.instruments))
        )
    return query.correlate(observations).exists()


def find_live_mark(connection: Connection, now_unix_nanos: int) -> int:
    """The last observation before those that are fresh still.

    They are live after a restart, too: as backlog they would be overtaken by what their instruments measure next.
    """
    last_id = last_observation_id(connection)
    first_id = connection.scalar(
        select(func.min(observations.c.id)).where(
            observations.c.id > last_id - SCAN_IDS_MAX,
            observations.c.is_live,
            observations.c.capture_unix_nanos > now_unix_nanos - LIVE_AGE_NANOS,
        )
    )
    return last_id if first_id is None else first_id - 1


def last_observation_id(connection: Connection) -> int:
    """The highest id given; 0 where there is none."""
    return int(connection.scalar(select(func.max(observations.c.id))) or 0)


def load_item(
    pending: PendingObservation, read_segment: Callable[[Place], bytes]
) -> tuple[PendingObservation, WorkItem]:
    """Reads the payload, and with it what only the header says.

    Raises:
        BrokenStateError: The segment is damaged there.
    """
    place = pending.place
    try:
        observation = pb.Observation.FromString(read_segment(place))
    except DecodeError as error:
        where = f"at offset {place.offset} of segment {place.segment}"
        raise BrokenStateError(
            f"expected an observation {where}, but got: {error}",
            hint="restore the segment from a backup; the observation is then predicted after the next start",
        ) from error
    header = observation.header
    item = WorkItem(
        observation.payload,
        header.payload_encoding,
        header.payload_bytes,
        pending.instrument_model,
        pending.measure_unix_nanos,
        pending.calibration,
        pending.latitude_deg,
        pending.longitude_deg,
    )
    identity = Identity(header.station, header.epoch, header.sequence)
    return replace(pending, is_time_known=header.HasField("measure_time"), identity=identity), item


def read_settled(connection: Connection, model_row_id: int) -> int:
    """The settled mark as it stands in the database, where registering may have set it back."""
    query = select(model_versions.c.settled_observation_id).where(model_versions.c.id == model_row_id)
    return int(connection.scalar(query) or 0)


def move_settled(
    connection: Connection, card: ModelCard, *, expected: int, settled: int, with_provisional: bool = False
) -> int | None:
    """Moves the mark over what has its predictions, in a writer's transaction: nobody takes one away meanwhile.

    A prediction may have been taken away, to be made again, before the mark was so far that it had to be set back.

    Returns:
        Up to where nothing waits; None where somebody moved the mark, or restricted the model version, meanwhile.
    """
    waiting = _is_waiting(card, expected, settled, with_provisional)
    with by_index(connection):
        first_id = connection.scalar(select(observations.c.id).where(*waiting).order_by(observations.c.id).limit(1))
    reached = settled if first_id is None else first_id - 1
    here = (
        model_versions.c.id == card.row_id,
        model_versions.c.settled_observation_id == expected,
        model_versions.c.restriction == card.restriction.to_json(),
    )
    result = connection.execute(update(model_versions).where(*here).values(settled_observation_id=reached))
    return reached if result.rowcount == 1 else None
