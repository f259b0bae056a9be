"""How one observation too large for a message travels: in pieces, and on from where it was. Opens no connection."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from fieldpost._resuming import Patience
from fieldpost.errors import InvalidObservationError
from fieldpost.v1 import ingest_service_pb2 as pb
from fieldpost.v1.observation_pb2 import Observation, ObservationHeader
from fieldpost.v1.receipt_pb2 import Receipt

CHUNK_BYTES = 1024 * 1024
_CHECKED_BYTES_PER_S = 50e6  # of a slow disk: the server reads the whole once more before it promises anything


@dataclass(frozen=True, slots=True)
class FileObservation:
    """An observation whose bytes lie in a file, and are read from there as they are sent.

    Attributes:
        header: Its header; the payload is the file as it is.
        path: The file. It must not change before the observation is held.
    """

    header: ObservationHeader
    path: Path


Sendable: TypeAlias = Observation | FileObservation


def encoded_bytes(observation: Sendable) -> int:
    """Length of the payload as it travels."""
    if isinstance(observation, FileObservation):
        return observation.header.payload_bytes
    return len(observation.payload)


def read_chunk(observation: Sendable, offset: int) -> bytes:
    """The next bytes of the payload.

    Raises:
        InvalidObservationError: The file has become shorter.
    """
    if isinstance(observation, Observation):
        return observation.payload[offset : offset + CHUNK_BYTES]
    with observation.path.open("rb") as file:
        file.seek(offset)
        piece = file.read(CHUNK_BYTES)
    if not piece:
        raise InvalidObservationError(
            f"expected {observation.header.payload_bytes} bytes in {observation.path}, but there are {offset}",
            hint="the file changed while it was sent; send it again as a new observation",
        )
    return piece


class Uploading:
    """How far an upload has come.

    Args:
        observation: What is sent.
        patience_s: As Patience says.

    Attributes:
        held_bytes: So many bytes of the payload are on the server's disk.
        receipt: The server's promise, or refusal; None before it came.
    """

    def __init__(self, observation: Sendable, patience_s: float) -> None:
        self.observation = observation
        self.encoded_bytes = encoded_bytes(observation)
        self.patience = Patience(patience_s)
        self.held_bytes = 0
        self.receipt: Receipt | None = None

    def start(self) -> pb.UploadRequest:
        """The first message of a call."""
        start = pb.UploadStart(header=self.observation.header, encoded_bytes=self.encoded_bytes)
        return pb.UploadRequest(start=start)

    def chunk_at(self, offset: int) -> tuple[pb.UploadRequest, int]:
        """The message with the bytes from offset on, and where the next begins."""
        content = read_chunk(self.observation, offset)
        return pb.UploadRequest(chunk=pb.UploadChunk(offset_bytes=offset, content=content)), offset + len(content)

    def take(self, response: pb.UploadResponse) -> None:
        """Notes what the server says."""
        if response.HasField("receipt"):
            self.receipt = response.receipt
        if response.held_bytes > self.held_bytes or self.receipt is not None:
            self.patience.progress()
        else:
            self.patience.begin()
        self.held_bytes = response.held_bytes

    def silence_max_s(self, timeout_s: float) -> float:
        """How long nothing may move before the call is given up."""
        return timeout_s + self.encoded_bytes / _CHECKED_BYTES_PER_S

    def done_bytes(self) -> int:
        """How much of the instrument's bytes is on the server's disk, as near as can be told."""
        if self.receipt is not None or not self.encoded_bytes:
            return self.observation.header.payload_bytes
        return self.observation.header.payload_bytes * self.held_bytes // self.encoded_bytes
