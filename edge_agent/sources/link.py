"""What a serial port, a TCP connection and a UDP socket have in common, and the thread that only reads them.

Stamps bytes the moment they come. Opens again, with backoff, whatever breaks. Knows no framing and no disk.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from edge_agent.clock import read_capture_clock
from edge_agent.sources.chunk_queue import Chunk, ChunkQueue

logger = logging.getLogger(__name__)

RETRY_FIRST_S = 1.0
RETRY_MAX_S = 30.0
READ_TIMEOUT_S = 0.2
READ_BYTES = 1 << 16
LOSS_ALARM_S = 86400.0
"""A loss is an alarm until so long after the last one."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """What one read gave.

    Attributes:
        channel: Which connection, "host:port" where there are several; empty where there is one only.
        content: The bytes.
        is_end: Whether the channel ended behind them.
    """

    channel: str
    content: bytes
    is_end: bool = False


class Link(Protocol):
    """One way for bytes to come. Used by one thread."""

    @property
    def kind(self) -> str:
        """serial, tcp or udp: a word for origins."""
        ...

    @property
    def name(self) -> str:
        """What it is, for people."""
        ...

    @property
    def can_hold_back(self) -> bool:
        """Whether the sender waits when nobody reads."""
        ...

    @property
    def has_ends(self) -> bool:
        """Whether its channels end with it; datagrams have no connection, and silence ends what they began."""
        ...

    @property
    def problem(self) -> str:
        """What is wrong although it is open; empty where nothing is."""
        ...

    def open(self) -> None:
        """Opens it; raises OSError where that fails."""
        ...

    def read(self, timeout_s: float) -> Sequence[Arrival]:
        """What came; waits for it up to the timeout. Raises OSError where it broke."""
        ...

    def close(self) -> None:
        """Closes it, open or not."""
        ...


class LinkReader:
    """Reads a link into a queue until stop is set, in a thread of its own.

    Args:
        link: The link.
        queue: Where its bytes go.
        stop: Ends the thread, within a second where nothing hangs in the kernel.
        tell: Called when problem or the queue's loss may have changed.
    """

    def __init__(self, link: Link, queue: ChunkQueue, stop: threading.Event, tell: Callable[[], None]) -> None:
        self.problem = ""
        """What is wrong with the link; empty from the first bytes on."""
        self._link = link
        self._queue = queue
        self._stop = stop
        self._tell = tell
        self._channels: set[str] = set()
        self._retry_s = RETRY_FIRST_S
        self._held_s = 0.0
        self._thread = threading.Thread(target=self._run, name=f"reader {link.name}", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def now_s(self) -> float:
        """Monotonic time without the times at which the sender was held back: those are no silence."""
        return time.monotonic() - self._held_s

    def join(self, timeout_s: float) -> None:
        """Waits for the thread to end; one that hangs in the kernel is left to itself, it reads nothing more."""
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._link.open()
                while not self._stop.is_set():
                    for arrival in self._link.read(READ_TIMEOUT_S):
                        self._take(arrival)
            except OSError as error:
                self._note_failure(error.strerror or str(error))
            except Exception as error:  # the one place that catches: nobody would begin this thread again
                logger.exception("link failed", extra={"link": self._link.name})
                self._note_failure(str(error))
            finally:
                self._link.close()
                self._end_channels()
            if self._stop.wait(self._retry_s):
                return
            self._retry_s = min(2 * self._retry_s, RETRY_MAX_S)

    def _take(self, arrival: Arrival) -> None:
        clock, now_s = read_capture_clock().SerializeToString(), self.now_s()
        if arrival.content:
            if self._link.has_ends:
                self._channels.add(arrival.channel)
            chunk = Chunk(arrival.channel, arrival.content, clock, now_s)
            has_fitted = self._queue.put(chunk, self._stop if self._link.can_hold_back else None)
            self._held_s += self.now_s() - now_s
            self._retry_s = RETRY_FIRST_S
            if self.problem or not has_fitted:
                self.problem = ""
                self._tell()
        if arrival.is_end and arrival.channel in self._channels:
            self._channels.discard(arrival.channel)
            self._queue.put(Chunk(arrival.channel, b"", clock, now_s, is_end=True))

    def _note_failure(self, reason: str) -> None:
        self.problem = f"expected bytes from {self._link.name}, but got: {reason}"
        self._tell()

    def _end_channels(self) -> None:
        clock, now_s = read_capture_clock().SerializeToString(), self.now_s()
        for channel in sorted(self._channels):
            self._queue.put(Chunk(channel, b"", clock, now_s, is_end=True))
        self._channels.clear()
