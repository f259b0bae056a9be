"""The rows of a course: what is held of it, what stands, and what is missing before it.

Runs inside transactions of others. Decides nothing (server/prediction/course.py does), and reads no payload.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    and_,
    bindparam,
    exists,
    func,
    literal,
    select,
    tuple_,
)

from fieldpost.ranges import RangeSet
from fieldpost.v1 import receipt_pb2
from server.prediction.course import Course, Gaps, Position, Standing
from server.prediction.pending import PendingObservation, pending_of, with_facts
from server.storage.tables import epochs, follow_states, observations, predictions

FACTS = 13
"""Columns of a row that pending_of() takes."""


@dataclass(frozen=True, slots=True)
class CourseRow:
    """An observation of a course, and what stands of it; without a prediction, no prediction_id."""

    pending: PendingObservation
    position: Position
    epoch_id: int
    standing: Standing
    prediction_id: int | None


@dataclass(frozen=True, slots=True)
class Head:
    """Up to where an instrument's newest course was followed, and what the model version knows there."""

    course_start_unix_nanos: int
    through: Position
    is_complete: bool
    state: bytes


def read_head(connection: Connection, model_row_id: int, instrument_id: int) -> Head | None:
    """What was written last of an instrument; None where there is nothing."""
    row = connection.execute(select(follow_states).where(*state_of(model_row_id, instrument_id))).one_or_none()
    if row is None:
        return None
    through = Position(row.through_unix_nanos, row.through_sequence, row.through_sha256)
    return Head(row.course_start_unix_nanos, through, row.is_complete, row.state)


def list_after(
    connection: Connection, model_row_id: int, instrument_id: int, course: Course, after: Position | None, limit: int
) -> list[CourseRow]:
    """The first observations of a course after a position, in order; from its first one where after is None.

    Where more than these have one position, all of them.
    """
    asked: dict[str, object] = {
        "model_row_id": model_row_id,
        "instrument_id": instrument_id,
        "start": course.start_unix_nanos,
        "end": course.end_unix_nanos,
        "count": limit,
    }
    query = _FROM_START if after is None else _FROM_POSITION
    asked |= {} if after is None else after._asdict()
    rows = [_to_course_row(row) for row in connection.execute(query, asked)]
    if len(rows) == limit and rows[0].position == rows[-1].position:
        return list_after(connection, model_row_id, instrument_id, course, after, 2 * limit)
    return rows


def has_waiting(
    connection: Connection,
    model_row_id: int,
    instrument_id: int,
    course: Course,
    from_unix_nanos: int,
    through: Position | None,
    *,
    with_provisional: bool,
) -> bool:
    """Whether an observation of a course waits, measured then or later and at most at a position (None: anywhere)."""
    stands = exists().where(
        predictions.c.observation_id == observations.c.id,
        predictions.c.model_version_id == model_row_id,
    )
    if with_provisional:
        stands = stands.where(~predictions.c.is_provisional)
    span = Course(max(course.start_unix_nanos, from_unix_nanos), course.end_unix_nanos)
    where = [*held_in_course(instrument_id, span), ~stands]
    if through is not None:
        where += [
            observations.c.measure_unix_nanos <= through.measure_unix_nanos,
            tuple_(*POSITION) <= tuple_(*map(literal, through)),
        ]
    return connection.scalar(select(observations.c.id).where(*where).limit(1)) is not None


def find_reach(connection: Connection, instrument_id: int, course: Course) -> dict[int, int]:
    """By epoch, the last sequence that is held of a course."""
    query = select(observations.c.epoch_id, func.max(observations.c.sequence))
    rows = connection.execute(query.where(*held_in_course(instrument_id, course)).group_by(observations.c.epoch_id))
    return {row[0]: row[1] for row in rows}


def look_for_gaps(
    connection: Connection, instrument_id: int, course: Course, gaps: Gaps, reach: dict[int, int]
) -> Gaps:
    """Looks at the sequences between what was looked at already and a reach, by epoch.

    A station gives its observations, of all its instruments together, sequences that ascend with their capture. So
    nothing is missing where all sequences are held since the instrument's last observation before the course.
    """
    checked, seen = dict(gaps.checked), gaps.seen_unix_nanos
    for epoch_id, sequence in reach.items():
        after = checked.get(epoch_id)
        if after is None:
            after = _last_before(connection, instrument_id, course, epoch_id)
        if sequence > after:
            found = _newest_gap(connection, epoch_id, after, sequence)
            seen = found if seen is None else max(seen, found or 0)
        checked[epoch_id] = max(sequence, after)
    return Gaps(checked, seen)


def is_cut_off(connection: Connection, instrument_id: int, course: Course, reach: dict[int, int]) -> bool:
    """Whether observations that may be of the course, up to a reach, were let go: what stands was made with them."""
    for epoch_id, sequence in reach.items():
        after = _last_before(connection, instrument_id, course, epoch_id)
        if any(
            first <= sequence and last > after
            for first, last in _read_ranges(connection, epoch_id, epochs.c.pruned_ranges)
        ):
            return True
    return False


POSITION = (observations.c.measure_unix_nanos, observations.c.sequence, observations.c.sha256)
_ORDER = (*POSITION, observations.c.capture_unix_nanos, observations.c.epoch_id)
"""As of Turn."""
_TYPES = {column.name: column.type for column in POSITION}


def state_of(model_row_id: int, instrument_id: int) -> tuple[ColumnElement[bool], ...]:
    """That a row of states is this one."""
    return follow_states.c.model_version_id == model_row_id, follow_states.c.instrument_id == instrument_id


def held_in_course(instrument_id: int, course: Course) -> tuple[ColumnElement[bool], ...]:
    """That an observation is of a course."""
    measured = observations.c.measure_unix_nanos
    within = (measured >= course.start_unix_nanos, measured < course.end_unix_nanos)
    return observations.c.instrument_id == instrument_id, *within


def _make_list_query(*after: ColumnElement[bool]) -> Select[Any]:
    here = (
        observations.c.instrument_id == bindparam("instrument_id"),
        observations.c.measure_unix_nanos >= bindparam("start"),
        observations.c.measure_unix_nanos < bindparam("end"),
    )
    chosen = select(observations).where(*here, *after).order_by(*_ORDER).limit(bindparam("count")).subquery()
    is_mine = predictions.c.model_version_id == bindparam("model_row_id")
    return (
        with_facts(select(chosen.c.id), chosen)
        .add_columns(chosen.c.sequence, chosen.c.sha256, chosen.c.epoch_id)
        .add_columns(predictions.c.id, predictions.c.is_provisional)
        .outerjoin(predictions, and_(is_mine, predictions.c.observation_id == chosen.c.id))
        .order_by(*(chosen.c[column.name] for column in _ORDER))
    )


# Made once: to make them anew for each observation costs far more than to run them.
_FROM_START = _make_list_query()
_FROM_POSITION = _make_list_query(
    # The first condition says nothing new, but it is the one that the index can start from.
    observations.c.measure_unix_nanos >= bindparam("measure_unix_nanos"),
    tuple_(*POSITION) > tuple_(*(bindparam(name, type_=_TYPES[name]) for name in Position._fields)),
)
_one_before = observations.alias()
_BEHIND_GAP = select(observations.c.sequence, observations.c.capture_unix_nanos).where(
    observations.c.epoch_id == bindparam("epoch_id"),
    observations.c.sequence > bindparam("first"),
    observations.c.sequence <= bindparam("last"),
    ~exists().where(
        _one_before.c.epoch_id == observations.c.epoch_id, _one_before.c.sequence == observations.c.sequence - 1
    ),
)


def _to_course_row(row: Any) -> CourseRow:
    sequence, sha256, epoch_id, prediction_id, is_provisional = row[FACTS:]
    pending = pending_of(row)
    standing = {None: Standing.MISSING, True: Standing.PROVISIONAL, False: Standing.FINAL}[is_provisional]
    return CourseRow(pending, Position(pending.measure_unix_nanos, sequence, sha256), epoch_id, standing, prediction_id)


def _last_before(connection: Connection, instrument_id: int, course: Course, epoch_id: int) -> int:
    """The sequence of the instrument's last observation before a course, where it is of this epoch; otherwise 0."""
    before = (
        observations.c.instrument_id == instrument_id,
        observations.c.measure_unix_nanos < course.start_unix_nanos,
    )
    newest = (observations.c.measure_unix_nanos.desc(), observations.c.id.desc())
    query = select(observations.c.epoch_id, observations.c.sequence).where(*before).order_by(*newest).limit(1)
    row = connection.execute(query).one_or_none()
    return int(row.sequence) if row is not None and row.epoch_id == epoch_id else 0


def _newest_gap(connection: Connection, epoch_id: int, after: int, until: int) -> int | None:
    """When the last observation was captured that comes after a missing sequence between two; None for no gap.

    The last by capture: however the two are cut, the whole then says the same as its parts.
    """
    if until <= after + 1:
        return None
    shown = connection.execute(_BEHIND_GAP, {"epoch_id": epoch_id, "first": after + 1, "last": until}).all()
    not_coming = RangeSet()
    if shown:
        not_coming = _read_ranges(connection, epoch_id, epochs.c.pruned_ranges, epochs.c.lost_ranges)
    return max((row.capture_unix_nanos for row in shown if row.sequence - 1 not in not_coming), default=None)


def _read_ranges(connection: Connection, epoch_id: int, *columns: ColumnElement[bytes | None]) -> RangeSet:
    row = connection.execute(select(*columns).where(epochs.c.id == epoch_id)).one_or_none()
    receipts = [receipt_pb2.Receipt.FromString(content or b"") for content in row or ()]
    return RangeSet((part.first_sequence, part.last_sequence) for each in receipts for part in each.held_ranges)
