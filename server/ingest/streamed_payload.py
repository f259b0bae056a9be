"""Whether an encoded payload is what its header says, found out with a few megabytes of memory however long it is.

The same rules as fieldpost.payload, which has the whole payload in memory. Pure but for the file that it reads.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import IO

import zstandard

from fieldpost.errors import InvalidObservationError
from fieldpost.v1 import observation_pb2 as pb

PIECE_BYTES = 1024 * 1024
_FRAME_HEADER_BYTES = 18


def find_contradiction(header: pb.ObservationHeader, encoded_bytes: int) -> str:
    """Why no payload of this length can be what the header says; empty where one can. Asked before any of it is sent.

    Args:
        header: Says encoding, length and SHA-256.
        encoded_bytes: Length of the encoded payload.
    """
    if len(header.sha256) != 32:
        return f"expected a SHA-256 of 32 bytes, but got {len(header.sha256)}"
    if header.payload_encoding == pb.PAYLOAD_ENCODING_IDENTITY:
        if encoded_bytes == header.payload_bytes:
            return ""
        return f"expected {header.payload_bytes} bytes of payload as the header says, but {encoded_bytes} are to come"
    if header.payload_encoding != pb.PAYLOAD_ENCODING_ZSTD:
        return f"expected a payload encoding IDENTITY or ZSTD, but got {header.payload_encoding}"
    return "" if encoded_bytes > 0 else f"expected a Zstandard frame, but {encoded_bytes} bytes are to come"


def check_stream(file: IO[bytes], header: pb.ObservationHeader) -> None:
    """Reads an encoded payload and compares it with its header.

    Args:
        file: At the payload's first byte; the payload is all that follows.
        header: What it should be.

    Raises:
        InvalidObservationError: It is something else.
    """
    digest, count = hashlib.sha256(), 0
    try:
        for piece in _decode(file, header):
            digest.update(piece)
            count += len(piece)
            if count > header.payload_bytes:
                break
    except zstandard.ZstdError as error:
        raise InvalidObservationError(f"expected a Zstandard frame, but it cannot be read: {error}") from error
    if count != header.payload_bytes:
        more = " or more" if count > header.payload_bytes else ""
        raise InvalidObservationError(f"expected a payload of {header.payload_bytes} bytes, but got {count}{more}")
    if digest.digest() != header.sha256:
        raise InvalidObservationError(
            f"expected a payload with SHA-256 {header.sha256.hex()}, but got {digest.hexdigest()}",
            hint="the bytes changed on the way; send them again",
        )


def _decode(file: IO[bytes], header: pb.ObservationHeader) -> Iterator[bytes]:
    if header.payload_encoding == pb.PAYLOAD_ENCODING_IDENTITY:
        while piece := file.read(PIECE_BYTES):
            yield piece
        return
    first = file.tell()
    content_size = zstandard.frame_content_size(file.read(_FRAME_HEADER_BYTES))
    if content_size != header.payload_bytes:
        raise InvalidObservationError(
            f"expected a Zstandard frame with {header.payload_bytes} bytes of content, "
            f"but its header says {content_size}"
        )
    file.seek(first)
    with zstandard.ZstdDecompressor().stream_reader(file, closefd=False) as stream:
        while piece := stream.read(PIECE_BYTES):
            yield piece
