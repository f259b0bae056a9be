"""Days of instruments: what the store holds of each, and the record of the bags that were made of them.

A look at a day goes page by page and may take a while; an Extent keeps every page to what was there when the look
began. Knows no file and no bag, only their rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Select, exists, func, insert, literal, select, tuple_

from fieldpost.errors import BrokenStateError
from server.storage.segments import Place
from server.storage.tables import (
    bags,
    epochs,
    instruments,
    model_versions,
    observations,
    predictions,
    segments,
    stations,
)

NANOS_PER_DAY = 86_400 * 10**9
Position = tuple[int, int, int]
"""(measure_unix_nanos, sequence, observation_id): the order in which a day is read."""


@dataclass(frozen=True, slots=True)
class InstrumentDay:
    """One UTC day of one instrument, with what the registry says of the instrument."""

    instrument_id: int
    station: str
    instrument: str
    day: date
    instrument_model: str
    latitude_deg: float | None
    longitude_deg: float | None
    altitude_m: float | None
    calibration: float | None

    @property
    def first_unix_nanos(self) -> int:
        """The first instant of the day."""
        return day_to_unix_nanos(self.day)

    def __str__(self) -> str:
        return f"{self.station}/{self.instrument} of {self.day}"


@dataclass(frozen=True, slots=True)
class Extent:
    """How far a look reaches: rows are only ever added with larger ids, so these two bound what it sees.

    A prediction that is made again goes, and comes back with a larger id: then a second look sees less than the first.
    """

    last_observation_id: int
    last_prediction_id: int


@dataclass(frozen=True, slots=True)
class DayObservation:
    """The row of one observation."""

    observation_id: int
    epoch: str
    sequence: int
    measure_unix_nanos: int
    capture_unix_nanos: int
    payload_bytes: int
    sha256: bytes
    place: Place

    @property
    def position(self) -> Position:
        """Where it stands in its day."""
        return self.measure_unix_nanos, self.sequence, self.observation_id


@dataclass(frozen=True, slots=True)
class DayModel:
    """A model version that has predictions on a day."""

    model_row_id: int
    analysis: str
    version: int


@dataclass(frozen=True, slots=True)
class DayPrediction:
    """The row of one prediction, beside the identity of its observation."""

    observation_id: int
    epoch: str
    sequence: int
    measure_unix_nanos: int
    """Of the observation."""
    predict_unix_nanos: int
    content: bytes
    """A serialized fieldpost.v1.Prediction that has only samples, variables and failure."""
    is_provisional: bool = False
    """Whether it will be made again."""

    @property
    def position(self) -> Position:
        """Where its observation stands in its day."""
        return self.measure_unix_nanos, self.sequence, self.observation_id


@dataclass(frozen=True, slots=True)
class BagRecord:
    """What is recorded of a bag.

    Attributes:
        version: 1, 2, 3 and so on.
        path: Relative to the shelf, with forward slashes.
        manifest_sha256: Of the file manifest-sha256.txt, in hexadecimal digits.
        observation_count: Observations in it.
        prediction_count: Predictions in it, of all model versions together.
        archive_unix_nanos: When it was made.
        payload_bytes: The instrument's bytes; None in a bag of an older version of this software.
        bag_bytes: Of all its files; likewise.
        check_unix_nanos: When it was last read from its first to its last byte and found whole; None: not since then.
        copy_unix_nanos: When its copy in the second place was last read so; None where there is none.
        damage: What a scrub found wrong with the bag or its copy and could not repair; empty where all is well.
    """

    version: int
    path: str
    manifest_sha256: str
    observation_count: int
    prediction_count: int
    archive_unix_nanos: int
    payload_bytes: int | None = None
    bag_bytes: int | None = None
    check_unix_nanos: int | None = None
    copy_unix_nanos: int | None = None
    damage: str = ""


def day_to_unix_nanos(day: date) -> int:
    """The first instant of a UTC day."""
    return (day - date(1970, 1, 1)).days * NANOS_PER_DAY


def list_instrument_days(
    connection: Connection, first_day: date, last_day: date, *, station: str = "", instrument: str = ""
) -> list[InstrumentDay]:
    """The days, both ends included, of which the store holds observations; by station, instrument and day.

    Args:
        connection: For reading.
        first_day: The first UTC day of measure time.
        last_day: The last one.
        station: Only this station; empty for all.
        instrument: Only instruments of this name; empty for all.
    """
    facts = [instruments.c[name] for name in ("instrument_model", "latitude_deg", "longitude_deg", "altitude_m")]
    query = (
        select(instruments.c.id, stations.c.name, instruments.c.name, *facts, instruments.c.calibration)
        .join(stations, stations.c.id == instruments.c.station_id)
        .order_by(stations.c.name, instruments.c.name)
    )
    if station:
        query = query.where(stations.c.name == station)
    if instrument:
        query = query.where(instruments.c.name == instrument)
    return [
        InstrumentDay(row[0], row[1], row[2], day, *row[3:])
        for row in connection.execute(query).all()
        for day in _observed_days(connection, row[0], first_day, last_day)
    ]


def _observed_days(connection: Connection, instrument_id: int, first_day: date, last_day: date) -> Iterator[date]:
    """The days of an instrument that have observations: one look into the index for each, however many they have."""
    first, end = day_to_unix_nanos(first_day), day_to_unix_nanos(last_day) + NANOS_PER_DAY
    measured = observations.c.measure_unix_nanos
    while True:
        within = (observations.c.instrument_id == instrument_id, measured >= first, measured < end)
        earliest = connection.scalar(select(func.min(measured)).where(*within))
        if earliest is None:
            return
        day_number = earliest // NANOS_PER_DAY
        yield date(1970, 1, 1) + timedelta(days=day_number)
        first = (day_number + 1) * NANOS_PER_DAY


def read_extent(connection: Connection) -> Extent:
    """What is there now."""
    last_ids = (connection.scalar(select(func.max(table.c.id))) or 0 for table in (observations, predictions))
    return Extent(*last_ids)


def list_day_observations(
    connection: Connection, day: InstrumentDay, extent: Extent, after: Position | None, limit: int
) -> list[DayObservation]:
    """The first observations of the day after a position, in order; from the day's first one where after is None."""
    query = (
        select(
            observations.c.id,
            epochs.c.epoch,
            observations.c.sequence,
            observations.c.measure_unix_nanos,
            observations.c.capture_unix_nanos,
            observations.c.payload_bytes,
            observations.c.sha256,
            segments.c.name,
            observations.c.segment_offset,
            observations.c.stored_bytes,
        )
        .join(epochs, epochs.c.id == observations.c.epoch_id)
        .join(segments, segments.c.id == observations.c.segment_id)
    )
    rows = connection.execute(_page(query, day, extent, after, limit))
    return [DayObservation(row[0], row[1], row[2], row[3], row[4], row[5], row[6], Place(*row[7:])) for row in rows]


def list_day_models(connection: Connection, day: InstrumentDay, extent: Extent) -> list[DayModel]:
    """The model versions that have predictions on the day, by analysis and version."""
    is_used = (
        exists()
        .where(
            predictions.c.model_version_id == model_versions.c.id,
            predictions.c.id <= extent.last_prediction_id,
            predictions.c.observation_id == observations.c.id,
            *_of_day(day, extent),
        )
        .correlate(model_versions)
    )
    query = select(model_versions.c.id, model_versions.c.analysis, model_versions.c.version).where(is_used)
    rows = connection.execute(query.order_by(model_versions.c.analysis, model_versions.c.version))
    return [DayModel(*row) for row in rows]


def list_day_predictions(
    connection: Connection, day: InstrumentDay, extent: Extent, model: DayModel, after: Position | None, limit: int
) -> list[DayPrediction]:
    """The first predictions of a model version on observations of the day after a position, in order."""
    query = (
        select(
            observations.c.id,
            epochs.c.epoch,
            observations.c.sequence,
            observations.c.measure_unix_nanos,
            predictions.c.predict_unix_nanos,
            predictions.c.content,
            predictions.c.is_provisional,
        )
        .join(epochs, epochs.c.id == observations.c.epoch_id)
        .join(predictions, predictions.c.observation_id == observations.c.id)
        .where(predictions.c.model_version_id == model.model_row_id, predictions.c.id <= extent.last_prediction_id)
    )
    return [DayPrediction(*row) for row in connection.execute(_page(query, day, extent, after, limit))]


def newest_bag(connection: Connection, day: InstrumentDay) -> BagRecord | None:
    """The bag of the day that has the highest version; None where the day was never archived."""
    query = select(bags).where(*_bags_of(day)).order_by(bags.c.version.desc()).limit(1)
    row = connection.execute(query).one_or_none()
    return None if row is None else to_record(row)


def has_bags(connection: Connection) -> bool:
    """Whether anything was ever archived."""
    return connection.scalar(select(bags.c.id).limit(1)) is not None


def write_bag(connection: Connection, day: InstrumentDay, record: BagRecord) -> None:
    """Records a bag; recording the same bag again changes nothing.

    Raises:
        BrokenStateError: Another bag is recorded under this version.
    """
    query = select(bags).where(*_bags_of(day), bags.c.version == record.version)
    row = connection.execute(query).one_or_none()
    if row is None:
        connection.execute(
            insert(bags).values(
                instrument_id=day.instrument_id,
                day=day.day.isoformat(),
                version=record.version,
                path=record.path,
                manifest_sha256=record.manifest_sha256,
                observation_count=record.observation_count,
                prediction_count=record.prediction_count,
                archive_unix_nanos=record.archive_unix_nanos,
                payload_bytes=record.payload_bytes,
                bag_bytes=record.bag_bytes,
                check_unix_nanos=record.check_unix_nanos,
            )
        )
    elif row.manifest_sha256 != record.manifest_sha256:
        raise BrokenStateError(
            f"expected no other bag recorded as version {record.version} of {day}, but there is one with manifest "
            f"{row.manifest_sha256}, not {record.manifest_sha256}",
            hint="two archive folders were written for one database; keep one of them",
        )


def _bags_of(day: InstrumentDay) -> tuple[ColumnElement[bool], ...]:
    return bags.c.instrument_id == day.instrument_id, bags.c.day == day.day.isoformat()


def _of_day(day: InstrumentDay, extent: Extent) -> tuple[ColumnElement[bool], ...]:
    return (
        observations.c.instrument_id == day.instrument_id,
        observations.c.measure_unix_nanos >= day.first_unix_nanos,
        observations.c.measure_unix_nanos < day.first_unix_nanos + NANOS_PER_DAY,
        observations.c.id <= extent.last_observation_id,
    )


def _page(query: Select[Any], day: InstrumentDay, extent: Extent, after: Position | None, limit: int) -> Select[Any]:
    position = (observations.c.measure_unix_nanos, observations.c.sequence, observations.c.id)
    query = query.where(*_of_day(day, extent)).order_by(*position).limit(limit)
    if after is None:
        return query
    # The first condition says nothing new, but it is the one that the index can start from.
    return query.where(observations.c.measure_unix_nanos >= after[0], tuple_(*position) > tuple_(*map(literal, after)))


def to_record(row: Row[Any]) -> BagRecord:
    """A row of the table bag."""
    return BagRecord(
        row.version,
        row.path,
        row.manifest_sha256,
        row.observation_count,
        row.prediction_count,
        row.archive_unix_nanos,
        row.payload_bytes,
        row.bag_bytes,
        row.check_unix_nanos,
        row.copy_unix_nanos,
        row.damage,
    )
