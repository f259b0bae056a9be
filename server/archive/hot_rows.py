"""The rows of what is still here although it is old: what must be known before they go, and their going.

Runs inside transactions of others. Decides nothing; knows no bag and no file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, delete, exists, func, select, update

from fieldpost.ranges import RangeSet
from fieldpost.v1 import receipt_pb2
from server.archive.bags import DayObservation, InstrumentDay
from server.models.card import ModelState
from server.storage.tables import epochs, instruments, model_versions, observations, predictions, segments


@dataclass(frozen=True, slots=True)
class HotPrediction:
    """A prediction that the store holds."""

    observation_id: int
    analysis: str
    version: int
    predict_unix_nanos: int


def read_settled_id(connection: Connection) -> int | None:
    """Nothing up to this observation waits for a model at work; None where there is no such model."""
    at_work = model_versions.c.state.in_([ModelState.ACTIVE, ModelState.SHADOW])
    found: int | None = connection.scalar(select(func.min(model_versions.c.settled_observation_id)).where(at_work))
    return found


def list_made(connection: Connection, observation_ids: Sequence[int]) -> list[HotPrediction]:
    """Every prediction on these observations."""
    columns = (model_versions.c.analysis, model_versions.c.version, predictions.c.predict_unix_nanos)
    query = select(predictions.c.observation_id, *columns).join(model_versions)
    rows = connection.execute(query.where(predictions.c.observation_id.in_(observation_ids)))
    return [HotPrediction(*row) for row in rows]


def let_go(connection: Connection, day: InstrumentDay, rows: Sequence[DayObservation]) -> None:
    """Deletes the rows, and keeps their sequences promised."""
    ids = [row.observation_id for row in rows]
    connection.execute(delete(predictions).where(predictions.c.observation_id.in_(ids)))
    connection.execute(delete(observations).where(observations.c.id.in_(ids)))
    here = instruments.c.id == day.instrument_id
    count = instruments.c.observation_count - len(rows)
    connection.execute(update(instruments).where(here).values(observation_count=count))
    for name in {row.epoch for row in rows}:
        _promise(connection, day, name, [row.sequence for row in rows if row.epoch == name])


def _promise(connection: Connection, day: InstrumentDay, epoch: str, sequences: Iterable[int]) -> None:
    station_id = select(instruments.c.station_id).where(instruments.c.id == day.instrument_id).scalar_subquery()
    here = (epochs.c.station_id == station_id, epochs.c.epoch == epoch)
    content = connection.scalar(select(epochs.c.pruned_ranges).where(*here))
    held = receipt_pb2.Receipt.FromString(content or b"").held_ranges
    ranges = RangeSet((each.first_sequence, each.last_sequence) for each in held)
    for sequence in sequences:
        ranges.add(sequence)
    pruned = [receipt_pb2.SequenceRange(first_sequence=first, last_sequence=last) for first, last in ranges]
    content = receipt_pb2.Receipt(held_ranges=pruned).SerializeToString()
    connection.execute(update(epochs).where(*here).values(pruned_ranges=content))


def find_segments(connection: Connection, names: Sequence[str]) -> set[str]:
    """Those of the segments that have a row."""
    return set(connection.scalars(select(segments.c.name).where(segments.c.name.in_(names))))


def list_empty_segments(connection: Connection, after_id: int, limit: int) -> tuple[list[str], int]:
    """Those of the next segments that no observation lies in, and the last id looked at; 0 at the end."""
    is_used = exists().where(observations.c.segment_id == segments.c.id)
    query = select(segments.c.id, segments.c.name, is_used).where(segments.c.id > after_id)
    rows = connection.execute(query.order_by(segments.c.id).limit(limit)).all()
    return [name for _, name, used in rows if not used], rows[-1][0] if len(rows) == limit else 0


def forget_segments(connection: Connection, names: Sequence[str], is_being_written: Callable[[str], bool]) -> list[str]:
    """Deletes the rows of those segments that no observation lies in and nobody writes to; returns their names."""
    is_used = exists().where(observations.c.segment_id == segments.c.id)
    unused = connection.scalars(select(segments.c.name).where(segments.c.name.in_(names), ~is_used))
    gone = [name for name in unused if not is_being_written(name)]
    connection.execute(delete(segments).where(segments.c.name.in_(gone)))
    return gone
