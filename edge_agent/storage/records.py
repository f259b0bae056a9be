"""How one observation lies in a day file: a fixed prefix, the header, the payload. Opens no file.

    magic  "FPr1"        4 bytes
    length of the header 4 bytes, little-endian
    length of payload    4 bytes, little-endian
    CRC-32               4 bytes, little-endian, over both lengths, the header and the payload
    header               a serialized fieldpost.v1.ObservationHeader
    payload              the encoded bytes of the instrument

The same payload bytes are sent and stored at the server; nothing is compressed twice.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from fieldpost.v1 import observation_pb2 as pb

MAGIC = b"FPr1"
PREFIX_BYTES = 16
MAX_HEADER_BYTES = 1 << 16
MAX_PAYLOAD_BYTES = 1 << 30
_PREFIX = struct.Struct("<4sIII")
_LENGTHS = struct.Struct("<II")
_SEARCH_BYTES = 1 << 16

ReadAt = Callable[[int, int], bytes]
"""(offset, length) -> the bytes there; fewer at the end of the file."""


@dataclass(frozen=True, slots=True)
class Record:
    """A record whose checksum is right.

    Attributes:
        offset: Where it begins, in bytes from the start of the file.
        end: Where the next one begins.
        header: The observation's header.
        payload: The encoded payload.
    """

    offset: int
    end: int
    header: pb.ObservationHeader
    payload: bytes


def pack_record(header: bytes, payload: bytes) -> bytes:
    """One record."""
    lengths = _LENGTHS.pack(len(header), len(payload))
    crc = zlib.crc32(payload, zlib.crc32(header, zlib.crc32(lengths)))
    return _PREFIX.pack(MAGIC, len(header), len(payload), crc) + header + payload


def read_record(read_at: ReadAt, offset: int) -> Record | None:
    """The record at the offset; None where no whole and undamaged record begins there."""
    prefix = read_at(offset, PREFIX_BYTES)
    if len(prefix) < PREFIX_BYTES:
        return None
    magic, header_bytes, payload_bytes, crc = _PREFIX.unpack(prefix)
    if magic != MAGIC or header_bytes > MAX_HEADER_BYTES or payload_bytes > MAX_PAYLOAD_BYTES:
        return None
    body = read_at(offset + PREFIX_BYTES, header_bytes + payload_bytes)
    if len(body) < header_bytes + payload_bytes or zlib.crc32(body, zlib.crc32(prefix[4:12])) != crc:
        return None
    try:
        header = pb.ObservationHeader.FromString(body[:header_bytes])
    except DecodeError:
        return None
    return Record(offset, offset + PREFIX_BYTES + len(body), header, body[header_bytes:])


def scan_records(read_at: ReadAt, start: int) -> Iterator[Record]:
    """The undamaged records from start to the end, in order; damage is stepped over to the next record."""
    offset: int | None = start
    while offset is not None:
        record = read_record(read_at, offset)
        if record is not None:
            yield record
            offset = record.end
        else:
            offset = _next_magic(read_at, offset + 1)


def _next_magic(read_at: ReadAt, start: int) -> int | None:
    """Where the next magic number lies at or after start; None where there is none."""
    while chunk := read_at(start, _SEARCH_BYTES):
        found = chunk.find(MAGIC)
        if found >= 0:
            return start + found
        if len(chunk) < _SEARCH_BYTES:
            return None
        start += len(chunk) - len(MAGIC) + 1
    return None
