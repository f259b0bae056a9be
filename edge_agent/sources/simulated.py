"""A simulated CL51, for demonstrations and tests: no instrument, but everything behind it is as in the field.

Measures in the present, on the whole multiples of its interval, as a real instrument does; or, with a start time, a
given stretch of time at a chosen speed. A wall clock that jumps by years makes it invent nothing, and keeps it from
nothing. Knows no buffer and no network.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from datetime import UTC

from edge_agent.capture import Capture
from edge_agent.source_settings import SimulatedSettings
from edge_agent.sources.framed_file import GROUP_OBSERVATIONS
from edge_agent.sources.source import Sink


class PresentTicks:
    """Which multiples of an interval an instrument in the present has measured. Plain values; reads no clock.

    A wall clock may be set by years. Monotonic time tells how much is due at most; wall time only says when it was.

    Args:
        interval_nanos: Between two measurements.
        wall_nanos: Wall time now; what was measured before is past.
        monotonic_nanos: Monotonic time now.
    """

    def __init__(self, interval_nanos: int, wall_nanos: int, monotonic_nanos: int) -> None:
        self._interval_nanos = interval_nanos
        self._last_index = wall_nanos // interval_nanos
        self._offset_nanos = wall_nanos - monotonic_nanos

    def due(self, wall_nanos: int, monotonic_nanos: int) -> range:
        """The indexes that are due since the last call."""
        offset_nanos = wall_nanos - monotonic_nanos
        if abs(offset_nanos - self._offset_nanos) >= self._interval_nanos:
            # The clock was set: what it left out is not made up for, and what it shows again is measured again.
            self._last_index = wall_nanos // self._interval_nanos - 1
        self._offset_nanos = offset_nanos
        due = range(self._last_index + 1, wall_nanos // self._interval_nanos + 1)
        if due:
            self._last_index = due[-1]
        return due


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
        self._origin_name = f"{settings.name}:simulated-{_sky_name(settings)}-{settings.interval_s:g}s-{begin}"
        self._next_index = origins.get(self._origin_name, -1) + 1

    def run(self, sink: Sink, stop: threading.Event) -> None:
        """See Source."""
        # Imported here: a station without a simulated instrument has no need of numpy.
        from fieldpost.simulation.cl51 import CLIMATES, SimulatedCl51

        settings = self._settings
        instrument = SimulatedCl51(
            settings.seed,
            climate=CLIMATES[settings.climate],
            latitude_deg=settings.latitude_deg,
            longitude_deg=settings.longitude_deg,
        )
        indexes = self._present_indexes(stop) if self._settings.start_time is None else self._paced_indexes(stop)
        for due in indexes:
            sink.put([self._capture(instrument.telegram(self._measure_unix_nanos(i) / 1e9), i) for i in due])

    def _present_indexes(self, stop: threading.Event) -> Iterator[range]:
        """What is measured now. What was not measured while the agent was off is not made up for."""
        ticks = PresentTicks(self._interval_nanos, time.time_ns(), time.monotonic_ns())
        while not stop.is_set():
            due = ticks.due(time.time_ns(), time.monotonic_ns())
            for first in range(due.start, due.stop, GROUP_OBSERVATIONS):
                yield range(first, min(first + GROUP_OBSERVATIONS, due.stop))
            if not due:
                left_nanos = self._interval_nanos - time.time_ns() % self._interval_nanos
                stop.wait(min(left_nanos / 1e9, 60.0))

    def _paced_indexes(self, stop: threading.Event) -> Iterator[range]:
        """What is due at the chosen speed; goes on where an earlier run of the agent was."""
        begun_s, begun_index = time.monotonic(), self._next_index
        while not stop.is_set() and not self._is_done():
            due_count = self._due_count(begun_s, begun_index)
            if due_count <= 0:
                stop.wait(min(self._wait_s(begun_s, begun_index), 60.0))
                continue
            due = range(self._next_index, self._next_index + min(due_count, GROUP_OBSERVATIONS))
            yield due
            self._next_index = due.stop

    def _is_done(self) -> bool:
        return self._settings.count is not None and self._next_index >= self._settings.count

    def _measure_unix_nanos(self, index: int) -> int:
        return self._start_unix_nanos + index * self._interval_nanos

    def _due_count(self, begun_s: float, begun_index: int) -> int:
        """How many telegrams are due now."""
        left = (self._settings.count or self._next_index + GROUP_OBSERVATIONS) - self._next_index
        if self._settings.speed_up == 0:
            return left
        passed_s = (time.monotonic() - begun_s) * self._settings.speed_up
        return min(left, begun_index + 1 + int(passed_s / self._settings.interval_s) - self._next_index)

    def _wait_s(self, begun_s: float, begun_index: int) -> float:
        """How long until the next telegram is due."""
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


def _sky_name(settings: SimulatedSettings) -> str:
    """Tells skies apart: another sky is another origin, which begins at its own first telegram."""
    climate = "" if settings.climate == "fair" else f"-{settings.climate}"
    places = (("lat", settings.latitude_deg), ("lon", settings.longitude_deg))
    return f"{settings.seed}{climate}" + "".join(f"-{key}{value:g}" for key, value in places if value is not None)
