"""Predictions: written once for each observation and model version, listed by time, watched by number, tried again.

What a model version predicted is served once it has been active, or to who names that version.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from sqlalchemy import Connection, Insert, Row, Select, Table, bindparam, delete, func, select, update
from sqlalchemy.dialects import postgresql, sqlite

from fieldpost.errors import InvalidRequestError
from fieldpost.v1 import prediction_pb2
from server.analyses import AnalysisResult
from server.models.card import ModelState
from server.queries.pages import TimeSpan, make_token, next_positions, page_size, parse_token
from server.queries.stations import find_instrument_ids
from server.storage.tables import epochs, instruments, model_versions, observations, predictions, stations
from server.workers.jobs import ModelKey

PAGE_BYTES_MAX = 2 * 1024 * 1024
"""Of the contents of a page that has more than one prediction: a message may be 4 MiB, if its reader said nothing."""
WATCH_SPAN = 50_000
"""Rows that one look of a watcher passes at most: one that wants few of many sees how far it has come."""


@dataclass(frozen=True, slots=True)
class NewPrediction:
    """A prediction that is to be written."""

    observation_id: int
    model_row_id: int
    instrument_id: int
    measure_unix_nanos: int
    predict_unix_nanos: int
    content: bytes
    is_failure: bool
    is_time_news: bool = False
    """Whether measure_unix_nanos was found in the payload, and is to be that of the observation from now on."""
    is_provisional: bool = False


@dataclass(frozen=True, slots=True)
class PredictionFilter:
    """Which predictions are meant; what is left empty matches all."""

    station: str = ""
    instrument: str = ""
    analysis: str = ""
    model_version: int = 0
    start_unix_nanos: int | None = None
    end_unix_nanos: int | None = None

    def __post_init__(self) -> None:
        if self.instrument and not self.station:
            raise InvalidRequestError("expected a station together with an instrument", hint="name the station too")
        if self.model_version and not self.analysis:
            raise InvalidRequestError(
                "expected an analysis together with a model version", hint="name the analysis too"
            )

    @property
    def span(self) -> TimeSpan:
        """The instants, together."""
        return TimeSpan(self.start_unix_nanos, self.end_unix_nanos)


def encode_result(result: AnalysisResult) -> bytes:
    """The part of a prediction that its row keeps as bytes."""
    content = prediction_pb2.Prediction()
    content.sample_unix_nanos.extend(result.sample_unix_nanos.tolist())
    for each in result.variables:
        content.variables.add(
            name=each.name, unit=each.unit, values=each.values.tolist(), flag_meanings=each.flag_meanings
        )
    return content.SerializeToString()


def encode_failure(failure: str) -> bytes:
    """The same, where there is no result."""
    return prediction_pb2.Prediction(failure=failure).SerializeToString()


def write_predictions(connection: Connection, new: Sequence[NewPrediction]) -> None:
    """Writes predictions; one that exists is left as it is."""
    rows = [
        {
            "observation_id": each.observation_id,
            "model_version_id": each.model_row_id,
            "instrument_id": each.instrument_id,
            "measure_unix_nanos": each.measure_unix_nanos,
            "predict_unix_nanos": each.predict_unix_nanos,
            "content": each.content,
            "is_failure": each.is_failure,
            "is_provisional": each.is_provisional,
        }
        for each in new
    ]
    connection.execute(insert_unless_there(connection, predictions), rows)
    found = [
        {"found_id": each.observation_id, "found_nanos": each.measure_unix_nanos} for each in new if each.is_time_news
    ]
    if found:
        # Once and for good: the places of observations in time are not to move under those who go by them.
        untold = observations.c.measure_unix_nanos == observations.c.capture_unix_nanos
        here = (observations.c.id == bindparam("found_id"), untold)
        connection.execute(update(observations).where(*here).values(measure_unix_nanos=bindparam("found_nanos")), found)


def insert_unless_there(connection: Connection, table: Table) -> Insert:
    """An insert that does nothing where the row is there already."""
    if connection.dialect.name == "postgresql":
        return postgresql.insert(table).on_conflict_do_nothing()
    return sqlite.insert(table).on_conflict_do_nothing()


def list_predictions(
    connection: Connection, wanted: PredictionFilter, wanted_size: int, page_token: str
) -> tuple[list[prediction_pb2.Prediction], str]:
    """One page, ordered by measure time and then id, and the token of the next one (empty at the end).

    Raises:
        InvalidRequestError: The token is not one of ours.
    """
    after, size = parse_token(page_token), page_size(wanted_size)
    versions = _served_versions(connection, wanted)
    if not versions:
        return [], ""
    instrument_ids = find_instrument_ids(connection, wanted.station, wanted.instrument)
    found = next_positions(connection, predictions, instrument_ids, wanted.span, after, size, versions)
    sizes = select(predictions.c.id, _SIZE).where(predictions.c.id.in_([each.row_id for each in found]))
    size_of = {row.id: row.size_bytes for row in connection.execute(sizes)}
    page = found[: _fitting([size_of[each.row_id] for each in found])]
    token = make_token(page[-1]) if len(found) == size or len(page) < len(found) else ""
    return _read(connection, [each.row_id for each in page]), token


def list_after(
    wanted: PredictionFilter, connection: Connection, after_id: int, limit: int
) -> tuple[list[prediction_pb2.Prediction], int, bool]:
    """The first predictions numbered above after_id, by number.

    Returns:
        The predictions, up to which number everything has been looked at, and whether that is all there is.
    """
    last_id, after_id = last_prediction_id(connection), max(after_id, 0)
    end_id = min(last_id, after_id + WATCH_SPAN)
    query = (
        select(predictions.c.id, _SIZE)
        .where(
            predictions.c.id > after_id,
            predictions.c.id <= end_id,
            predictions.c.model_version_id.in_(_served_versions(connection, wanted)),
        )
        .order_by(predictions.c.id)
        .limit(limit)
    )
    if wanted.station:
        instrument_ids = find_instrument_ids(connection, wanted.station, wanted.instrument)
        query = query.where(predictions.c.instrument_id.in_(instrument_ids))
    found = connection.execute(query).all()
    page = [row_id for row_id, _ in found[: _fitting([size_bytes for _, size_bytes in found])]]
    is_cut = len(found) == limit or len(page) < len(found)
    seen_id = page[-1] if is_cut else max(end_id, after_id)
    return _read(connection, page), seen_id, seen_id >= last_id


_SIZE = func.length(predictions.c.content).label("size_bytes")


def _fitting(sizes_bytes: Sequence[int]) -> int:
    """How many of these contents, from the first on, go together; one at least, if there is one."""
    ends = list(accumulate(sizes_bytes))
    return max(bisect_right(ends, PAGE_BYTES_MAX), min(1, len(ends)))


def _read(connection: Connection, ids: Sequence[int]) -> list[prediction_pb2.Prediction]:
    rows = {row.id: row for row in connection.execute(_select().where(predictions.c.id.in_(ids)))}
    return [_to_message(rows[each]) for each in ids]


def last_prediction_id(connection: Connection) -> int:
    """The highest number given; 0 where there is none."""
    return int(connection.scalar(select(func.max(predictions.c.id))) or 0)


def count_provisional(connection: Connection) -> dict[ModelKey, int]:
    """How many predictions of each model version at work are to be made again; versions without any are left out."""
    at_work = model_versions.c.state.in_([ModelState.ACTIVE, ModelState.SHADOW])
    counted = (  # first, and by their own index: there are few
        select(predictions.c.model_version_id, func.count().label("count"))
        .where(predictions.c.is_provisional)
        .group_by(predictions.c.model_version_id)
        .subquery()
    )
    query = select(model_versions.c.analysis, model_versions.c.version, counted.c.count)
    rows = connection.execute(query.join(counted, counted.c.model_version_id == model_versions.c.id).where(at_work))
    return {ModelKey(analysis, version): count for analysis, version, count in rows}


def retry_failures(connection: Connection, wanted: PredictionFilter) -> int:
    """Forgets failures, so that their observations are predicted again; returns how many.

    Raises:
        InvalidRequestError: No analysis is named.
    """
    if not wanted.analysis:
        raise InvalidRequestError(
            "expected an analysis whose failures are to be tried again, but got none",
            hint="name it; `fieldpost models list` shows those there are",
        )
    instrument_ids = find_instrument_ids(connection, wanted.station, wanted.instrument)
    total = 0
    for version_id in _versions(connection, wanted):
        failed = [predictions.c.model_version_id == version_id, predictions.c.is_failure]
        if wanted.station:
            failed.append(predictions.c.instrument_id.in_(instrument_ids))
        if wanted.start_unix_nanos is not None:
            failed.append(predictions.c.measure_unix_nanos >= wanted.start_unix_nanos)
        if wanted.end_unix_nanos is not None:
            failed.append(predictions.c.measure_unix_nanos < wanted.end_unix_nanos)
        first_id = connection.scalar(select(func.min(predictions.c.observation_id)).where(*failed))
        if first_id is None:
            continue
        total += connection.execute(delete(predictions).where(*failed)).rowcount
        mark = model_versions.c.settled_observation_id
        here = (model_versions.c.id == version_id, mark >= first_id)
        connection.execute(update(model_versions).where(*here).values(settled_observation_id=first_id - 1))
    return total


def _versions(connection: Connection, wanted: PredictionFilter) -> list[int]:
    query = select(model_versions.c.id)
    if wanted.analysis:
        query = query.where(model_versions.c.analysis == wanted.analysis)
    if wanted.model_version:
        query = query.where(model_versions.c.version == wanted.model_version)
    return list(connection.scalars(query))


def _served_versions(connection: Connection, wanted: PredictionFilter) -> list[int]:
    if wanted.model_version:  # who names a version gets it, a shadow too
        return _versions(connection, wanted)
    # Once active, and no shadow now: what it says as a shadow is nobody's answer.
    query = select(model_versions.c.id).where(
        model_versions.c.first_active_unix_nanos.is_not(None), model_versions.c.state != ModelState.SHADOW
    )
    if wanted.analysis:
        query = query.where(model_versions.c.analysis == wanted.analysis)
    return list(connection.scalars(query))


def _select() -> Select[Any]:
    return (
        select(
            predictions.c.id,
            predictions.c.measure_unix_nanos,
            predictions.c.predict_unix_nanos,
            predictions.c.content,
            predictions.c.is_provisional,
            observations.c.sequence,
            observations.c.capture_unix_nanos,
            epochs.c.epoch,
            instruments.c.name.label("instrument"),
            stations.c.name.label("station"),
            model_versions.c.analysis,
            model_versions.c.version,
        )
        .join(observations, observations.c.id == predictions.c.observation_id)
        .join(epochs, epochs.c.id == observations.c.epoch_id)
        .join(instruments, instruments.c.id == predictions.c.instrument_id)
        .join(stations, stations.c.id == instruments.c.station_id)
        .join(model_versions, model_versions.c.id == predictions.c.model_version_id)
    )


def _to_message(row: Row[Any]) -> prediction_pb2.Prediction:
    message = prediction_pb2.Prediction.FromString(row.content)
    message.prediction_id = row.id
    message.station = row.station
    message.instrument = row.instrument
    message.epoch = row.epoch
    message.sequence = row.sequence
    message.analysis = row.analysis
    message.model_version = row.version
    message.is_provisional = row.is_provisional
    message.measure_time.FromNanoseconds(row.measure_unix_nanos)
    message.capture_time.FromNanoseconds(row.capture_unix_nanos)
    message.predict_time.FromNanoseconds(row.predict_unix_nanos)
    return message
