"""Instants, as callers write them and as the protocol holds them. Reads no clock: now is an argument."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import TypeAlias

import numpy as np
from google.protobuf.timestamp_pb2 import Timestamp

from fieldpost.errors import InvalidRequestError

Moment: TypeAlias = datetime | np.datetime64 | str
"""An instant: a datetime with a time zone, a numpy.datetime64 (UTC), or ISO 8601 text (UTC where it names no zone)."""

_NANOS = 1_000_000_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SPAN = re.compile(r"(\d+(?:\.\d+)?)\s*(s|min|h|d|w)")
_SPAN_SECONDS = {"s": 1, "min": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def unix_nanos(moment: Moment) -> int:
    """The instant in nanoseconds since 1970-01-01 UTC.

    Raises:
        InvalidRequestError: It cannot be read, is NaT, or is a datetime without a time zone.
    """
    if isinstance(moment, np.datetime64):
        if np.isnat(moment):
            raise InvalidRequestError("expected an instant, but got NaT")
        return int(moment.astype("datetime64[ns]").astype(np.int64))
    if isinstance(moment, str):
        moment = _parse_iso(moment)
    if moment.tzinfo is None:
        raise InvalidRequestError(
            f"expected a datetime with a time zone, but got {moment.isoformat()} without one",
            hint="write datetime(..., tzinfo=UTC) or datetime.now(UTC)",
        )
    return (moment - _EPOCH) // timedelta(microseconds=1) * 1000


def _parse_iso(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError as error:
        raise InvalidRequestError(
            f"expected an instant such as 2025-06-01 or 2025-06-01T12:00:00Z, but got {text!r}",
            hint="instants are ISO 8601, and UTC where they name no time zone",
        ) from error
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def parse_moment(text: str, now: datetime) -> datetime:
    """Reads an instant as people type it: ISO 8601, or "2h", "30min", "1d", "2w": so long before now.

    Raises:
        InvalidRequestError: It is neither.
    """
    span = _SPAN.fullmatch(text.strip())
    if span:
        try:
            return now - timedelta(seconds=float(span[1]) * _SPAN_SECONDS[span[2]])
        except OverflowError as error:
            raise InvalidRequestError(f"expected a span that ends after the year 1, but got {text!r}") from error
    try:
        return _parse_iso(text)
    except InvalidRequestError as error:
        raise InvalidRequestError(
            f"expected an instant such as 2025-06-01T12:00:00Z, or a span before now such as 2h, but got {text!r}",
            hint="spans end in s, min, h, d or w; instants are ISO 8601, and UTC where they name no time zone",
        ) from error


def to_timestamp(nanos: int) -> Timestamp:
    """Nanoseconds since 1970 as the protocol's Timestamp."""
    seconds, rest = divmod(nanos, _NANOS)
    return Timestamp(seconds=seconds, nanos=rest)


def from_timestamp(timestamp: Timestamp) -> int:
    """The protocol's Timestamp as nanoseconds since 1970."""
    return timestamp.seconds * _NANOS + timestamp.nanos


def iso_utc(nanos: int) -> str:
    """Nanoseconds since 1970 as ISO 8601 text in UTC; digits behind the second only where there are any.

    >>> iso_utc(1_500_000_000)
    '1970-01-01T00:00:01.5Z'
    """
    text = str(np.datetime64(nanos, "ns"))
    return text.rstrip("0").rstrip(".") + "Z"
