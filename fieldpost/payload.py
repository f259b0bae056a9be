"""How an instrument's bytes travel inside an observation: compressed once, at the station, where that pays.

The same encoded bytes lie in the station's buffer, cross the network and lie in the server's segments; nobody
compresses twice. The SHA-256 is always that of the instrument's bytes.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence

import zstandard

from fieldpost.errors import InvalidObservationError
from fieldpost.v1 import observation_pb2 as pb

# Level 1, looking only for matches of 7 bytes and more: on telegrams smaller than level 3, at half its time, and what
# is made so is unpacked faster (docs/decisions.md). Files lose nothing.
PARAMETERS = zstandard.ZstdCompressionParameters.from_level(
    1, min_match=7, strategy=zstandard.STRATEGY_FAST, write_content_size=True
)
# Below this saving the receiver's work is not worth it; NetCDF-4 files (already deflated) end here.
MIN_SAVING = 0.05
# What check_payloads unpacks at once at most.
TOGETHER_BYTES_MAX = 16 * 1024 * 1024

_per_thread = threading.local()  # zstandard's objects must not be shared between threads


def encode_payload(content: bytes) -> tuple[bytes, pb.PayloadEncoding.ValueType]:
    """Compresses the instrument's bytes where that saves at least 5 %.

    Returns:
        The payload, and how it is encoded.
    """
    packed = _compressor().compress(content)
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
            content = _decompressor().decompress(payload)
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
    _check_digest(hashlib.sha256(content).digest(), header.sha256)
    return content


def check_payloads(observations: Sequence[pb.Observation]) -> list[InvalidObservationError | None]:
    """Checks length and SHA-256 of many observations; for each, in order, None or what is wrong with it.

    Small Zstandard frames are unpacked all in one call. One by one they cost a fifth more, most of it for the
    interpreter going to another thread and back at each of them.
    """
    try:
        contents = _decode_together(observations)
    except zstandard.ZstdError:
        contents = []  # at least one is damaged: find out which
    found: list[InvalidObservationError | None] = []
    for index, observation in enumerate(observations):
        content = contents[index] if contents else None
        try:
            if content is None:
                decode_checked(observation)
            else:
                _check_digest(hashlib.sha256(content).digest(), observation.header.sha256)
            found.append(None)
        except InvalidObservationError as error:
            found.append(error)
    return found


def _decode_together(observations: Sequence[pb.Observation]) -> list[memoryview | None]:
    """The contents of the Zstandard frames whose headers are right, as long as they are small together; else None."""
    contents: list[memoryview | None] = [None] * len(observations)
    places: list[int] = []
    frames: list[bytes | bytearray | memoryview] = []
    room = TOGETHER_BYTES_MAX
    for place, observation in enumerate(observations):
        header = observation.header
        if header.payload_encoding == pb.PAYLOAD_ENCODING_ZSTD and 0 < header.payload_bytes <= room:
            frame = observation.payload
            if zstandard.frame_content_size(frame) == header.payload_bytes:
                places.append(place)
                frames.append(frame)
                room -= header.payload_bytes
    if frames:
        unpacked = _decompressor().multi_decompress_to_buffer(frames)
        for index, place in enumerate(places):
            contents[place] = memoryview(unpacked[index])  # type: ignore[arg-type]  # Buffer is a name of 3.12
    return contents


def _check_digest(digest: bytes, expected: bytes) -> None:
    if digest != expected:
        raise InvalidObservationError(
            f"expected a payload with SHA-256 {expected.hex()}, but got {digest.hex()}",
            hint="the bytes changed on the way; compare with the station's buffer",
        )


def _compressor() -> zstandard.ZstdCompressor:
    try:
        found: zstandard.ZstdCompressor = _per_thread.compressor
    except AttributeError:
        found = _per_thread.compressor = zstandard.ZstdCompressor(compression_params=PARAMETERS)
    return found


def _decompressor() -> zstandard.ZstdDecompressor:
    try:
        found: zstandard.ZstdDecompressor = _per_thread.decompressor
    except AttributeError:
        found = _per_thread.decompressor = zstandard.ZstdDecompressor()
    return found
