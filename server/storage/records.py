"""Finds header and payload inside the stored bytes of an observation, without reading the payload.

A record is one serialized fieldpost.v1.Observation: field 1, the header, and then field 2, the payload. Protobuf's own
parser wants all of it, and a payload may have gigabytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from google.protobuf.message import DecodeError

from fieldpost.errors import BrokenStateError
from fieldpost.v1 import observation_pb2 as pb
from server.storage.segments import Place

HEADER_TAG = 0x0A
PAYLOAD_TAG = 0x12
FIRST_READ_BYTES = 4096
"""More than nearly any header."""
VARINT_BYTES_MAX = 10

ReadRange = Callable[[Place, int, int], bytes]


class RecordHead(NamedTuple):
    """The header, and where in the record the encoded payload lies."""

    header: pb.ObservationHeader
    payload_offset: int
    payload_length: int


def read_head(read_range: ReadRange, place: Place) -> RecordHead:
    """Reads what stands before the payload.

    Raises:
        BrokenStateError: The record is damaged.
    """
    return _read_head(read_range, place, is_followed=False)


def list_headers(read_range: ReadRange, segment: str, length: int) -> Iterator[pb.ObservationHeader]:
    """The headers of a whole segment's records, without the database, up to its end or to a torn record."""
    offset = 0
    while offset < length:
        place = Place(segment, offset, length - offset)
        try:
            head = _read_head(read_range, place, is_followed=True)
        except BrokenStateError:
            return
        yield head.header
        offset += head.payload_offset + head.payload_length


def _read_head(read_range: ReadRange, place: Place, *, is_followed: bool) -> RecordHead:
    """Likewise; where others may follow, the place is that of all of them."""
    first = read_range(place, 0, min(FIRST_READ_BYTES, place.length))
    try:
        header_length, header_offset = _read_length(first, 0, HEADER_TAG)
        header_end = header_offset + header_length
        needed = min(header_end + 1 + VARINT_BYTES_MAX, place.length)
        if header_end > place.length:
            raise ValueError(f"its header would end at {header_end}")
        if needed > len(first):
            first += read_range(place, len(first), needed - len(first))
        header = pb.ObservationHeader.FromString(first[header_offset:header_end])
        # An empty payload is left out.
        if header_end == place.length or (is_followed and first[header_end] == HEADER_TAG):
            return RecordHead(header, header_end, 0)
        payload_length, payload_offset = _read_length(first, header_end, PAYLOAD_TAG)
        if payload_offset + payload_length > place.length:
            raise ValueError(f"its payload would end at {payload_offset + payload_length}")
    except (ValueError, IndexError, DecodeError) as error:
        raise BrokenStateError(
            f"expected an observation of {place.length} bytes at offset {place.offset} of segment {place.segment}, "
            f"but got: {error}",
            hint="restore the segment from its backup, or the days concerned from the archive",
        ) from error
    return RecordHead(header, payload_offset, payload_length)


def _read_length(content: bytes, offset: int, tag: int) -> tuple[int, int]:
    """The length of the field that begins here, and where its bytes begin."""
    if content[offset] != tag:
        raise ValueError(f"tag {content[offset]} in place of {tag}")
    length = shift = 0
    for place in range(offset + 1, offset + 1 + VARINT_BYTES_MAX):
        length |= (content[place] & 0x7F) << shift
        if content[place] < 0x80:
            return length, place + 1
        shift += 7
    raise ValueError("a length that does not end")
