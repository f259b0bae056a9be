"""A simulated CL51, for demonstrations and tests: no instrument, but everything behind it is as in the field.

Measures in the present, on the whole multiples of its interval, as a real instrument does; or, with a start time, a
given stretch of time at a chosen speed. Knows no buffer and no network.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from datetime import UTC

from edge_agent.capture import Capture
from edge_agent.source_settings import SimulatedSettings
from edge_agent.sources.framed_file import GROUP_OBSERVATIONS
from edge_agent.sources.source import Sink


class SimulatedSource:
    """Hands over simulated telegrams.

    Args:
        settings: Its settings.
        origins: How far this and other sources have come, by origin name.
    """

    def __init__(self, settings: SimulatedSettings, origins: Mapping[str, int]) -> None:
        self.instrument = settings.name
        self.is_finite = settings.count is not None
        self._settings = settings
        start = settings.start_time
        # Whole nanoseconds: a float of today's unix time is only good to some hundreds of them.
        self._start_unix_nanos = round(start.timestamp() * 1e6) * 1000 if start else 0
        self._interval_nanos = round(settings.interval_s * 1e9)
        begin = f"{start.astimezone(UTC):%Y%m%dT%H%M%SZ}" if start else "present"
        self._origin_name = f"{settings.name}:simulated-{settings.seed}-{settings.interval_s:g}s-{begin}"
        self._next_index = origins.get(self._origin_name, -1) + 1

    def run(self, sink: Sink, stop: threading.Event) -> None:
        """See Source."""
        # Imported here: a station without a simulated instrument has no need of numpy.
        from fieldpost.simulation import SimulatedCl51

        instrument = SimulatedCl51(self._settings.seed)
        if self._settings.start_time is None:
            # What was not measured while the agent was off is not made up for.
            self._next_index = max(self._next_index, time.time_ns() // self._interval_nanos + 1)
        begun_s, begun_index = time.monotonic(), self._next_index
        while not stop.is_set() and not self._is_done():
            due_count = self._due_count(begun_s, begun_index)
            if due_count <= 0:
                stop.wait(min(self._wait_s(begun_s, begun_index), 60.0))
                continue
            indexes = range(self._next_index, self._next_index + min(due_count, GROUP_OBSERVATIONS))
            sink.put([self._capture(instrument.telegram(self._measure_unix_nanos(i) / 1e9), i) for i in indexes])
            self._next_index = indexes.stop

    def _is_done(self) -> bool:
        return self._settings.count is not None and self._next_index >= self._settings.count

    def _measure_unix_nanos(self, index: int) -> int:
        return self._start_unix_nanos + index * self._interval_nanos

    def _due_count(self, begun_s: float, begun_index: int) -> int:
        """How many telegrams are due now."""
        left = (self._settings.count or self._next_index + GROUP_OBSERVATIONS) - self._next_index
        if self._settings.start_time is None:
            return time.time_ns() // self._interval_nanos - self._next_index + 1
        if self._settings.speed_up == 0:
            return left
        passed_s = (time.monotonic() - begun_s) * self._settings.speed_up
        return min(left, begun_index + 1 + int(passed_s / self._settings.interval_s) - self._next_index)

    def _wait_s(self, begun_s: float, begun_index: int) -> float:
        """How long until the next telegram is due."""
        if self._settings.start_time is None:
            return max(0.0, self._measure_unix_nanos(self._next_index) / 1e9 - time.time())
        due_s = begun_s + (self._next_index - begun_index) * self._settings.interval_s / self._settings.speed_up
        return max(0.0, due_s - time.monotonic())

    def _capture(self, telegram: bytes, index: int) -> Capture:
        return Capture(
            instrument=self.instrument,
            payload_format=self._settings.payload_format or "vaisala-cl",
            content=telegram,
            origin_name=self._origin_name,
            origin_index=index,
            measure_unix_nanos=self._measure_unix_nanos(index),
        )
