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
SECTOR_BYTES = 512
_HEAD_BYTES = 512  # a prefix and the usual header in one read

ReadAt = Callable[[int, int], bytes]
"""(offset, length) -> the bytes there; fewer at the end of the file."""


@dataclass(slots=True)
class Record:
    """A record whose checksum is right.

    Attributes:
        offset: Where it begins, in bytes from the start of the file.
        end: Where the next one begins.
        header: The observation's header.
        payload: The encoded payload.
        header_content: The header as it is stored.
    """

    offset: int
    end: int
    header: pb.ObservationHeader
    payload: bytes
    header_content: bytes


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
    magic, header_bytes, payload_bytes, _ = _PREFIX.unpack(prefix)
    if magic != MAGIC or header_bytes > MAX_HEADER_BYTES or payload_bytes > MAX_PAYLOAD_BYTES:
        return None
    return parse_record(prefix + read_at(offset + PREFIX_BYTES, header_bytes + payload_bytes), 0, offset)


def parse_record(content: bytes, at: int, offset: int) -> Record | None:
    """The record in the content; None where no whole and undamaged record begins there.

    Args:
        content: Bytes of a file.
        at: Where in them the record begins.
        offset: Where in the file it begins.
    """
    if len(content) - at < PREFIX_BYTES:
        return None
    magic, header_bytes, payload_bytes, crc = _PREFIX.unpack_from(content, at)
    header_at = at + PREFIX_BYTES
    payload_at = header_at + header_bytes
    end = payload_at + payload_bytes
    if magic != MAGIC or header_bytes > MAX_HEADER_BYTES or end > len(content):
        return None
    header_content, payload = content[header_at:payload_at], content[payload_at:end]
    if zlib.crc32(payload, zlib.crc32(header_content, zlib.crc32(content[at + 4 : at + 12]))) != crc:
        return None
    try:
        header = pb.ObservationHeader.FromString(header_content)
    except DecodeError:
        return None
    return Record(offset, offset + end - at, header, payload, header_content)


def whole_end(read_at: ReadAt, offset: int, size: int) -> int | None:
    """Where a record ends that was written whole at the offset, and may be damaged since.

    Returns:
        None where no prefix is, the file is shorter, or its end or a sector in it is zeros: the write was cut off.
    """
    prefix = read_at(offset, PREFIX_BYTES)
    if len(prefix) < PREFIX_BYTES:
        return None
    magic, header_bytes, payload_bytes, _ = _PREFIX.unpack(prefix)
    end = offset + PREFIX_BYTES + int(header_bytes) + int(payload_bytes)
    if magic != MAGIC or header_bytes > MAX_HEADER_BYTES or end > size:
        return None
    content = read_at(offset, end - offset)
    is_torn = content.endswith(b"\0") or any(
        not content[i : i + SECTOR_BYTES].strip(b"\0") for i in _sectors(offset, end)
    )
    return None if is_torn else end


def _sectors(offset: int, end: int) -> Iterator[int]:
    """Where the sectors of the disk begin in the bytes from offset to end; a short last one is left out."""
    return iter(range(-offset % SECTOR_BYTES, end - offset - SECTOR_BYTES // 16, SECTOR_BYTES))


def read_header(read_at: ReadAt, offset: int) -> pb.ObservationHeader | None:
    """The header of the record at the offset, its checksum not held; None where none begins there."""
    head = read_at(offset, _HEAD_BYTES)
    if len(head) < PREFIX_BYTES:
        return None
    magic, header_bytes, _, _ = _PREFIX.unpack(head[:PREFIX_BYTES])
    if magic != MAGIC or header_bytes > MAX_HEADER_BYTES:
        return None
    if len(head) < PREFIX_BYTES + header_bytes:
        head = read_at(offset, PREFIX_BYTES + header_bytes)
    try:
        return pb.ObservationHeader.FromString(head[PREFIX_BYTES : PREFIX_BYTES + header_bytes])
    except DecodeError:
        return None


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
