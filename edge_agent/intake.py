"""From waiting sources into the buffer: everything that waits becomes one write, and then the sources are released.

Where the disk is full and nothing may go, or where it is broken, the sources wait; what they hold is not dropped, and
is written as soon as the disk takes it. Knows no session and no network.
"""

from __future__ import annotations

import time

from edge_agent.alarms import Alarms
from edge_agent.buffer import Buffer
from edge_agent.report import InstrumentReport
from edge_agent.session_events import RefusedObservation
from edge_agent.source_threads import Captured
from edge_agent.sources.source import Stopping
from edge_agent.upkeep import Upkeep
from fieldpost.errors import BrokenStateError, FieldpostError, TryAgainError
from fieldpost.v1 import observation_pb2 as pb

RETRY_FIRST_S = 1.0
RETRY_MAX_S = 30.0
ROOM_BYTES = 1 << 20
"""So much more than what waits comes free at once, where it can."""


class Intake:
    """The captures that wait for the disk.

    Args:
        buffer: Where they go.
        alarms: Told while the disk refuses.
        upkeep: Makes room, where the policy lets it.
    """

    def __init__(self, buffer: Buffer, alarms: Alarms, upkeep: Upkeep) -> None:
        self._buffer = buffer
        self._alarms = alarms
        self._upkeep = upkeep
        self._waiting: list[Captured] = []
        self._again: list[RefusedObservation] = []
        self._retry_at_s = 0.0
        self._retry_s = RETRY_FIRST_S
        self.instruments: dict[str, InstrumentReport] = {}
        self.seen_s: dict[str, float] = {}
        """When each instrument gave something last, on the monotonic clock."""

    @property
    def wake_at_s(self) -> float | None:
        """When write makes sense, on the monotonic clock; None where nothing waits."""
        return self._retry_at_s if self._waiting or self._again else None

    def add(self, captured: Captured) -> None:
        """Takes captures whose source waits."""
        self._waiting.append(captured)

    def add_again(self, refused: RefusedObservation) -> None:
        """Takes an observation in the buffer that needs a new sequence, since the server refused the old one."""
        self._again.append(refused)

    def write(self, now_s: float) -> list[pb.Observation]:
        """Writes everything that waits, with one fsync, and releases the sources.

        Returns:
            What was written, in the order of sequences.
        """
        if self.wake_at_s is None or now_s < self.wake_at_s:
            return []
        observations = [o for captured in self._waiting for o in captured.observations]
        try:
            again = self._write(observations)
        except FieldpostError as error:
            self._alarms.set("disk", f"the disk takes nothing, and the sources wait: {error}")
            self._retry_at_s = now_s + self._retry_s
            self._retry_s = min(2 * self._retry_s, RETRY_MAX_S)
            return []
        self._retry_s = RETRY_FIRST_S
        self._alarms.set("disk", "")
        self._release()
        return again + observations

    def _write(self, observations: list[pb.Observation]) -> list[pb.Observation]:
        """Writes, and makes room first where the disk is full.

        Returns:
            Those that were appended again.
        """
        if self._upkeep.is_full:
            ceiling = f"the ceiling of {self._upkeep.policy.buffer_max_bytes} bytes is reached"
            raise TryAgainError(f"expected room in the buffer, but {ceiling}, and nothing in it is delivered")
        again = []
        while self._again:
            again += self._append_again(self._again[0])
            del self._again[0]
        while True:
            try:
                self._buffer.append(observations, time.time())
                return again
            except TryAgainError:
                if not self._upkeep.make_room(ROOM_BYTES + sum(len(o.payload) for o in observations)):
                    raise
            except BrokenStateError:
                # A block that the card does not take: elsewhere it may. What was written before is not touched again.
                self._buffer.leave_newest_file()
                raise

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
            self.seen_s[captured.instrument] = time.monotonic()
            captured.done.set_result(None)
        self._waiting.clear()

    def _append_again(self, refused: RefusedObservation) -> list[pb.Observation]:
        """Gives the bytes a new sequence, then marks the old one; a crash in between costs a duplicate."""
        appended = self._buffer.append_again(refused.sequence, time.time())
        for observation in appended:
            detail = f"its bytes now have sequence {observation.header.sequence}: {refused.detail}"
            self._buffer.refuse(refused.sequence, refused.reason, detail)
            self._buffer.save()
        return appended
