"""Predictions: written once for each observation and model version, listed by time, watched by number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Insert,
    Row,
    Select,
    Table,
    bindparam,
    func,
    literal,
    select,
    tuple_,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite

from fieldpost.errors import InvalidRequestError
from fieldpost.v1 import prediction_pb2
from server.analyses import AnalysisResult
from server.tables import epochs, instruments, model_versions, observations, predictions, stations

PAGE_SIZE_DEFAULT = 1000
PAGE_SIZE_MAX = 10_000


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


def encode_result(result: AnalysisResult) -> bytes:
    """The part of a prediction that its row keeps as bytes."""
    variables = [
        prediction_pb2.Variable(name=each.name, unit=each.unit, values=each.values.tolist())
        for each in result.variables
    ]
    content = prediction_pb2.Prediction(sample_unix_nanos=result.sample_unix_nanos.tolist(), variables=variables)
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
        }
        for each in new
    ]
    connection.execute(_insert_unless_there(connection, predictions), rows)
    found = [
        {"found_id": each.observation_id, "found_nanos": each.measure_unix_nanos} for each in new if each.is_time_news
    ]
    if found:
        here = observations.c.id == bindparam("found_id")
        connection.execute(update(observations).where(here).values(measure_unix_nanos=bindparam("found_nanos")), found)


def _insert_unless_there(connection: Connection, table: Table) -> Insert:
    if connection.dialect.name == "postgresql":
        return postgresql.insert(table).on_conflict_do_nothing()
    return sqlite.insert(table).on_conflict_do_nothing()


def list_predictions(
    connection: Connection, wanted: PredictionFilter, page_size: int, page_token: str
) -> tuple[list[prediction_pb2.Prediction], str]:
    """One page, ordered by measure time and then id, and the token of the next one (empty at the end).

    Raises:
        InvalidRequestError: The token is not one of ours.
    """
    size = min(page_size, PAGE_SIZE_MAX) if page_size > 0 else PAGE_SIZE_DEFAULT
    position = (predictions.c.measure_unix_nanos, predictions.c.id)
    query = _select(wanted).order_by(*position).limit(size)
    if page_token:
        query = query.where(tuple_(*position) > tuple_(*map(literal, _parse_token(page_token))))
    rows = connection.execute(query).all()
    token = f"{rows[-1].measure_unix_nanos}-{rows[-1].id}" if len(rows) == size else ""
    return [_to_message(row) for row in rows], token


def list_after(
    connection: Connection, wanted: PredictionFilter, after_id: int, limit: int
) -> list[prediction_pb2.Prediction]:
    """The first predictions numbered above after_id, by number."""
    query = _select(wanted).where(predictions.c.id > after_id).order_by(predictions.c.id).limit(limit)
    return [_to_message(row) for row in connection.execute(query)]


def last_prediction_id(connection: Connection) -> int:
    """The highest number given; 0 where there is none."""
    return int(connection.scalar(select(func.max(predictions.c.id))) or 0)


def _select(wanted: PredictionFilter) -> Select[Any]:
    conditions: list[ColumnElement[bool]] = []
    if wanted.station:
        conditions.append(stations.c.name == wanted.station)
    if wanted.instrument:
        conditions.append(instruments.c.name == wanted.instrument)
    if wanted.analysis:
        conditions.append(model_versions.c.analysis == wanted.analysis)
    if wanted.model_version:
        conditions.append(model_versions.c.version == wanted.model_version)
    if wanted.start_unix_nanos is not None:
        conditions.append(predictions.c.measure_unix_nanos >= wanted.start_unix_nanos)
    if wanted.end_unix_nanos is not None:
        conditions.append(predictions.c.measure_unix_nanos < wanted.end_unix_nanos)
    return (
        select(
            predictions.c.id,
            predictions.c.measure_unix_nanos,
            predictions.c.predict_unix_nanos,
            predictions.c.content,
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
        .where(*conditions)
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
    message.measure_time.FromNanoseconds(row.measure_unix_nanos)
    message.capture_time.FromNanoseconds(row.capture_unix_nanos)
    message.predict_time.FromNanoseconds(row.predict_unix_nanos)
    return message


def _parse_token(token: str) -> tuple[int, int]:
    measure, separator, number = token.rpartition("-")
    try:
        position = int(measure), int(number)
        if not separator or any(abs(each) >= 2**63 for each in position):
            raise ValueError(token)
        return position
    except ValueError as error:
        raise InvalidRequestError(
            f"expected next_page_token of an earlier answer as page_token, but got {token[:80]!r}"
        ) from error
