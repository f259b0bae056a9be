"""The rows of a course: what is held of it, what stands, what is missing before it; and how a stretch is written.

Runs inside transactions of others. Decides nothing (server/prediction/course.py does), and reads no payload.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, delete, exists, func, insert, literal, select, tuple_, update

from fieldpost.ranges import RangeSet
from fieldpost.v1 import receipt_pb2
from server.prediction.course import Course, Gaps, Position, Standing
from server.prediction.pending import PendingObservation, pending_of, with_facts
from server.queries.predictions import NewPrediction, write_predictions
from server.storage.database import by_index
from server.storage.tables import epochs, follow_states, model_versions, observations, predictions

FACTS = 13
"""Columns of a row that pending_of() takes."""


@dataclass(frozen=True, slots=True)
class CourseRow:
    """An observation of a course, and what stands of it."""

    pending: PendingObservation
    position: Position
    epoch_id: int
    standing: Standing


@dataclass(frozen=True, slots=True)
class Head:
    """Up to where an instrument's newest course was followed, and what the model version knows there."""

    course_start_unix_nanos: int
    through: Position
    is_complete: bool
    state: bytes


@dataclass(frozen=True, slots=True)
class StretchWrite:
    """What is written of a stretch, in one transaction.

    Attributes:
        model_row_id: The model version.
        instrument_id: Whose observations they are.
        course: Of which course.
        new: The predictions.
        remade_ids: Observations whose predictions they take the place of.
        waiting_after: All final predictions of the course after this position are provisional from now on; None where
            they stand.
        head: What is known after the stretch, where it is the newest of the instrument; None otherwise.
    """

    model_row_id: int
    instrument_id: int
    course: Course
    new: list[NewPrediction]
    remade_ids: list[int]
    waiting_after: Position | None
    head: Head | None


def read_head(connection: Connection, model_row_id: int, instrument_id: int) -> Head | None:
    """What was written last of an instrument; None where there is nothing."""
    row = connection.execute(select(follow_states).where(*_of(model_row_id, instrument_id))).one_or_none()
    if row is None:
        return None
    through = Position(row.through_unix_nanos, row.through_sequence, row.through_sha256)
    return Head(row.course_start_unix_nanos, through, row.is_complete, row.state)


def list_after(
    connection: Connection, model_row_id: int, instrument_id: int, course: Course, after: Position | None, limit: int
) -> list[CourseRow]:
    """The first observations of a course after a position, in order; from its first one where after is None."""
    chosen = (
        select(observations)
        .where(*_held(observations, instrument_id, course), *_after(after))
        .order_by(*_POSITION)
        .limit(limit)
        .subquery()
    )
    stands = and_(predictions.c.model_version_id == model_row_id, predictions.c.observation_id == chosen.c.id)
    query = (
        with_facts(select(chosen.c.id), chosen)
        .add_columns(chosen.c.sequence, chosen.c.sha256, chosen.c.epoch_id, predictions.c.is_provisional)
        .outerjoin(predictions, stands)
        .order_by(chosen.c.measure_unix_nanos, chosen.c.sequence, chosen.c.sha256)
    )
    return [_to_course_row(row) for row in connection.execute(query)]


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
    where = [*_held(observations, instrument_id, span), ~stands]
    if through is not None:
        where += [
            observations.c.measure_unix_nanos <= through.measure_unix_nanos,
            tuple_(*_POSITION) <= tuple_(*map(literal, through)),
        ]
    return connection.scalar(select(observations.c.id).where(*where).limit(1)) is not None


def find_reach(connection: Connection, instrument_id: int, course: Course) -> dict[int, int]:
    """By epoch, the last sequence that is held of a course."""
    query = select(observations.c.epoch_id, func.max(observations.c.sequence))
    rows = connection.execute(
        query.where(*_held(observations, instrument_id, course)).group_by(observations.c.epoch_id)
    )
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
        if any(first <= sequence and last > after for first, last in _read_pruned(connection, epoch_id)):
            return True
    return False


def write_stretch(connection: Connection, wanted: StretchWrite) -> int | None:
    """Writes a stretch; returns the first observation that waits by this, or None where none does."""
    mine = predictions.c.model_version_id == wanted.model_row_id
    connection.execute(delete(predictions).where(mine, predictions.c.observation_id.in_(wanted.remade_ids)))
    if wanted.new:
        write_predictions(connection, wanted.new)
    waiting = [each.observation_id for each in wanted.new if each.is_provisional]
    if wanted.waiting_after is not None:
        held = _held(observations, wanted.instrument_id, wanted.course)
        ids = select(observations.c.id).where(*held, *_after(wanted.waiting_after))
        with by_index(connection):
            made = (mine, ~predictions.c.is_provisional, predictions.c.observation_id.in_(ids))
            marked = update(predictions).where(*made).values(is_provisional=True)
            waiting += connection.scalars(marked.returning(predictions.c.observation_id))
    if waiting:  # as a retry does: what is settled has no observation that waits
        mark = model_versions.c.settled_observation_id
        here = (model_versions.c.id == wanted.model_row_id, mark >= min(waiting))
        connection.execute(update(model_versions).where(*here).values(settled_observation_id=min(waiting) - 1))
    if wanted.head is not None:
        _write_head(connection, wanted.model_row_id, wanted.instrument_id, wanted.head)
    return min(waiting, default=None)


def _write_head(connection: Connection, model_row_id: int, instrument_id: int, head: Head) -> None:
    values = {
        "course_start_unix_nanos": head.course_start_unix_nanos,
        "through_unix_nanos": head.through.measure_unix_nanos,
        "through_sequence": head.through.sequence,
        "through_sha256": head.through.sha256,
        "is_complete": head.is_complete,
        "state": head.state,
    }
    here = _of(model_row_id, instrument_id)
    if connection.execute(update(follow_states).where(*here).values(values)).rowcount == 0:
        row = {"model_version_id": model_row_id, "instrument_id": instrument_id, **values}
        connection.execute(insert(follow_states).values(row))


_POSITION = (observations.c.measure_unix_nanos, observations.c.sequence, observations.c.sha256)


def _of(model_row_id: int, instrument_id: int) -> tuple[ColumnElement[bool], ...]:
    return follow_states.c.model_version_id == model_row_id, follow_states.c.instrument_id == instrument_id


def _held(table: Any, instrument_id: int, course: Course) -> tuple[ColumnElement[bool], ...]:
    measured = table.c.measure_unix_nanos
    within = (measured >= course.start_unix_nanos, measured < course.end_unix_nanos)
    return table.c.instrument_id == instrument_id, *within


def _after(position: Position | None) -> tuple[ColumnElement[bool], ...]:
    if position is None:
        return ()
    # The first condition says nothing new, but it is the one that the index can start from.
    later = observations.c.measure_unix_nanos >= position.measure_unix_nanos
    return later, tuple_(*_POSITION) > tuple_(*map(literal, position))


def _to_course_row(row: Any) -> CourseRow:
    sequence, sha256, epoch_id, is_provisional = row[FACTS:]
    pending = pending_of(row)
    standing = {None: Standing.MISSING, True: Standing.PROVISIONAL, False: Standing.FINAL}[is_provisional]
    return CourseRow(pending, Position(pending.measure_unix_nanos, sequence, sha256), epoch_id, standing)


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
    """When the observation was captured that comes after the newest missing sequence between two; None for no gap."""
    pruned = _read_pruned(connection, epoch_id)
    one_before = observations.alias()
    is_held = exists().where(one_before.c.epoch_id == epoch_id, one_before.c.sequence == observations.c.sequence - 1)
    query = select(observations.c.sequence, observations.c.capture_unix_nanos).order_by(observations.c.sequence.desc())
    while True:
        within = (observations.c.sequence > after + 1, observations.c.sequence <= until)
        row = connection.execute(query.where(observations.c.epoch_id == epoch_id, *within, ~is_held).limit(1)).first()
        if row is None or row.sequence - 1 not in pruned:
            return None if row is None else int(row.capture_unix_nanos)
        until = row.sequence - 1  # it was held, and let go


def _read_pruned(connection: Connection, epoch_id: int) -> RangeSet:
    content = connection.scalar(select(epochs.c.pruned_ranges).where(epochs.c.id == epoch_id))
    ranges = receipt_pb2.Receipt.FromString(content or b"").held_ranges
    return RangeSet((each.first_sequence, each.last_sequence) for each in ranges)
