"""Reads instants and filters out of requests."""

from __future__ import annotations

from google.protobuf.timestamp_pb2 import Timestamp

from fieldpost.errors import InvalidRequestError
from fieldpost.v1 import observations_service_pb2, predictions_service_pb2
from server.instants import is_storable, to_nanos
from server.queries.observations import ObservationFilter
from server.queries.pages import TimeSpan
from server.queries.predictions import PredictionFilter

PredictionRequest = predictions_service_pb2.ListPredictionsRequest | predictions_service_pb2.RetryPredictionsRequest


def read_instant(instant: Timestamp, name: str) -> int:
    """The instant in nanoseconds since 1970.

    Raises:
        InvalidRequestError: No database column can hold it.
    """
    if not is_storable(instant):
        raise InvalidRequestError(f"expected a {name} between the years 1678 and 2261, but got {instant.seconds} s")
    return to_nanos(instant)


def read_span(request: PredictionRequest | observations_service_pb2.ObservationFilter) -> TimeSpan:
    """From start_time on, before end_time."""
    return TimeSpan(
        read_instant(request.start_time, "start_time") if request.HasField("start_time") else None,
        read_instant(request.end_time, "end_time") if request.HasField("end_time") else None,
    )


def observation_filter(wanted: observations_service_pb2.ObservationFilter) -> ObservationFilter:
    """Which observations are meant."""
    return ObservationFilter(wanted.station, wanted.instrument, read_span(wanted))


def prediction_filter(request: PredictionRequest) -> PredictionFilter:
    """Which predictions are meant."""
    names = (request.station, request.instrument, request.analysis, request.model_version)
    return PredictionFilter(*names, *read_span(request))
