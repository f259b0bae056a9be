"""Observations of a RecordingServer: those that were sent to it. For tests only."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc

from fieldpost._recording.pages import page_of
from fieldpost._recording.state import PAGE_SIZE, Recorded
from fieldpost._times import from_timestamp
from fieldpost.v1 import observations_service_pb2 as pb
from fieldpost.v1.observation_pb2 import Observation, ObservationHeader
from fieldpost.v1.observations_service_pb2_grpc import ObservationsServicer

_PIECE_BYTES = 1024 * 1024


class RecordingObservations(ObservationsServicer):
    """Serves observations."""

    def __init__(self, recorded: Recorded) -> None:
        self._recorded = recorded

    def List(self, request: pb.ListObservationsRequest, context: Any) -> pb.ListObservationsResponse:
        """One page, without payloads."""
        page, token = self._page(request.filter, request.page_token, request.page_size, context)
        for held in page:
            _strip(held)
        return pb.ListObservationsResponse(observations=page, next_page_token=token)

    def Stream(self, request: pb.StreamObservationsRequest, context: Any) -> Iterator[pb.StreamObservationsResponse]:
        """All pages, with payloads."""
        token = request.page_token
        while True:
            page, token = self._page(request.filter, token, 0, context)
            for held in page:
                if len(held.payload) > _PIECE_BYTES:
                    held.ClearField("payload")
            yield pb.StreamObservationsResponse(observations=page, next_page_token=token)
            if not token:
                return

    def _page(
        self, wanted: pb.ObservationFilter, token: str, size: int, context: Any
    ) -> tuple[list[pb.HeldObservation], str]:
        found = [held for held in self._after(0) if _matches(wanted, held.header)]
        return page_of(found, _list_key, token, min(size or PAGE_SIZE, self._recorded.page_size_max), context)

    def Watch(self, request: pb.WatchObservationsRequest, context: Any) -> Iterator[pb.WatchObservationsResponse]:
        """What is stored from now on."""
        context.add_callback(self._recorded.notify)  # a caller that went away must not hold a thread for ever
        is_resumed = request.HasField("after_observation_id")
        seen = request.after_observation_id if is_resumed else len(self._recorded.observations)
        context.send_initial_metadata(())  # tells the caller that the watch has begun
        yield pb.WatchObservationsResponse(seen_observation_id=seen)
        while context.is_active():
            fresh = self._wait_beyond(seen, context)
            seen += len(fresh)
            wanted = [held for held in fresh if _names_match(request.filter, held.header)]
            for held in wanted:
                _strip(held)
            yield pb.WatchObservationsResponse(observations=wanted, seen_observation_id=seen)

    def _wait_beyond(self, seen: int, context: Any) -> list[pb.HeldObservation]:
        """The observations after the first `seen`, as soon as there are any; none where the caller went away."""
        with self._recorded.changed:
            self._recorded.changed.wait_for(lambda: len(self._recorded.observations) > seen or not context.is_active())
            return self._after(seen)

    def Read(self, request: pb.ReadObservationRequest, context: Any) -> Iterator[pb.ReadObservationResponse]:
        """One payload in pieces."""
        observation = self._find(request)
        if observation is None:
            context.abort(grpc.StatusCode.NOT_FOUND, f"no observation {request.observation_id or request.sequence}")
            raise AssertionError("abort raises")
        payload = observation.payload
        first = pb.ReadObservationResponse(header=observation.header, encoded_bytes=len(payload))
        first.content = payload[request.offset_bytes : request.offset_bytes + _PIECE_BYTES]
        yield first
        for start in range(request.offset_bytes + _PIECE_BYTES, len(payload), _PIECE_BYTES):
            yield pb.ReadObservationResponse(content=payload[start : start + _PIECE_BYTES])

    def _find(self, request: pb.ReadObservationRequest) -> Observation | None:
        held = self._recorded.observations
        if request.observation_id:
            return held[request.observation_id - 1] if request.observation_id <= len(held) else None
        wanted = (request.station, request.epoch, request.sequence)
        return next((each for each in held if _identity(each.header) == wanted), None)

    def _after(self, seen: int) -> list[pb.HeldObservation]:
        return [
            pb.HeldObservation(
                observation_id=number,
                header=each.header,
                payload=each.payload,
                capture_time=each.header.capture_clock.wall_time,
            )
            for number, each in enumerate(self._recorded.observations[seen:], seen + 1)
        ]


def _identity(header: ObservationHeader) -> tuple[str, str, int]:
    return header.station, header.epoch, header.sequence


def _list_key(held: pb.HeldObservation) -> tuple[int, int]:
    return _measured(held.header), held.observation_id


def _measured(header: ObservationHeader) -> int:
    return from_timestamp(header.measure_time if header.HasField("measure_time") else header.capture_clock.wall_time)


def _matches(wanted: pb.ObservationFilter, header: ObservationHeader) -> bool:
    nanos = _measured(header)
    return (
        _names_match(wanted, header)
        and not (wanted.HasField("start_time") and nanos < from_timestamp(wanted.start_time))
        and not (wanted.HasField("end_time") and nanos >= from_timestamp(wanted.end_time))
    )


def _names_match(wanted: pb.ObservationFilter, header: ObservationHeader) -> bool:
    return wanted.station in ("", header.station) and wanted.instrument in ("", header.instrument)


def _strip(held: pb.HeldObservation) -> None:
    """Leaves what List and Watch tell."""
    header = held.header
    held.ClearField("payload")
    for name in ("payload_encoding", "payload_format", "capture_clock", "origin"):
        header.ClearField(name)
