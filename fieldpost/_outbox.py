"""Numbers what one sender sends, so that sending it again is harmless. Opens no connection.

(station, epoch, sequence) is the identity of an observation. A sender that starts again in the middle must give the
same bytes the same identity; it does so by keeping its epoch, and the sequence at which it went on.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from typing import TypeAlias

from fieldpost._times import Moment, to_timestamp, unix_nanos
from fieldpost.errors import InvalidRequestError
from fieldpost.names import check_epoch, check_name
from fieldpost.payload import encode_payload
from fieldpost.v1 import observation_pb2 as pb

Item: TypeAlias = tuple[str, bytes, Moment | None]
"""(instrument, the instrument's bytes, when it measured; None where only the bytes tell)."""


def new_epoch() -> str:
    """A new epoch: 32 hexadecimal digits. Make one for a series of observations, and keep it with them."""
    return secrets.token_hex(16)


class Outbox:
    """Makes observations of bytes: numbered in one epoch, compressed where it pays, and hashed.

    Args:
        station: The station in whose name they are sent.
        epoch: The epoch of the series; a new one where left out. Keep it (`outbox.epoch`): a send that is resumed
            under the same epoch and sequences stores nothing twice.
        next_sequence: Number of the next observation.
        payload_format: How the bytes are framed, for example "vaisala-cl" or "netcdf".
        clock_nanos: Wall clock, nanoseconds since 1970.

    Raises:
        InvalidObservationError: A name or the epoch breaks its rule.
        InvalidRequestError: next_sequence is below 1.
    """

    def __init__(
        self,
        station: str,
        *,
        epoch: str | None = None,
        next_sequence: int = 1,
        payload_format: str = "",
        clock_nanos: Callable[[], int] = time.time_ns,
    ) -> None:
        if next_sequence < 1:
            raise InvalidRequestError(f"expected a next_sequence of 1 or more, but got {next_sequence}")
        self.station = check_name("station", station)
        self.epoch = new_epoch() if epoch is None else check_epoch(epoch)
        self.next_sequence = next_sequence
        self.payload_format = payload_format
        self._clock_nanos = clock_nanos

    def observation(
        self, instrument: str, content: bytes, measure_time: Moment | None = None, *, origin: str = ""
    ) -> pb.Observation:
        """The next observation of the series.

        Args:
            instrument: Its instrument, as registered at the server.
            content: The instrument's bytes.
            measure_time: When it measured; None where only the bytes tell.
            origin: Where the bytes came from, for example a file's name; for people.

        Raises:
            InvalidObservationError: The instrument's name breaks the rule for names.
            InvalidRequestError: measure_time is no instant.
        """
        payload, encoding = encode_payload(content)
        header = pb.ObservationHeader(
            station=self.station,
            instrument=check_name("instrument", instrument),
            epoch=self.epoch,
            sequence=self.next_sequence,
            sha256=hashlib.sha256(content).digest(),
            payload_bytes=len(content),
            payload_encoding=encoding,
            payload_format=self.payload_format,
            measure_time=None if measure_time is None else to_timestamp(unix_nanos(measure_time)),
            capture_clock=pb.CaptureClock(wall_time=to_timestamp(self._clock_nanos())),
            origin=origin,
        )
        self.next_sequence += 1  # only now: an item that was refused takes no number
        return pb.Observation(header=header, payload=payload)

    def number(self, items: Iterable[Item]) -> Iterator[pb.Observation]:
        """Makes an observation of each item, as they are asked for."""
        for instrument, content, measure_time in items:
            yield self.observation(instrument, content, measure_time)

    async def number_async(self, items: AsyncIterable[Item]) -> AsyncIterator[pb.Observation]:
        """The same, for items that come asynchronously."""
        async for instrument, content, measure_time in items:
            yield self.observation(instrument, content, measure_time)
