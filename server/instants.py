"""Instants as the store keeps them: nanoseconds since 1970 in 64 bits. A message may say any number of seconds."""

from __future__ import annotations

from google.protobuf.timestamp_pb2 import Timestamp

from fieldpost.v1 import observation_pb2 as pb

SECONDS_MAX = 9_200_000_000
"""About the years 1678 to 2261."""
NANOS_PER_S = 1_000_000_000


def is_storable(instant: Timestamp) -> bool:
    """Whether the store can keep it."""
    return abs(instant.seconds) <= SECONDS_MAX and 0 <= instant.nanos < NANOS_PER_S


def to_nanos(instant: Timestamp) -> int:
    """Nanoseconds since 1970; Timestamp.ToNanoseconds without its checks, for what is_storable."""
    return instant.seconds * NANOS_PER_S + instant.nanos


def captured_time(header: pb.ObservationHeader) -> Timestamp:
    """When the station had the observation complete: by its clock, or as it corrected that later."""
    if header.HasField("corrected_wall_time"):
        return header.corrected_wall_time
    return header.capture_clock.wall_time
