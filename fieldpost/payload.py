"""How an instrument's bytes travel inside an observation: compressed once, at the station, where that pays.

The same encoded bytes lie in the station's buffer, cross the network and lie in the server's segments; nobody
compresses twice. The SHA-256 is always that of the instrument's bytes.
"""

from __future__ import annotations

import hashlib
import threading

import zstandard

from fieldpost.errors import InvalidObservationError
from fieldpost.v1 import observation_pb2 as pb

ZSTD_LEVEL = 1
# Below this saving the receiver's work is not worth it; NetCDF-4 files (already deflated) end here.
MIN_SAVING = 0.05

_per_thread = threading.local()  # zstandard's objects must not be shared between threads


def encode_payload(content: bytes) -> tuple[bytes, pb.PayloadEncoding.ValueType]:
    """Compresses the instrument's bytes where that saves at least 5 %.

    Returns:
        The payload, and how it is encoded.
    """
    try:
        compressor: zstandard.ZstdCompressor = _per_thread.compressor
    except AttributeError:
        compressor = _per_thread.compressor = zstandard.ZstdCompressor(level=ZSTD_LEVEL)
    packed = compressor.compress(content)
    if len(packed) <= (1 - MIN_SAVING) * len(content):
        return packed, pb.PAYLOAD_ENCODING_ZSTD
    return content, pb.PAYLOAD_ENCODING_IDENTITY


def decode_payload(payload: bytes, encoding: pb.PayloadEncoding.ValueType, expected_bytes: int) -> bytes:
    """The instrument's bytes again.

    Never allocates more than expected_bytes: a frame that says another size is refused before it is unpacked.

    Raises:
        InvalidObservationError: The payload is not what its header says.
    """
    if encoding == pb.PAYLOAD_ENCODING_IDENTITY:
        content = payload
    elif encoding == pb.PAYLOAD_ENCODING_ZSTD:
        try:
            content_size = zstandard.frame_content_size(payload)
            if content_size != expected_bytes:
                raise InvalidObservationError(
                    f"expected a Zstandard frame with {expected_bytes} bytes of content, "
                    f"but its header says {content_size}"
                )
            try:
                decompressor: zstandard.ZstdDecompressor = _per_thread.decompressor
            except AttributeError:
                decompressor = _per_thread.decompressor = zstandard.ZstdDecompressor()
            content = decompressor.decompress(payload)
        except zstandard.ZstdError as error:
            raise InvalidObservationError(f"expected a Zstandard frame, but it cannot be read: {error}") from error
    else:
        raise InvalidObservationError(f"expected a payload encoding IDENTITY or ZSTD, but got {encoding}")
    if len(content) != expected_bytes:
        raise InvalidObservationError(f"expected a payload of {expected_bytes} bytes, but got {len(content)}")
    return content


def decode_checked(observation: pb.Observation) -> bytes:
    """The instrument's bytes of an observation, with length and SHA-256 checked.

    Raises:
        InvalidObservationError: The payload is not what its header says.
    """
    header = observation.header
    content = decode_payload(observation.payload, header.payload_encoding, header.payload_bytes)
    digest = hashlib.sha256(content).digest()
    if digest != header.sha256:
        raise InvalidObservationError(
            f"expected a payload with SHA-256 {header.sha256.hex()}, but got {digest.hex()}",
            hint="the bytes changed on the way; compare with the station's buffer",
        )
    return content
