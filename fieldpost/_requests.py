"""Builds the requests for predictions out of what a caller says, and refuses what makes no sense. Pure."""

from __future__ import annotations

from typing import TypedDict

from google.protobuf.timestamp_pb2 import Timestamp

from fieldpost._resuming import Pages
from fieldpost._times import Moment, to_timestamp, unix_nanos
from fieldpost.errors import InvalidObservationError, InvalidRequestError
from fieldpost.names import check_name
from fieldpost.v1 import predictions_service_pb2 as pb
from fieldpost.v1.prediction_pb2 import Prediction


class PredictionQuery(TypedDict, total=False):
    """Which predictions are meant. Whatever is left out, or None, matches all.

    Attributes:
        station: Only this station.
        instrument: Only this instrument; needs station.
        analysis: Only this analysis, for example "boundary-layer-height".
        model_version: Only this model version; needs analysis.
        since: Only observations measured at or after this instant.
        until: Only observations measured before this instant.
    """

    station: str | None
    instrument: str | None
    analysis: str | None
    model_version: int | None
    since: Moment | None
    until: Moment | None


class WatchQuery(TypedDict, total=False):
    """Which predictions to watch. Whatever is left out, or None, matches all.

    Attributes:
        station: Only this station.
        instrument: Only this instrument; needs station.
        analysis: Only this analysis.
    """

    station: str | None
    instrument: str | None
    analysis: str | None


class RetryQuery(TypedDict, total=False):
    """Which failures to forget. Whatever is left out, or None, matches all.

    Attributes:
        station: Only this station.
        instrument: Only this instrument; needs station.
        model_version: Only this model version.
        since: Only observations measured at or after this instant.
        until: Only observations measured before this instant.
    """

    station: str | None
    instrument: str | None
    model_version: int | None
    since: Moment | None
    until: Moment | None


def list_request(
    *,
    station: str | None = None,
    instrument: str | None = None,
    analysis: str | None = None,
    model_version: int | None = None,
    since: Moment | None = None,
    until: Moment | None = None,
) -> pb.ListPredictionsRequest:
    """The request for the first page.

    Raises:
        InvalidRequestError: The query makes no sense.
    """
    check_names(station, instrument)
    if model_version is not None and (analysis is None or model_version < 1):
        raise InvalidRequestError(
            f"expected a model version of 1 or more together with its analysis, but got {model_version} of {analysis}",
            hint='versions are counted for each analysis: say analysis="boundary-layer-height", model_version=3',
        )
    start, end = check_span(since, until)
    return pb.ListPredictionsRequest(
        station=station or "",
        instrument=instrument or "",
        analysis=analysis or "",
        model_version=model_version or 0,
        start_time=start,
        end_time=end,
    )


def prediction_pages(
    query: pb.ListPredictionsRequest, patience_s: float
) -> Pages[pb.StreamPredictionsRequest, pb.StreamPredictionsResponse, Prediction]:
    """The stream of predictions, in the order of a list."""

    def request_at(token: str) -> pb.StreamPredictionsRequest:
        request = pb.StreamPredictionsRequest(list=query)
        request.list.page_token = token
        return request

    return Pages(
        request_at, lambda response: response.predictions, lambda response: response.next_page_token, patience_s
    )


def retry_request(
    analysis: str,
    *,
    station: str | None = None,
    instrument: str | None = None,
    model_version: int | None = None,
    since: Moment | None = None,
    until: Moment | None = None,
) -> pb.RetryPredictionsRequest:
    """The request to forget failures.

    Raises:
        InvalidRequestError: The query makes no sense.
    """
    if not analysis:
        raise InvalidRequestError("expected an analysis whose failures are to be tried again, but got none")
    query = list_request(
        station=station,
        instrument=instrument,
        analysis=analysis,
        model_version=model_version,
        since=since,
        until=until,
    )
    request = pb.RetryPredictionsRequest(
        station=query.station, instrument=query.instrument, analysis=analysis, model_version=query.model_version
    )
    if query.HasField("start_time"):
        request.start_time.CopyFrom(query.start_time)
    if query.HasField("end_time"):
        request.end_time.CopyFrom(query.end_time)
    return request


def watch_request(
    *, station: str | None = None, instrument: str | None = None, analysis: str | None = None
) -> pb.WatchPredictionsRequest:
    """The request for a watch, without the place to resume at.

    Raises:
        InvalidRequestError: The query makes no sense.
    """
    check_names(station, instrument)
    return pb.WatchPredictionsRequest(station=station or "", instrument=instrument or "", analysis=analysis or "")


def check_span(since: Moment | None, until: Moment | None) -> tuple[Timestamp | None, Timestamp | None]:
    """Both instants as the protocol has them.

    Raises:
        InvalidRequestError: One cannot be read, or since is not before until.
    """
    start, end = (None if moment is None else unix_nanos(moment) for moment in (since, until))
    if start is not None and end is not None and start >= end:
        raise InvalidRequestError(f"expected since before until, but got since={since} and until={until}")
    return (None if start is None else to_timestamp(start)), (None if end is None else to_timestamp(end))


def check_names(station: str | None, instrument: str | None) -> None:
    """Raises InvalidRequestError where a name breaks the rule for names, or an instrument has no station."""
    for kind, name in (("station", station), ("instrument", instrument)):
        if name is not None:
            try:
                check_name(kind, name)
            except InvalidObservationError as error:
                raise InvalidRequestError(str(error), hint="`fieldpost stations` lists the names there are") from error
    if instrument is not None and station is None:
        raise InvalidRequestError(
            f"expected a station together with the instrument {instrument}, but got none",
            hint="instruments are named for each station; give both",
        )
