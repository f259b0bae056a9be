"""Sources: a replay and a simulated instrument, each into a sink that remembers what it was given."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from edge_source_support import RememberingSink

from edge_agent.capture import Capture, observation_of
from edge_agent.source_settings import ReplaySettings, SimulatedSettings, parse_instrument
from edge_agent.sources.replay import ReplaySource
from edge_agent.sources.simulated import PresentTicks, SimulatedSource
from fieldpost.errors import InvalidRequestError
from fieldpost.simulation import HELD_OUT, SimulatedCl51

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
    assert 0.29 <= time.monotonic() - begun < 10


def test_with_a_pace_each_observation_has_the_clock_of_its_handing_over(shared_data: Path) -> None:
    # 15 s apart, 100 times faster.
    sink = RememberingSink()
    replay_source(shared_data / "ceilometer/vaisala/ct25k.dat", speed_up=100).run(sink, threading.Event())
    clocks_s = [capture.clock.monotonic_nanos / 1e9 for capture in sink.captures]
    assert all(0.1 < later - earlier < 5 for earlier, later in pairwise(clocks_s))


def test_a_recording_whose_name_is_no_utf_8_is_replayed_like_any_other(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"m\xfcnchen.txt")).write_bytes(b"a\n")
    sink = RememberingSink()
    replay_source(tmp_path, payload_format="line").run(sink, threading.Event())
    (capture,) = sink.captures
    assert observation_of(capture).header.origin == "cl51:m\\xfcnchen.txt#0"


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


def test_a_simulated_sky_is_that_of_its_place_and_climate() -> None:
    sink = RememberingSink()
    simulated_source(count=2, climate="held-out", latitude_deg=52.21, longitude_deg=14.13).run(sink, threading.Event())
    instrument = SimulatedCl51(1, climate=HELD_OUT, latitude_deg=52.21, longitude_deg=14.13)
    assert sink.contents() == [instrument.telegram(START.timestamp() + step_s) for step_s in (0, 15)]
    assert sink.contents()[0] != SimulatedCl51(1, climate=HELD_OUT).telegram(START.timestamp())


@pytest.mark.parametrize("change", [{"climate": "training"}, {"latitude_deg": 52.0}, {"longitude_deg": 52.0}])
def test_under_another_sky_a_simulation_begins_anew(change: dict[str, Any]) -> None:
    before, after = RememberingSink(), RememberingSink()
    simulated_source(count=3).run(before, threading.Event())
    simulated_source(before.origins(), count=3, **change).run(after, threading.Event())
    assert len(after.captures) == 3


def test_a_simulation_with_a_speed_up_is_paced_by_the_wall_clock() -> None:
    begun = time.monotonic()
    sink = RememberingSink()
    simulated_source(count=4, interval_s=15.0, speed_up=150.0).run(sink, threading.Event())
    assert len(sink.captures) == 4
    assert 0.29 <= time.monotonic() - begun < 10


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latitude_deg": 90.5}, "latitude_deg to be at most 90, but got 90.5"),
        ({"latitude_deg": -91.0}, "latitude_deg to be at least -90"),
        ({"longitude_deg": 181.0}, "longitude_deg to be at most 180, but got 181"),
        ({"climate": "wet"}, "climate to be a fair or training or held-out, but got 'wet'"),
    ],
)
def test_a_sky_that_is_nowhere_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        parse_instrument({"name": "cl51", "source": "simulated", **change})


class StoppingSink(RememberingSink):
    """Ends the source with the first observation."""

    def __init__(self) -> None:
        super().__init__()
        self.stop = threading.Event()

    def put(self, captures: Sequence[Capture]) -> None:
        super().put(captures)
        self.stop.set()


def present_source(origins: dict[str, int] | None = None) -> SimulatedSource:
    return simulated_source(origins, start_time=None, speed_up=1.0, count=None, interval_s=0.2)


def test_a_simulation_in_the_present_measures_now_on_whole_multiples_of_its_interval() -> None:
    sink = StoppingSink()
    present_source().run(sink, sink.stop)
    (capture,) = sink.captures
    assert capture.measure_unix_nanos is not None
    assert abs(capture.measure_unix_nanos / 1e9 - time.time()) < 10
    assert capture.measure_unix_nanos % 200_000_000 == 0


def test_a_simulation_that_once_measured_in_2099_measures_now() -> None:
    sink = StoppingSink()
    source = present_source({"cl51:simulated-1-0.2s-present": 4_070_908_800 * 5})
    watchdog = threading.Timer(5.0, sink.stop.set)
    watchdog.start()
    source.run(sink, sink.stop)
    watchdog.cancel()
    assert len(sink.captures) == 1


def test_a_clock_that_jumps_to_2099_and_back_costs_a_simulation_nothing_and_gives_it_nothing() -> None:
    second, far = 10**9, 74 * 365 * 86400 * 10**9
    ticks, wall_nanos, measured = PresentTicks(15 * second, 0, 7), 0, []
    for passed_s in range(1, 601):
        if passed_s in (200, 400):
            wall_nanos += far if passed_s == 200 else -far
        wall_nanos += second
        measured += ticks.due(wall_nanos, 7 + passed_s * second)
    assert 40 <= len(measured) <= 42, "each 15 s one, and one at each jump"
    assert sum(index > 1000 for index in measured) in (13, 14)


def test_what_a_simulation_could_not_hand_over_while_the_disk_refused_is_made_up_for() -> None:
    ticks = PresentTicks(15 * 10**9, 0, 0)
    assert list(ticks.due(61 * 10**9, 61 * 10**9)) == [1, 2, 3, 4]
    assert not ticks.due(61 * 10**9, 61 * 10**9)
    assert not ticks.due(59 * 10**9, 62 * 10**9), "set back by a little: it waits"
    assert list(ticks.due(75 * 10**9, 78 * 10**9)) == [5]
