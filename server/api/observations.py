"""The service Observations."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial

from sqlalchemy import Connection

from fieldpost.errors import InvalidRequestError
from fieldpost.v1 import observations_service_pb2 as pb
from fieldpost.v1 import observations_service_pb2_grpc
from server.api.credentials import Context
from server.api.filters import observation_filter
from server.api.reading import Reading
from server.api.watching import watch
from server.broadcast import Broadcast
from server.queries.observations import (
    ObservationFilter,
    find_place,
    last_observation_id,
    list_after,
    list_observations,
)
from server.queries.pages import Position, make_token
from server.storage.records import read_head
from server.storage.segments import Place

PAYLOAD_BYTES_MAX = 1024 * 1024
"""Larger payloads are left out of Stream."""
PIECE_BYTES = 1024 * 1024
MESSAGE_BYTES = 1024 * 1024
"""A message of Stream is sent when it has so much, or STREAM_COUNT observations."""
STREAM_COUNT = 256


class ObservationsServicer(observations_service_pb2_grpc.ObservationsServicer):
    """Serves observations."""

    def __init__(self, reading: Reading, stored: Broadcast) -> None:
        self._reading = reading
        self._stored = stored

    async def List(  # noqa: D102  (the protocol's names and comments)
        self, request: pb.ListObservationsRequest, context: Context
    ) -> pb.ListObservationsResponse:
        page, token = await self._page(observation_filter(request.filter), request.page_size, request.page_token)
        return pb.ListObservationsResponse(observations=[each for each, _ in page], next_page_token=token)

    async def Stream(  # noqa: D102
        self, request: pb.StreamObservationsRequest, context: Context
    ) -> AsyncIterator[pb.StreamObservationsResponse]:
        wanted, token, is_first = observation_filter(request.filter), request.page_token, True
        while token or is_first:
            page, token = await self._page(wanted, STREAM_COUNT, token)
            is_first = False
            while page:
                message = await self._reading.call(self._fill, page)
                page = page[len(message.observations) :]
                if not page:
                    message.next_page_token = token
                yield message

    async def _page(
        self, wanted: ObservationFilter, size: int, token: str
    ) -> tuple[list[tuple[pb.HeldObservation, Place]], str]:
        return await self._reading.query(lambda connection: list_observations(connection, wanted, size, token))

    def _fill(self, page: list[tuple[pb.HeldObservation, Place]]) -> pb.StreamObservationsResponse:
        """As much of the page as a message holds, with payloads."""
        message, size_bytes = pb.StreamObservationsResponse(), 0
        for held, place in page:
            measure_unix_nanos = held.header.measure_time.ToNanoseconds()
            message.next_page_token = make_token(Position(measure_unix_nanos, held.observation_id))
            head = read_head(self._reading.store.read_range, place)
            held.header.CopyFrom(head.header)
            if not held.header.HasField("measure_time"):  # only the payload told
                held.header.measure_time.FromNanoseconds(measure_unix_nanos)
            if head.payload_length <= PAYLOAD_BYTES_MAX:
                held.payload = self._reading.store.read_range(place, head.payload_offset, head.payload_length)
            message.observations.append(held)
            size_bytes += len(held.payload)
            if size_bytes >= MESSAGE_BYTES:
                break
        return message

    async def Watch(  # noqa: D102
        self, request: pb.WatchObservationsRequest, context: Context
    ) -> AsyncIterator[pb.WatchObservationsResponse]:
        wanted = ObservationFilter(request.filter.station, request.filter.instrument)
        after_id = request.after_observation_id if request.HasField("after_observation_id") else None
        news = watch(self._reading, self._stored, context, partial(list_after, wanted), last_observation_id, after_id)
        async for page, seen_id in news:
            yield pb.WatchObservationsResponse(observations=page, seen_observation_id=seen_id)

    async def Read(  # noqa: D102
        self, request: pb.ReadObservationRequest, context: Context
    ) -> AsyncIterator[pb.ReadObservationResponse]:
        place, offset = await self._reading.query(partial(_find, request)), request.offset_bytes
        head = await self._reading.call(read_head, self._reading.store.read_range, place)
        if offset > head.payload_length:
            raise InvalidRequestError(
                f"expected an offset_bytes of at most {head.payload_length}, the payload's length, but got {offset}"
            )
        message = pb.ReadObservationResponse(header=head.header, encoded_bytes=head.payload_length)
        while offset < head.payload_length:
            count = min(PIECE_BYTES, head.payload_length - offset)
            message.content = await self._reading.call(
                self._reading.store.read_range, place, head.payload_offset + offset, count
            )
            yield message
            offset += count
            message = pb.ReadObservationResponse()
        if message.HasField("header"):  # there was nothing to read: the header comes alone
            yield message


def _find(request: pb.ReadObservationRequest, connection: Connection) -> Place:
    if request.observation_id < 0 or request.offset_bytes < 0:
        raise InvalidRequestError("expected observation_id and offset_bytes from 0 upward, but got a negative one")
    return find_place(connection, request.observation_id, (request.station, request.epoch, request.sequence))
