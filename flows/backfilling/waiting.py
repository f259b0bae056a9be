"""What still waits for a model version in a piece of an instrument's time: a query, not a queue.

Runs inside transactions of others; goes by the index of instrument and measure time. Reads no payload.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, and_, case, exists, func, literal, select, tuple_

from flows.backfilling.span import Span
from server.prediction.course_rows import held_in_course
from server.prediction.pending import PendingObservation, pending_of, with_facts
from server.storage.tables import observations, predictions

Position = tuple[int, int]
"""(measure_unix_nanos, observation_id)."""


@dataclass(frozen=True, slots=True)
class SpanCounts:
    """What there is of a piece.

    Attributes:
        observation_count: Observations that the store holds.
        waiting_count: Those without a prediction of the version, or with one that is to be made again.
        failed_count: Those of which the version could not say anything.
    """

    observation_count: int
    waiting_count: int
    failed_count: int


def count_span(connection: Connection, model_row_id: int, span: Span) -> SpanCounts:
    """Counts a piece."""
    made = and_(predictions.c.observation_id == observations.c.id, predictions.c.model_version_id == model_row_id)
    is_waiting = predictions.c.id.is_(None) | predictions.c.is_provisional
    query = (
        select(
            func.count(),
            func.sum(case((is_waiting, 1), else_=0)),
            func.sum(case((predictions.c.is_failure, 1), else_=0)),
        )
        .select_from(observations.outerjoin(predictions, made))
        .where(*held_in_course(span.instrument.instrument_id, span.course))
    )
    observation_count, waiting_count, failed_count = connection.execute(query).one()
    return SpanCounts(observation_count, waiting_count or 0, failed_count or 0)


def list_waiting(
    connection: Connection, model_row_id: int, span: Span, after: Position | None, limit: int
) -> list[PendingObservation]:
    """The first observations of a piece after a position that have no prediction, by measure time and id."""
    is_predicted = exists().where(
        predictions.c.observation_id == observations.c.id, predictions.c.model_version_id == model_row_id
    )
    position = (observations.c.measure_unix_nanos, observations.c.id)
    query = select(observations).where(*held_in_course(span.instrument.instrument_id, span.course), ~is_predicted)
    if after is not None:
        # The first condition says nothing new, but it is the one that the index can start from.
        query = query.where(position[0] >= after[0], tuple_(*position) > tuple_(*map(literal, after)))
    chosen = query.order_by(*position).limit(limit).subquery()
    rows = connection.execute(
        with_facts(select(chosen.c.id), chosen).order_by(chosen.c.measure_unix_nanos, chosen.c.id)
    )
    return [pending_of(row) for row in rows]
