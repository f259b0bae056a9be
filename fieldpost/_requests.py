"""Builds the requests for predictions out of what a caller says, and refuses what makes no sense. Pure."""

from __future__ import annotations

from typing import TypedDict

from fieldpost._times import Moment, to_timestamp, unix_nanos
from fieldpost.errors import InvalidObservationError, InvalidRequestError
from fieldpost.names import check_name
from fieldpost.v1 import predictions_service_pb2 as pb


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
    _check_names(station, instrument)
    if model_version is not None and (analysis is None or model_version < 1):
        raise InvalidRequestError(
            f"expected a model version of 1 or more together with its analysis, but got {model_version} of {analysis}",
            hint='versions are counted for each analysis: say analysis="boundary-layer-height", model_version=3',
        )
    start, end = (None if moment is None else unix_nanos(moment) for moment in (since, until))
    if start is not None and end is not None and start >= end:
        raise InvalidRequestError(f"expected since before until, but got since={since} and until={until}")
    return pb.ListPredictionsRequest(
        station=station or "",
        instrument=instrument or "",
        analysis=analysis or "",
        model_version=model_version or 0,
        start_time=None if start is None else to_timestamp(start),
        end_time=None if end is None else to_timestamp(end),
    )


def next_page(request: pb.ListPredictionsRequest, token: str) -> pb.ListPredictionsRequest:
    """The request for the page after."""
    following = pb.ListPredictionsRequest()
    following.CopyFrom(request)
    following.page_token = token
    return following


def watch_request(
    *, station: str | None = None, instrument: str | None = None, analysis: str | None = None
) -> pb.WatchPredictionsRequest:
    """The request for a watch, without the place to resume at.

    Raises:
        InvalidRequestError: The query makes no sense.
    """
    _check_names(station, instrument)
    return pb.WatchPredictionsRequest(station=station or "", instrument=instrument or "", analysis=analysis or "")


def _check_names(station: str | None, instrument: str | None) -> None:
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
