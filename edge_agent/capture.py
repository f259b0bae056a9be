"""From an instrument's bytes to an observation that only lacks its number. Knows no buffer and no source."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from edge_agent.clock import read_capture_clock
from edge_agent.storage.records import MAX_PAYLOAD_BYTES
from fieldpost.errors import InvalidObservationError
from fieldpost.payload import encode_payload
from fieldpost.v1 import observation_pb2 as pb


@dataclass(frozen=True, slots=True)
class Capture:
    """One observation as its source hands it over.

    Attributes:
        instrument: Name of the instrument.
        payload_format: How the bytes were framed, for example "vaisala-cl".
        content: The instrument's bytes.
        origin_name: What the source calls the run of bytes that this is one of, without '#'.
        origin_index: Its place in that run; ascending.
        measure_unix_nanos: When it was measured; None where the station does not know.
        clock: The station's clocks when the bytes were complete.
    """

    instrument: str
    payload_format: str
    content: bytes
    origin_name: str
    origin_index: int
    measure_unix_nanos: int | None = None
    clock: pb.CaptureClock = field(default_factory=read_capture_clock)


def observation_of(capture: Capture) -> pb.Observation:
    """The observation, compressed where that pays; station, epoch and sequence are the buffer's to give.

    Raises:
        InvalidObservationError: The bytes are more than a record can hold.
    """
    if len(capture.content) > MAX_PAYLOAD_BYTES:
        size = f"{len(capture.content)} in {capture.origin_name}"
        raise InvalidObservationError(f"expected an observation of at most {MAX_PAYLOAD_BYTES} bytes, but got {size}")
    payload, encoding = encode_payload(capture.content)
    header = pb.ObservationHeader(
        instrument=capture.instrument,
        sha256=hashlib.sha256(capture.content).digest(),
        payload_bytes=len(capture.content),
        payload_encoding=encoding,
        payload_format=capture.payload_format,
        capture_clock=capture.clock,
        origin=f"{capture.origin_name}#{capture.origin_index}",
    )
    if capture.measure_unix_nanos is not None:
        header.measure_time.FromNanoseconds(capture.measure_unix_nanos)
    return pb.Observation(header=header, payload=payload)


def parse_origin(origin: str) -> tuple[str, int] | None:
    """Splits an origin into name and index; None where it is not "<name>#<index>"."""
    name, _, index = origin.rpartition("#")
    return (name, int(index)) if name and index.isascii() and index.isdigit() else None
