"""Sources: a drop folder, a replay and a simulated instrument, each into a sink that remembers what it was given."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from edge_agent.capture import Capture
from edge_agent.source_settings import FolderSettings, ReplaySettings, SimulatedSettings
from edge_agent.sources.folder import FolderSource, look_again
from edge_agent.sources.replay import ReplaySource
from edge_agent.sources.simulated import SimulatedSource
from fieldpost.errors import InvalidRequestError

START = datetime(2025, 6, 1, tzinfo=UTC)


class RememberingSink:
    """What a source handed over, in order; raises once so many captures are there, as a crash would."""

    def __init__(self, crash_after: int | None = None) -> None:
        self.captures: list[Capture] = []
        self.groups: list[int] = []
        self.unframed: list[tuple[str, bytes, str]] = []
        self.alarms: list[str] = []
        self._crash_after = crash_after

    def put(self, captures: Sequence[Capture]) -> None:
        if self._crash_after is not None and len(self.captures) >= self._crash_after:
            raise ConnectionAbortedError("killed")
        self.captures += captures
        self.groups.append(len(captures))

    def set_aside(self, content: bytes, source_name: str, reason: str) -> None:
        self.unframed.append((source_name, content, reason))

    def alarm(self, text: str) -> None:
        self.alarms.append(text)

    def origins(self) -> dict[str, int]:
        return {capture.origin_name: capture.origin_index for capture in self.captures}


# --- drop folder ---


def folder_source(folder: Path, origins: dict[str, int] | None = None, **changes: Any) -> FolderSource:
    arguments: dict[str, Any] = {"name": "cl51", "source": "folder", "folder": folder, "settle_s": 60.0} | changes
    return FolderSource(FolderSettings(**arguments), origins or {})


def look(source: FolderSource, sink: RememberingSink, *times_s: float) -> str:
    problem = ""
    for now_s in times_s:
        problem = source.look(sink, threading.Event(), now_s)
    return problem


def drop(shared_data: Path, name: str, folder: Path, as_name: str | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    target = folder / (as_name or name)
    target.write_bytes((shared_data / "ceilometer" / name).read_bytes())
    return target


def test_a_telegram_file_is_taken_once_it_has_rested_and_is_then_gone(shared_data: Path, tmp_path: Path) -> None:
    path = drop(shared_data, "vaisala/cl51.DAT", tmp_path, "a.dat")
    source, sink = folder_source(tmp_path), RememberingSink()
    look(source, sink, 0, 30, 59)
    assert not sink.captures and path.exists()
    look(source, sink, 60)
    assert [capture.measure_unix_nanos for capture in sink.captures] == [1605398404 * 10**9, 1605398440 * 10**9]
    assert not path.exists()


def test_a_file_that_still_grows_is_left_alone(shared_data: Path, tmp_path: Path) -> None:
    path = drop(shared_data, "vaisala/cl51.DAT", tmp_path, "a.dat")
    source, sink = folder_source(tmp_path), RememberingSink()
    look(source, sink, 0, 59)
    with path.open("ab") as file:
        file.write(b"-2020-11-15 00:01:16\r\n")
    look(source, sink, 61, 120)
    assert not sink.captures
    look(source, sink, 121)
    assert len(sink.captures) == 2


def test_a_whole_netcdf_file_is_taken_at_the_second_look_and_a_cut_one_waits(shared_data: Path, tmp_path: Path) -> None:
    whole = drop(shared_data, "cl61/live_20210829_224520.nc", tmp_path, "whole.nc")
    cut = tmp_path / "cut.nc"
    cut.write_bytes(whole.read_bytes()[:-100])
    source, sink = folder_source(tmp_path), RememberingSink()
    look(source, sink, 0, 2)
    assert not whole.exists() and cut.exists()
    cut.write_bytes((shared_data / "ceilometer/cl61/live_20210829_224520.nc").read_bytes())
    look(source, sink, 4, 6)
    assert [len(capture.content) for capture in sink.captures] == [738589, 738589]
    assert [capture.measure_unix_nanos for capture in sink.captures] == [None, None]


def test_taken_files_are_moved_where_the_settings_say_so(shared_data: Path, tmp_path: Path) -> None:
    path = drop(shared_data, "vaisala/cl51.DAT", tmp_path, "a.dat")
    content = path.read_bytes()
    look(folder_source(tmp_path, after="move"), RememberingSink(), 0, 60)
    assert (tmp_path / "taken" / "a.dat").read_bytes() == content


def test_what_cannot_be_framed_goes_to_quarantine_with_a_reason_before_it_is_removed(tmp_path: Path) -> None:
    (tmp_path / "noise.dat").write_bytes(b"\x00noise" * 50)
    (tmp_path / "empty.dat").write_bytes(b"")
    source, sink = folder_source(tmp_path), RememberingSink()
    look(source, sink, 0, 60)
    assert sorted((name, content) for name, content, _ in sink.unframed) == [
        ("empty.dat", b""),
        ("noise.dat", b"\x00noise" * 50),
    ]
    assert all("expected" in reason for *_, reason in sink.unframed)
    assert list(tmp_path.iterdir()) == []


def test_hidden_unfinished_and_unwanted_names_are_not_touched(shared_data: Path, tmp_path: Path) -> None:
    names = [".hidden.dat", "upload.dat.part", "upload.tmp", "notes.txt"]
    for name in names:
        drop(shared_data, "vaisala/cl51.DAT", tmp_path, name)
    (tmp_path / "sub.dat").mkdir()
    look(folder_source(tmp_path, pattern="*.dat*"), RememberingSink(), 0, 100, 200)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*names, "sub.dat"])


def test_after_a_crash_between_writing_and_removing_the_same_bytes_are_not_handed_over_twice(
    shared_data: Path, tmp_path: Path
) -> None:
    path = drop(shared_data, "vaisala/cl31_badtime.DAT", tmp_path, "a.dat")
    content, mtime = path.read_bytes(), path.stat().st_mtime_ns
    first = RememberingSink()
    look(folder_source(tmp_path), first, 0, 60)
    path.write_bytes(content)
    os.utime(path, ns=(mtime, mtime))
    for known in (0, 2, 4):  # how much of the file the buffer had when the agent died
        path.write_bytes(content)
        os.utime(path, ns=(mtime, mtime))
        second = RememberingSink()
        look(folder_source(tmp_path, {first.captures[0].origin_name: known}), second, 0, 60)
        assert [capture.origin_index for capture in second.captures] == list(range(known + 1, 5))
        assert not path.exists()


def test_a_file_that_comes_again_under_the_same_name_is_taken_again(shared_data: Path, tmp_path: Path) -> None:
    source, sink = folder_source(tmp_path), RememberingSink()
    for begin_s in (0, 1000):
        path = drop(shared_data, "vaisala/cl51.DAT", tmp_path, "latest.dat")
        os.utime(path, ns=(begin_s, begin_s))
        look(source, sink, begin_s, begin_s + 60)
    assert len(sink.captures) == 4
    assert len(sink.origins()) == 2


def test_a_folder_that_is_not_there_is_an_alarm_and_is_used_once_it_appears(shared_data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "usb"
    source, sink = folder_source(folder), RememberingSink()
    assert "expected the drop folder" in look(source, sink, 0)
    drop(shared_data, "vaisala/cl51.DAT", folder, "a.dat")
    assert look(source, sink, 1, 61) == ""
    assert len(sink.captures) == 2
    shutil.rmtree(folder)
    assert "expected the drop folder" in look(source, sink, 62)


def test_a_file_that_is_too_large_stays_with_an_alarm(shared_data: Path, tmp_path: Path) -> None:
    path = drop(shared_data, "vaisala/cl51.DAT", tmp_path, "a.dat")
    sink = RememberingSink()
    problem = look(folder_source(tmp_path, max_file_bytes=1000), sink, 0, 60)
    assert problem == "expected files of at most 1000 bytes, but a.dat has 15718"
    assert path.exists() and not sink.captures


def test_many_files_are_taken_in_the_order_of_their_names(shared_data: Path, tmp_path: Path) -> None:
    content = (shared_data / "ceilometer/vaisala/kenttarova_cl31_msg.dat").read_bytes()
    for number in range(1100):
        (tmp_path / f"{number:05d}.dat").write_bytes(content)
    source, sink = folder_source(tmp_path, settle_s=0.0), RememberingSink()
    look(source, sink, 0, 1, 2, 3)
    names = [capture.origin_name.split(":")[1].split("@")[0] for capture in sink.captures]
    assert names == [f"{number:05d}.dat" for number in range(1100)]


def test_a_look_begins_anew_where_size_or_time_changed() -> None:
    first = look_again({}, {"a": (1, 1), "b": (1, 1), "c": (1, 1)}, now_s=0)
    second = look_again(first, {"a": (1, 1), "b": (2, 1), "c": (1, 2), "d": (1, 1)}, now_s=5)
    assert {name: seen.since_s for name, seen in second.items()} == {"a": 0, "b": 5, "c": 5, "d": 5}


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
