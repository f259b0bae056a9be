"""Sources: a replay and a simulated instrument, each into a sink that remembers what it was given."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from edge_source_support import RememberingSink

from edge_agent.capture import Capture
from edge_agent.source_settings import ReplaySettings, SimulatedSettings
from edge_agent.sources.replay import ReplaySource
from edge_agent.sources.simulated import SimulatedSource
from fieldpost.errors import InvalidRequestError

START = datetime(2025, 6, 1, tzinfo=UTC)


def drop(shared_data: Path, name: str, folder: Path, as_name: str | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    target = folder / (as_name or name)
    target.write_bytes((shared_data / "ceilometer" / name).read_bytes())
    return target


# --- replay ---


def replay_source(path: Path, origins: dict[str, int] | None = None, **changes: Any) -> ReplaySource:
    return ReplaySource(ReplaySettings(name="cl51", source="replay", path=path, **changes), origins or {})


def test_a_replay_hands_over_files_in_the_order_of_their_times_and_leaves_them_alone(
    shared_data: Path, tmp_path: Path
) -> None:
    drop(shared_data, "vaisala/cl51.DAT", tmp_path, "a.dat")  # 2020-11-15
    drop(shared_data, "vaisala/ct25k.dat", tmp_path, "b.dat")  # 2020-10-29
    drop(shared_data, "vaisala/C5061800-first-invalid.DAT", tmp_path, "c.dat")  # 2015
    drop(shared_data, "cl61/live_20210829_224520.nc", tmp_path, "d.nc")  # tells no time outside
    sink = RememberingSink()
    replay_source(tmp_path).run(sink, threading.Event())
    names = [capture.origin_name.removeprefix("cl51:") for capture in sink.captures]
    assert names == ["c.dat", "c.dat", "b.dat", "b.dat", "b.dat", "a.dat", "a.dat", "d.nc"]
    assert [capture.payload_format for capture in sink.captures][-2:] == ["vaisala-cl", "netcdf"]
    assert [name for name, *_ in sink.unframed] == ["c.dat"]
    assert len(list(tmp_path.iterdir())) == 4


def test_an_interrupted_replay_goes_on_where_it_was(shared_data: Path) -> None:
    path = shared_data / "ceilometer/vaisala/cl31_badtime.DAT"
    whole = RememberingSink()
    replay_source(path).run(whole, threading.Event())
    rest = RememberingSink()
    replay_source(path, {"cl51:cl31_badtime.DAT": 2}).run(rest, threading.Event())
    assert [capture.content for capture in rest.captures] == [capture.content for capture in whole.captures[3:]]
    done = RememberingSink()
    replay_source(path, whole.origins()).run(done, threading.Event())
    assert done.captures == []


def test_a_replay_keeps_the_pace_of_the_recording_times_the_speed_up(shared_data: Path) -> None:
    # Three telegrams, 15 s apart, 100 times faster: 0.3 s.
    begun = time.monotonic()
    sink = RememberingSink()
    replay_source(shared_data / "ceilometer/vaisala/ct25k.dat", speed_up=100).run(sink, threading.Event())
    assert len(sink.captures) == 3
    assert 0.29 <= time.monotonic() - begun < 3


def test_a_replay_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="expected recorded files"):
        replay_source(tmp_path)


def test_a_recording_of_lines_is_replayed_line_by_line(tmp_path: Path) -> None:
    (tmp_path / "weather.txt").write_bytes(b"12.1;80\n\n12.2;81\n12.3")
    sink = RememberingSink()
    replay_source(tmp_path, payload_format="line").run(sink, threading.Event())
    assert sink.contents() == [b"12.1;80\n", b"12.2;81\n", b"12.3"]


# --- simulated ---


def simulated_source(origins: dict[str, int] | None = None, **changes: Any) -> SimulatedSource:
    arguments: dict[str, Any] = {"start_time": START, "speed_up": 0.0, "count": 70} | changes
    return SimulatedSource(SimulatedSettings(name="cl51", source="simulated", **arguments), origins or {})


def test_simulated_telegrams_have_the_times_that_were_asked_for_and_come_in_groups() -> None:
    sink = RememberingSink()
    simulated_source(interval_s=15.0).run(sink, threading.Event())
    start_nanos = int(START.timestamp()) * 10**9
    assert [c.measure_unix_nanos for c in sink.captures] == [start_nanos + i * 15 * 10**9 for i in range(70)]
    assert sink.groups == [64, 6]


def test_an_interrupted_simulation_goes_on_with_the_same_telegrams() -> None:
    whole, part, rest = RememberingSink(), RememberingSink(crash_after=64), RememberingSink()
    simulated_source().run(whole, threading.Event())
    with pytest.raises(ConnectionAbortedError):
        simulated_source().run(part, threading.Event())
    simulated_source(part.origins()).run(rest, threading.Event())
    assert [c.content for c in part.captures + rest.captures] == [c.content for c in whole.captures]


def test_a_simulation_with_a_speed_up_is_paced_by_the_wall_clock() -> None:
    begun = time.monotonic()
    sink = RememberingSink()
    simulated_source(count=4, interval_s=15.0, speed_up=150.0).run(sink, threading.Event())
    assert len(sink.captures) == 4
    assert 0.29 <= time.monotonic() - begun < 3


def test_a_simulation_in_the_present_measures_now_on_whole_multiples_of_its_interval() -> None:
    stop = threading.Event()

    class StoppingSink(RememberingSink):
        def put(self, captures: Sequence[Capture]) -> None:
            super().put(captures)
            stop.set()

    sink = StoppingSink()
    simulated_source(start_time=None, speed_up=1.0, count=None, interval_s=0.2).run(sink, stop)
    (capture,) = sink.captures
    assert capture.measure_unix_nanos is not None
    assert abs(capture.measure_unix_nanos / 1e9 - time.time()) < 2
    assert capture.measure_unix_nanos % 200_000_000 == 0
