"""Recorded files, handed over in the order of their times, at the speed of the recording or faster.

The files stay as they are. A replay that was interrupted goes on where it was. Knows no buffer and no network.
"""

from __future__ import annotations

import fnmatch
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from edge_agent.capture import Capture
from edge_agent.clock import read_capture_clock
from edge_agent.source_settings import ReplaySettings
from edge_agent.sources.framed_file import (
    GROUP_OBSERVATIONS,
    frame_file,
    in_groups,
    join_unframed,
    printable,
    to_captures,
)
from edge_agent.sources.source import Sink
from fieldpost.errors import InvalidRequestError

HEAD_BYTES = 1 << 16
"""In so many bytes the first telegram of any ceilometer ends."""


class ReplaySource:
    """Hands over recorded files once.

    Args:
        settings: Its settings.
        origins: How far this and other sources have come, by origin name.

    Raises:
        InvalidRequestError: There is no file to replay.
    """

    is_finite = True

    def __init__(self, settings: ReplaySettings, origins: Mapping[str, int]) -> None:
        self.instrument = settings.name
        self._settings = settings
        self._prefix = f"{settings.name}:"
        self._highest = {name: index for name, index in origins.items() if name.startswith(self._prefix)}
        if not self._paths():
            raise InvalidRequestError(
                f"expected recorded files {settings.pattern} at {settings.path}, but there is none",
                hint="set instruments.path to a file, or to a folder of files",
            )

    def run(self, sink: Sink, stop: threading.Event) -> None:
        """See Source."""
        pace = _Pace(self._settings.speed_up, self._settings.interval_s)
        for path in self._in_time_order():
            content = path.read_bytes()
            file = frame_file(content, self._settings.payload_format, self._settings.framing_parameters())
            name = printable(path.name)
            origin_name = f"{self._prefix}{name}"
            captures = to_captures(file, self.instrument, origin_name, self._highest.get(origin_name, -1))
            for raw, reason in join_unframed(file.unframed):
                sink.set_aside(raw, name, reason)
            for group in self._paced(captures, pace, stop):
                sink.put(group)
                self._highest[origin_name] = group[-1].origin_index
            if stop.is_set():
                return

    def _paced(self, captures: list[Capture], pace: _Pace, stop: threading.Event) -> Iterator[list[Capture]]:
        """The captures in groups: without a pace as they come, else each when it is due, or those that are late."""
        if self._settings.speed_up == 0:
            for group in in_groups(captures):
                if stop.is_set():
                    return
                yield group
            return
        late: list[Capture] = []
        for capture in captures:
            wait_s = pace.wait_s(capture.measure_unix_nanos, time.monotonic())
            if wait_s > 0 or len(late) == GROUP_OBSERVATIONS:
                if late:
                    yield late
                late = []
            if wait_s > 0:
                stop.wait(wait_s)
            if stop.is_set():
                return
            # Sent as if it was measured now: the file was read at once, long before the last one is due.
            late.append(replace(capture, clock=read_capture_clock()))
        if late:
            yield late

    def _paths(self) -> list[Path]:
        root = self._settings.path
        if root.is_file():
            return [root]
        found = root.iterdir() if root.is_dir() else iter(())
        return sorted(path for path in found if path.is_file() and fnmatch.fnmatch(path.name, self._settings.pattern))

    def _in_time_order(self) -> list[Path]:
        """By the first time in each file; files that tell none come after those that do, by name."""
        return sorted(self._paths(), key=lambda path: (_first_time(path, self._settings), path.name))


class _Pace:
    """When recorded observations are due. Plain values; monotonic time is an argument."""

    def __init__(self, speed_up: float, interval_s: float) -> None:
        self._speed_up = speed_up
        self._interval_s = interval_s
        self._recorded_s = 0.0
        self._start: tuple[float, float] | None = None  # (recorded, monotonic) of the first observation

    def wait_s(self, measure_unix_nanos: int | None, now_s: float) -> float:
        """How long to wait for an observation; 0 or less where it is due."""
        if measure_unix_nanos is not None:
            self._recorded_s = measure_unix_nanos / 1e9
        elif self._start is not None:
            self._recorded_s += self._interval_s
        if self._start is None:
            self._start = (self._recorded_s, now_s)
        recorded_start_s, start_s = self._start
        return start_s + (self._recorded_s - recorded_start_s) / self._speed_up - now_s


def _first_time(path: Path, settings: ReplaySettings) -> float:
    """The first time in a recorded file, unix seconds; infinite where it tells none."""
    with path.open("rb") as recording:
        file = frame_file(recording.read(HEAD_BYTES), settings.payload_format, settings.framing_parameters())
    times = (observation.measure_unix_s for observation in file.observations)
    return next((float(unix_s) for unix_s in times if unix_s is not None), float("inf"))
