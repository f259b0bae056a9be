"""Builds the requests for observations out of what a caller says, and refuses what makes no sense. Pure."""

from __future__ import annotations

from typing import TypeAlias, TypedDict

from fieldpost._requests import check_names, check_span
from fieldpost._resuming import Pages
from fieldpost._times import Moment
from fieldpost.errors import InvalidRequestError
from fieldpost.v1 import observations_service_pb2 as pb
from fieldpost.v1.observation_pb2 import ObservationHeader

WhichObservation: TypeAlias = int | pb.HeldObservation | ObservationHeader
"""An observation_id, an observation as it was listed, or a header: its station, epoch and sequence."""


class ObservationQuery(TypedDict, total=False):
    """Which observations are meant. Whatever is left out, or None, matches all.

    Attributes:
        station: Only this station.
        instrument: Only this instrument; needs station.
        since: Only observations measured at or after this instant.
        until: Only observations measured before this instant.
    """

    station: str | None
    instrument: str | None
    since: Moment | None
    until: Moment | None


class WatchObservationsQuery(TypedDict, total=False):
    """Which observations to watch. Whatever is left out, or None, matches all.

    Attributes:
        station: Only this station.
        instrument: Only this instrument; needs station.
    """

    station: str | None
    instrument: str | None


def observation_filter(
    *,
    station: str | None = None,
    instrument: str | None = None,
    since: Moment | None = None,
    until: Moment | None = None,
) -> pb.ObservationFilter:
    """The filter that stands for a query.

    Raises:
        InvalidRequestError: The query makes no sense.
    """
    check_names(station, instrument)
    start, end = check_span(since, until)
    return pb.ObservationFilter(station=station or "", instrument=instrument or "", start_time=start, end_time=end)


def content_pages(
    query: pb.ObservationFilter, patience_s: float
) -> Pages[pb.StreamObservationsRequest, pb.StreamObservationsResponse, pb.HeldObservation]:
    """The stream of observations with their payloads."""
    return Pages(
        lambda token: pb.StreamObservationsRequest(filter=query, page_token=token),
        lambda response: response.observations,
        lambda response: response.next_page_token,
        patience_s,
    )


def read_request(which: WhichObservation) -> pb.ReadObservationRequest:
    """The request for the payload of an observation, from its beginning.

    Raises:
        InvalidRequestError: It names none.
    """
    if isinstance(which, pb.HeldObservation):
        which = which.observation_id or which.header
    if isinstance(which, int):
        if which < 1:
            raise InvalidRequestError(f"expected an observation_id of 1 or more, but got {which}")
        return pb.ReadObservationRequest(observation_id=which)
    if not (which.station and which.epoch and which.sequence):
        raise InvalidRequestError(
            "expected an observation_id, or a header with station, epoch and sequence, but got neither",
            hint="take what observations() or watch_observations() gave",
        )
    return pb.ReadObservationRequest(station=which.station, epoch=which.epoch, sequence=which.sequence)
