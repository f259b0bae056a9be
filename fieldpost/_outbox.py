"""Numbers what one sender sends, so that sending it again is harmless. Opens no connection.

(station, epoch, sequence) is the identity of an observation. A sender that starts again in the middle must give the
same bytes the same identity; it does so by keeping its epoch, and the sequence at which it went on.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeAlias

from fieldpost._sending import UPLOAD_FROM_BYTES
from fieldpost._times import Moment, to_timestamp, unix_nanos
from fieldpost._uploading import FileObservation, Sendable
from fieldpost.errors import InvalidRequestError
from fieldpost.names import check_epoch, check_name
from fieldpost.payload import encode_payload
from fieldpost.v1 import observation_pb2 as pb

Item: TypeAlias = tuple[str, bytes | Path, Moment | None]
"""(instrument, its bytes or the file that holds them, when it measured; None where only the bytes tell)."""


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
        digest = hashlib.sha256(content).digest()
        header = self._header(instrument, digest, len(content), encoding, measure_time, origin)
        return pb.Observation(header=header, payload=payload)

    def file(
        self, instrument: str, path: Path | str, measure_time: Moment | None = None, *, origin: str | None = None
    ) -> Sendable:
        """The next observation of the series, from a file; a large one is never whole in memory.

        Args:
            instrument: Its instrument, as registered at the server.
            path: The file. A large one is read once now, for its SHA-256, and again as it is sent.
            measure_time: When it measured; None where only the bytes tell.
            origin: Where the bytes came from; the file's name where left out.

        Raises:
            InvalidObservationError: The instrument's name breaks the rule for names.
            InvalidRequestError: measure_time is no instant.
            OSError: The file cannot be read.
        """
        path = Path(path)
        origin = path.name if origin is None else origin
        if path.stat().st_size < UPLOAD_FROM_BYTES:
            return self.observation(instrument, path.read_bytes(), measure_time, origin=origin)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").digest()
            size = file.tell()
        # As it is: who packs it must do so twice, and to the same bytes, where an upload is resumed.
        header = self._header(instrument, digest, size, pb.PAYLOAD_ENCODING_IDENTITY, measure_time, origin)
        return FileObservation(header, path)

    def _header(
        self,
        instrument: str,
        digest: bytes,
        payload_bytes: int,
        encoding: pb.PayloadEncoding.ValueType,
        measure_time: Moment | None,
        origin: str,
    ) -> pb.ObservationHeader:
        header = pb.ObservationHeader(
            station=self.station,
            instrument=check_name("instrument", instrument),
            epoch=self.epoch,
            sequence=self.next_sequence,
            sha256=digest,
            payload_bytes=payload_bytes,
            payload_encoding=encoding,
            payload_format=self.payload_format,
            measure_time=None if measure_time is None else to_timestamp(unix_nanos(measure_time)),
            capture_clock=pb.CaptureClock(wall_time=to_timestamp(self._clock_nanos())),
            origin=origin,
        )
        self.next_sequence += 1  # only now: an item that was refused takes no number
        return header

    def number(self, items: Iterable[Item]) -> Iterator[Sendable]:
        """Makes an observation of each item, as they are asked for."""
        for item in items:
            yield self._of_item(item)

    async def number_async(self, items: AsyncIterable[Item]) -> AsyncIterator[Sendable]:
        """The same, for items that come asynchronously."""
        async for item in items:
            yield self._of_item(item)

    def _of_item(self, item: Item) -> Sendable:
        instrument, content, measure_time = item
        if isinstance(content, Path):
            return self.file(instrument, content, measure_time)
        return self.observation(instrument, content, measure_time)
