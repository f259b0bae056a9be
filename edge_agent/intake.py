"""From waiting sources into the buffer: everything that waits becomes one write, and then the sources are released.

Where the disk is full, the sources wait and nothing is dropped. Knows no session and no network.
"""

from __future__ import annotations

import time

from edge_agent.alarms import Alarms
from edge_agent.buffer import Buffer
from edge_agent.report import InstrumentReport
from edge_agent.source_threads import Captured
from edge_agent.sources.source import Stopping
from fieldpost.errors import TryAgainError

RETRY_FIRST_S = 1.0
RETRY_MAX_S = 30.0


class Intake:
    """The captures that wait for the disk.

    Args:
        buffer: Where they go.
        alarms: Told while the disk is full.
    """

    def __init__(self, buffer: Buffer, alarms: Alarms) -> None:
        self._buffer = buffer
        self._alarms = alarms
        self._waiting: list[Captured] = []
        self._again: list[tuple[int, str, str]] = []
        self._retry_at_s = 0.0
        self._retry_s = RETRY_FIRST_S
        self.instruments: dict[str, InstrumentReport] = {}

    @property
    def wake_at_s(self) -> float | None:
        """When write makes sense, on the monotonic clock; None where nothing waits."""
        return self._retry_at_s if self._waiting or self._again else None

    def add(self, captured: Captured) -> None:
        """Takes captures whose source waits."""
        self._waiting.append(captured)

    def add_again(self, sequence: int, reason: str, detail: str) -> None:
        """Takes an observation in the buffer that needs a new sequence, since the server refused the old one."""
        self._again.append((sequence, reason, detail))

    def write(self, now_s: float) -> bool:
        """Writes everything that waits, with one fsync, and releases the sources.

        Returns:
            Whether something was written.

        Raises:
            BrokenStateError: The disk is broken; the sources keep what they have.
        """
        if self.wake_at_s is None or now_s < self.wake_at_s:
            return False
        try:
            while self._again:
                self._append_again(*self._again[0])
                del self._again[0]
            self._buffer.append([o for captured in self._waiting for o in captured.observations], time.time())
        except TryAgainError as error:
            self._alarms.set("disk", f"the disk takes nothing and the sources wait: {error}")
            self._retry_at_s = now_s + self._retry_s
            self._retry_s = min(2 * self._retry_s, RETRY_MAX_S)
            return False
        self._retry_s = RETRY_FIRST_S
        self._alarms.set("disk", "")
        self._release()
        return True

    def refuse_all(self) -> None:
        """At the end: whoever still waits keeps what it has."""
        for captured in self._waiting:
            captured.done.set_exception(Stopping())
        self._waiting.clear()

    def _release(self) -> None:
        for captured in self._waiting:
            report = self.instruments[captured.instrument]
            report.captured_count += len(captured.observations)
            report.last_capture_unix_s = time.time()
            captured.done.set_result(None)
        self._waiting.clear()

    def _append_again(self, sequence: int, reason: str, detail: str) -> None:
        """Gives the bytes a new sequence, then marks the old one; a crash in between costs a duplicate."""
        new_sequence = self._buffer.append_again(sequence, time.time())
        if new_sequence is not None:
            self._buffer.refuse(sequence, reason, f"its bytes now have sequence {new_sequence}: {detail}")
            self._buffer.save()
