"""Writes what came of a stretch: predictions, what waits by them, and what is known after it, in one transaction.

Runs inside a transaction of the store. Decides nothing (server/prediction/course.py does).
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, delete, literal, select, tuple_, update

from server.prediction.course import Course, Position
from server.prediction.course_rows import POSITION, Head, held_in_course, state_of
from server.queries.predictions import NewPrediction, insert_unless_there, write_predictions
from server.storage.database import by_index
from server.storage.tables import follow_states, model_versions, observations, predictions


class OutdatedError(Exception):
    """Somebody else has followed the instrument since it was looked at; nothing was written."""


@dataclass(frozen=True, slots=True)
class StretchWrite:
    """What is written of a stretch, in one transaction, and only over what was seen when it was looked at.

    Another process may follow the same instrument, or this one did until it was told to stop, and writes its last.

    Attributes:
        model_row_id: The model version.
        instrument_id: Whose observations they are.
        course: Of which course.
        new: The predictions.
        replaced_ids: Those whose place they take, as they were seen; where somebody else has made them again, or was
            the first to make one, that stands.
        waiting_after: All final predictions of the course after this position are provisional from now on; None where
            they stand.
        head: What is known after the stretch, where it is the newest of the instrument; None otherwise.
        head_before: What it takes the place of, as it was seen; None where there was nothing.
    """

    model_row_id: int
    instrument_id: int
    course: Course
    new: list[NewPrediction]
    replaced_ids: list[int]
    waiting_after: Position | None
    head: Head | None
    head_before: Head | None


def write_stretch(connection: Connection, wanted: StretchWrite) -> int | None:
    """Writes a stretch; returns the first observation that waits by this, or None where none does.

    Raises:
        OutdatedError: The head is not the one that was seen.
    """
    if wanted.head is not None and not _replace_head(connection, wanted, wanted.head):
        raise OutdatedError
    mine = predictions.c.model_version_id == wanted.model_row_id
    if wanted.replaced_ids:
        connection.execute(delete(predictions).where(predictions.c.id.in_(wanted.replaced_ids)))
    if wanted.new:
        write_predictions(connection, wanted.new)
    waiting = [each.observation_id for each in wanted.new if each.is_provisional]
    if wanted.waiting_after is not None:
        held = held_in_course(wanted.instrument_id, wanted.course)
        later = observations.c.measure_unix_nanos >= wanted.waiting_after.measure_unix_nanos  # the index starts there
        is_after = tuple_(*POSITION) > tuple_(*map(literal, wanted.waiting_after))
        ids = select(observations.c.id).where(*held, later, is_after)
        with by_index(connection):
            made = (mine, ~predictions.c.is_provisional, predictions.c.observation_id.in_(ids))
            marked = update(predictions).where(*made).values(is_provisional=True)
            waiting += connection.scalars(marked.returning(predictions.c.observation_id))
    if waiting:  # as a retry does: what is settled has no observation that waits
        mark = model_versions.c.settled_observation_id
        here = (model_versions.c.id == wanted.model_row_id, mark >= min(waiting))
        connection.execute(update(model_versions).where(*here).values(settled_observation_id=min(waiting) - 1))
    return min(waiting, default=None)


def _replace_head(connection: Connection, wanted: StretchWrite, head: Head) -> bool:
    """Puts a head in the place of the one before it; returns whether that was still there."""
    values = {
        "course_start_unix_nanos": head.course_start_unix_nanos,
        "through_unix_nanos": head.through.measure_unix_nanos,
        "through_sequence": head.through.sequence,
        "through_sha256": head.through.sha256,
        "is_complete": head.is_complete,
        "state": head.state,
    }
    before = wanted.head_before
    if before is None:
        row = {"model_version_id": wanted.model_row_id, "instrument_id": wanted.instrument_id, **values}
        put = insert_unless_there(connection, follow_states).values(row).returning(follow_states.c.id)
        return connection.scalar(put) is not None
    is_before = (
        follow_states.c.course_start_unix_nanos == before.course_start_unix_nanos,
        follow_states.c.through_unix_nanos == before.through.measure_unix_nanos,
        follow_states.c.through_sequence == before.through.sequence,
        follow_states.c.through_sha256 == before.through.sha256,
        follow_states.c.is_complete == before.is_complete,
        follow_states.c.state == before.state,
    )
    here = state_of(wanted.model_row_id, wanted.instrument_id)
    return connection.execute(update(follow_states).where(*here, *is_before).values(values)).rowcount == 1
