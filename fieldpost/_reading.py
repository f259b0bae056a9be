"""Puts the pieces of an observation's payload together again: unpacked, and checked. Opens no connection."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import zstandard

from fieldpost._resuming import Patience
from fieldpost.errors import BrokenStateError, InvalidObservationError
from fieldpost.payload import decode_checked
from fieldpost.v1 import observation_pb2, observations_service_pb2
from fieldpost.v1 import observations_service_pb2 as pb

_TELL = "ask the server's operator to look at the observation; read it again to see whether the network did it"


class Reading:
    """A payload that comes in pieces, and goes on where it was when the connection breaks.

    Args:
        request: Which observation.
        patience_s: As Patience says.

    Attributes:
        header: Its header; None before the first piece.
    """

    def __init__(self, request: pb.ReadObservationRequest, patience_s: float) -> None:
        self.patience = Patience(patience_s)
        self.header: observation_pb2.ObservationHeader | None = None
        self._which = request
        self._offset = 0
        self._encoded_bytes = -1
        self._decoded_bytes = 0
        self._digest = hashlib.sha256()
        self._unpack = zstandard.ZstdDecompressor().decompressobj()

    def request(self) -> pb.ReadObservationRequest:
        """The request that goes on where the reading stands."""
        request = pb.ReadObservationRequest()
        request.CopyFrom(self._which)
        request.offset_bytes = self._offset
        return request

    def take(self, response: pb.ReadObservationResponse) -> Iterator[bytes]:
        """The instrument's bytes that a piece holds.

        Raises:
            BrokenStateError: They are not what the header says.
        """
        if response.HasField("header"):
            self._begin(response)
        if self.header is None:
            raise BrokenStateError("expected the observation's header first, but got bytes", hint=_TELL)
        self._offset += len(response.content)
        content = self._decoded(response.content)
        self._decoded_bytes += len(content)
        self._digest.update(content)
        if self._offset >= self._encoded_bytes:
            self._check(self.header)
        if content:
            yield content

    def _begin(self, response: pb.ReadObservationResponse) -> None:
        if self.header is not None and self.header.sha256 != response.header.sha256:
            raise BrokenStateError("expected the same observation after the break, but got another", hint=_TELL)
        self.header = response.header
        self._encoded_bytes = response.encoded_bytes

    def _decoded(self, piece: bytes) -> bytes:
        assert self.header is not None
        if self.header.payload_encoding != observation_pb2.PAYLOAD_ENCODING_ZSTD:
            return piece
        try:
            return self._unpack.decompress(piece) if piece else b""
        except zstandard.ZstdError as error:
            raise BrokenStateError(f"expected a Zstandard frame, but it cannot be read: {error}", hint=_TELL) from error

    def _check(self, header: observation_pb2.ObservationHeader) -> None:
        if self._decoded_bytes != header.payload_bytes or self._digest.digest() != header.sha256:
            raise BrokenStateError(
                f"expected {header.payload_bytes} bytes with SHA-256 {header.sha256.hex()}, but got "
                f"{self._decoded_bytes} with {self._digest.hexdigest()}",
                hint=_TELL,
            )

    def is_complete(self, *, has_ended_well: bool) -> bool:
        """Whether all bytes have come."""
        return self._encoded_bytes >= 0 and self._offset >= self._encoded_bytes


def held_content(held: observations_service_pb2.HeldObservation) -> bytes | None:
    """The instrument's bytes of an observation that was streamed; None where it came without its payload.

    Raises:
        BrokenStateError: They are not what the header says.
    """
    if not held.payload and held.header.payload_bytes:
        return None
    try:
        return decode_checked(observation_pb2.Observation(header=held.header, payload=held.payload))
    except InvalidObservationError as error:
        raise BrokenStateError(f"{error} (observation {held.observation_id})", hint=_TELL) from error
