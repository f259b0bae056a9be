"""The bytes that came and wait to be framed: bounded, stamped, and what does not fit is counted. Knows no framing.

Between the thread that reads a port and the one that waits for the disk: when the disk takes nothing for minutes, the
port is read on.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass

CHUNK_OVERHEAD_BYTES = 320
"""What a chunk costs beside its bytes, measured; small chunks are mostly overhead, and the bound counts it."""
BATCH_BYTES = 1 << 20
MAX_TORN = 1024
"""Senders of datagrams may use a new port for each; of so many, the one that has been silent longest is forgotten."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Bytes of one channel, as one read gave them.

    Attributes:
        channel: Which connection, for links that have several.
        content: The bytes; empty where the channel ended.
        clock: A serialized CaptureClock of when they came; small, since thousands may wait.
        arrived_s: The same moment on the monotonic clock.
        is_end: Whether no more will come on this channel.
        is_behind_loss: Whether bytes before these were lost.
    """

    channel: str
    content: bytes
    clock: bytes
    arrived_s: float
    is_end: bool = False
    is_behind_loss: bool = False


class ChunkQueue:
    """One reader puts, one framer takes.

    Args:
        max_bytes: So much memory may wait.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.lost_bytes = 0
        """How many bytes did not fit, ever."""
        self._chunks: deque[Chunk] = deque()
        self._used_bytes = 0
        self._torn: dict[str, None] = {}
        self._changed = threading.Condition()

    @property
    def content_bytes(self) -> int:
        """How many bytes of the instrument wait."""
        with self._changed:
            return sum(len(chunk.content) for chunk in self._chunks)

    def put(self, chunk: Chunk, hold_back: threading.Event | None = None) -> bool:
        """Puts a chunk.

        Args:
            chunk: The chunk. The end of a channel always fits.
            hold_back: With it, waits for room until this event is set, for senders that can wait.

        Returns:
            Whether it fitted; otherwise its bytes are lost, and the next chunk of the channel says so.
        """
        cost = len(chunk.content) + CHUNK_OVERHEAD_BYTES
        with self._changed:
            while hold_back is not None and self._is_full(cost) and not hold_back.is_set():
                self._changed.wait(0.1)
            if self._is_full(cost) and not chunk.is_end:
                self.lost_bytes += len(chunk.content)
                self._torn.pop(chunk.channel, None)
                self._torn[chunk.channel] = None
                if len(self._torn) > MAX_TORN:
                    del self._torn[next(iter(self._torn))]
                return False
            if chunk.channel in self._torn:
                del self._torn[chunk.channel]
                chunk = Chunk(chunk.channel, chunk.content, chunk.clock, chunk.arrived_s, chunk.is_end, True)
            self._chunks.append(chunk)
            self._used_bytes += cost
            self._changed.notify_all()
            return True

    def _is_full(self, cost: int) -> bool:
        """Whether a chunk does not fit; into an empty queue any does, since no room for it would come."""
        return bool(self._chunks) and self._used_bytes + cost > self.max_bytes

    def take(self, timeout_s: float) -> list[Chunk]:
        """The chunks that wait, in order, some of them where they are many; none where none came in time."""
        deadline_s = time.monotonic() + timeout_s
        taken: list[Chunk] = []
        taken_bytes = 0
        with self._changed:
            while not self._chunks and (left_s := deadline_s - time.monotonic()) > 0:
                self._changed.wait(left_s)
            while self._chunks and taken_bytes < BATCH_BYTES:
                taken.append(self._chunks.popleft())
                taken_bytes += len(taken[-1].content) + CHUNK_OVERHEAD_BYTES
            self._used_bytes -= taken_bytes
            self._changed.notify_all()
        return taken
