"""The drop folder: which files are finished, what the kernel tells, what becomes of thousands, and what goes wrong."""

from __future__ import annotations

import os
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from edge_source_support import RememberingSink, running, wait_until
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.framing.netcdf import is_whole_netcdf
from edge_agent.source_settings import FolderSettings
from edge_agent.sources import folder as folder_module
from edge_agent.sources.folder import FolderSource
from edge_agent.sources.folder_looks import Looks, Readiness, Told

# --- drop folder ---


def folder_source(folder: Path, origins: dict[str, int] | None = None, **changes: Any) -> FolderSource:
    arguments: dict[str, Any] = {"name": "cl51", "source": "folder", "folder": folder, "settle_s": 60.0} | changes
    return FolderSource(FolderSettings(**arguments), origins or {})


def look(source: FolderSource, sink: RememberingSink, *times_s: float) -> str:
    problem = ""
    for now_s in times_s:
        problem = source.turn(sink, threading.Event(), now_s)
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


def test_a_name_that_is_used_again_overwrites_nothing_that_was_kept(tmp_path: Path) -> None:
    source, sink = folder_source(tmp_path, after="move", settle_s=0.0, payload_format="line"), RememberingSink()
    for turn, content in enumerate((b"one\n", b"two\n", b"three\n")):
        (tmp_path / "current.txt").write_bytes(content)
        os.utime(tmp_path / "current.txt", ns=(turn, turn))
        look(source, sink, 10.0 * turn, 10.0 * turn + 5)
    assert sorted(path.read_bytes() for path in (tmp_path / "taken").iterdir()) == [b"one\n", b"three\n", b"two\n"]


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
    assert look(source, sink, 2, 62) == ""
    assert len(sink.captures) == 2
    shutil.rmtree(folder)
    assert "expected the drop folder" in look(source, sink, 70)


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


# --- which files are finished (pure) ---


def test_a_look_begins_anew_where_size_or_time_changed() -> None:
    looks = Looks(settle_s=60, second_look_s=2)
    for name in "abc":
        looks.see(name, 1, 1, now_s=0)
    for name, size, mtime in (("a", 1, 1), ("b", 2, 1), ("c", 1, 2)):
        looks.see(name, size, mtime, now_s=50)
    assert [looks.see(name, *seen, now_s=60) for name, *seen in (("a", 1, 1), ("b", 2, 1), ("c", 1, 2))] == [
        Readiness.FINISHED,
        Readiness.IF_WHOLE,
        Readiness.IF_WHOLE,
    ]
    assert [looks.see(name, *seen, now_s=110) for name, *seen in (("b", 2, 1), ("c", 1, 2))] == [Readiness.FINISHED] * 2


def test_what_is_renamed_is_finished_and_what_is_closed_is_so_only_if_it_says_so() -> None:
    looks = Looks(settle_s=60, second_look_s=2)
    assert looks.tell("moved", Told.MOVED_IN) and looks.tell("closed", Told.CLOSED)
    assert looks.wake_at_s == 0
    assert looks.due(0) == ["moved", "closed"]
    assert looks.see("moved", 1, 1, now_s=0) is Readiness.FINISHED
    assert looks.see("closed", 1, 1, now_s=0) is Readiness.IF_WHOLE
    assert looks.see("closed", 1, 1, now_s=1) is Readiness.NOT_YET
    assert looks.wake_at_s == 2


def test_no_more_names_are_remembered_than_there_is_room_for() -> None:
    looks = Looks(settle_s=60, second_look_s=2, max_names=2)
    for name in "abc":
        looks.see(name, 1, 1, now_s=0)
    assert looks.is_full
    assert looks.due(60) == ["a", "b"]
    looks.forget("a")
    looks.see("c", 1, 1, now_s=61)
    assert looks.due(121) == ["b", "c"]
    assert looks.tell("d", Told.CLOSED) and looks.tell("e", Told.CLOSED)
    assert looks.tell("d", Told.MOVED_IN), "known already"
    assert not looks.tell("f", Told.CLOSED)


def test_a_classic_netcdf_file_is_whole_at_the_length_that_its_header_tells(shared_data: Path) -> None:
    for path in (shared_data / "ceilometer/chm15k").glob("*.nc"):
        content = path.read_bytes()
        assert is_whole_netcdf(content)
        assert not any(is_whole_netcdf(content[:length]) for length in range(0, len(content) - 4, 997))


@given(st.binary(max_size=200), st.sampled_from([b"CDF\x01", b"CDF\x02", b"CDF\x05", b"\x89HDF\r\n\x1a\n", b""]))
def test_no_header_of_netcdf_raises(content: bytes, magic: bytes) -> None:
    assert is_whole_netcdf(magic + content) in (True, False)


# --- what the kernel tells ---


@pytest.fixture
def telegram_file(shared_data: Path) -> bytes:
    """Two telegrams of a CL51 in 15,718 bytes."""
    return (shared_data / "ceilometer/vaisala/cl51.DAT").read_bytes()


def test_a_file_that_is_renamed_into_the_folder_is_taken_at_once_whatever_its_format(
    tmp_path: Path, telegram_file: bytes
) -> None:
    sink = RememberingSink()
    with running(folder_source(tmp_path, poll_interval_s=60.0), sink):
        wait_until(lambda: sink.alarms, "the first look is done")
        (tmp_path / ".upload").write_bytes(telegram_file)
        begun_s = time.monotonic()
        (tmp_path / ".upload").rename(tmp_path / "a.dat")
        wait_until(lambda: len(sink.captures) == 2, "the file is taken")
        assert time.monotonic() - begun_s < 10, "the next look would be after a minute"
        wait_until(lambda: not list(tmp_path.iterdir()), "the file is gone")


@pytest.mark.parametrize("name", ["cl61/live_20210829_224520.nc", "chm15k/00100_A202010220005_CHM170137.nc"])
def test_a_netcdf_file_that_is_closed_and_whole_is_taken_at_once(shared_data: Path, tmp_path: Path, name: str) -> None:
    sink = RememberingSink()
    content = (shared_data / "ceilometer" / name).read_bytes()
    with running(folder_source(tmp_path, poll_interval_s=60.0), sink):
        wait_until(lambda: sink.alarms, "the first look is done")
        with (tmp_path / "a.nc").open("wb") as file:
            file.write(content[: len(content) // 2])
            file.flush()
            time.sleep(0.05)
            assert not sink.captures
            file.write(content[len(content) // 2 :])
        begun_s = time.monotonic()
        wait_until(lambda: sink.captures, "the file is taken")
        assert time.monotonic() - begun_s < 10, "the next look would be after a minute"
    assert sink.contents() == [content]


def test_a_telegram_file_that_is_closed_rests_before_it_is_taken(tmp_path: Path, telegram_file: bytes) -> None:
    sink = RememberingSink()
    with running(folder_source(tmp_path, poll_interval_s=60.0, settle_s=0.4), sink):
        wait_until(lambda: sink.alarms, "the first look is done")
        half = len(telegram_file) // 2
        (tmp_path / "a.dat").write_bytes(telegram_file[:half])
        time.sleep(0.2)
        with (tmp_path / "a.dat").open("ab") as file:
            file.write(telegram_file[half:])
        closed_s = time.monotonic()
        wait_until(lambda: sink.captures, "the file is taken")
        assert 0.35 <= time.monotonic() - closed_s < 10
    assert len(sink.captures) == 2 and not sink.unframed


def test_a_folder_that_appears_later_is_removed_made_anew_and_renamed_is_followed(
    tmp_path: Path, telegram_file: bytes
) -> None:
    folder = tmp_path / "mnt" / "disk" / "in"
    sink = RememberingSink()

    def hand_in(name: str) -> None:
        (tmp_path / "upload").write_bytes(telegram_file)
        (tmp_path / "upload").rename(folder / name)

    with running(folder_source(folder, poll_interval_s=60.0), sink):
        wait_until(lambda: "expected the drop folder" in sink.alarm_now, "the alarm begins")
        folder.mkdir(parents=True)
        wait_until(lambda: sink.alarm_now == "", "the folder is seen")
        hand_in("a.dat")
        wait_until(lambda: len(sink.captures) == 2, "a file in the folder that appeared")
        shutil.rmtree(tmp_path / "mnt")
        wait_until(lambda: "expected the drop folder" in sink.alarm_now, "the folder is missed")
        folder.mkdir(parents=True)
        wait_until(lambda: sink.alarm_now == "", "the new folder is seen")
        hand_in("b.dat")
        wait_until(lambda: len(sink.captures) == 4, "a file in the folder made anew")
        folder.rename(tmp_path / "elsewhere")
        wait_until(lambda: "expected the drop folder" in sink.alarm_now, "the renamed folder is missed")
        (tmp_path / "elsewhere").rename(folder)
        wait_until(lambda: sink.alarm_now == "", "the folder is back")
        hand_in("c.dat")
        wait_until(lambda: len(sink.captures) == 6, "a file in the folder that came back")
    assert not list(folder.iterdir())


def test_a_folder_whose_parent_was_exchanged_is_found_by_looking(tmp_path: Path, telegram_file: bytes) -> None:
    # The kernel tells the one who watches a folder nothing of what happens above it: the looks are the safety net.
    (tmp_path / "a" / "in").mkdir(parents=True)
    sink = RememberingSink()
    with running(folder_source(tmp_path / "a" / "in", poll_interval_s=0.2, settle_s=0.1), sink):
        wait_until(lambda: sink.alarms, "the first look is done")
        (tmp_path / "a").rename(tmp_path / "b")
        (tmp_path / "a" / "in").mkdir(parents=True)
        (tmp_path / "a" / "in" / "a.dat").write_bytes(telegram_file)
        (tmp_path / "b" / "in" / "b.dat").write_bytes(telegram_file)
        wait_until(lambda: len(sink.captures) == 2, "the file in the folder that has the name")
    assert (tmp_path / "b" / "in" / "b.dat").exists()


def test_where_there_is_no_inotify_the_folder_is_looked_at(
    tmp_path: Path, telegram_file: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "inotify_simple", None)
    sink = RememberingSink()
    with running(folder_source(tmp_path, poll_interval_s=0.05, settle_s=0.05), sink):
        (tmp_path / "a.dat").write_bytes(telegram_file)
        wait_until(lambda: len(sink.captures) == 2, "the file is taken")


# --- thousands of files ---


def test_five_thousand_files_are_few_writes_in_the_order_of_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_module, "NAMES_AT_ONCE", 1000)
    for number in range(5000):
        (tmp_path / f"{number:05d}.txt").write_bytes(b"%d\n" % number)
    sink = RememberingSink()
    with running(folder_source(tmp_path, settle_s=0.0, payload_format="line"), sink):
        wait_until(lambda: len(sink.captures) == 5000, "all are taken")
        wait_until(lambda: not any(tmp_path.iterdir()), "all are gone")
    assert sink.contents() == [b"%d\n" % number for number in range(5000)]
    assert len(sink.groups) <= 5000 / 64 + 10
    assert len(sink.origins()) == 5000


def test_files_that_cannot_be_taken_do_not_block_those_behind_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_module, "NAMES_AT_ONCE", 3)
    for number in range(10):
        (tmp_path / f"{number}.txt").write_bytes(b"much too long\n")
    (tmp_path / "z.txt").write_bytes(b"z\n")
    source, sink = folder_source(tmp_path, settle_s=0.0, payload_format="line", max_file_bytes=5), RememberingSink()
    problem = look(source, sink, 0, 0, 0, 0, 1)
    assert sink.contents() == [b"z\n"]
    assert problem == "expected files of at most 5 bytes, but 0.txt has 14 (and 9 more such files)"
    for path in tmp_path.iterdir():
        path.unlink()
    assert look(source, sink, 10) == ""


def test_a_crash_between_the_write_of_several_files_and_their_removal_hands_nothing_over_twice(
    tmp_path: Path,
) -> None:
    files = {f"{number}.txt": b"%d a\n%d b\n" % (number, number) for number in range(3)}

    def write_files() -> None:
        for name, content in files.items():
            (tmp_path / name).write_bytes(content)
            os.utime(tmp_path / name, ns=(10**18, 10**18))

    def source_that_knows(origins: dict[str, int]) -> FolderSource:
        return folder_source(tmp_path, origins, settle_s=0.0, payload_format="line")

    write_files()
    first = RememberingSink()
    look(source_that_knows({}), first, 0, 1)
    assert first.groups == [6], "one write for all files"
    for known in range(7):  # how many of the observations the buffer had when the agent died
        write_files()
        origins = {capture.origin_name: capture.origin_index for capture in first.captures[:known]}
        second = RememberingSink()
        look(source_that_knows(origins), second, 0, 1)
        assert second.contents() == first.contents()[known:]
        assert not any(tmp_path.iterdir())


def test_when_the_disk_refuses_no_file_is_removed_and_all_are_handed_over_later(tmp_path: Path) -> None:
    for number in range(100):
        (tmp_path / f"{number:03d}.txt").write_bytes(b"%d\n" % number)
    source, sink = folder_source(tmp_path, settle_s=0.0, payload_format="line"), RememberingSink(crash_after=64)
    with pytest.raises(ConnectionAbortedError):
        look(source, sink, 0, 1)
    assert len(sink.captures) == 64 and len(list(tmp_path.iterdir())) == 36
    later = RememberingSink()
    look(source, later, 10, 11, 12)
    assert sink.contents() + later.contents() == [b"%d\n" % number for number in range(100)]


# --- what goes wrong ---


def test_a_file_that_cannot_be_removed_is_handed_over_once_with_an_alarm(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"a\n")
    (tmp_path / "taken").write_bytes(b"in the way of the folder for taken files")
    source = folder_source(tmp_path, settle_s=0.0, payload_format="line", after="move", pattern="*.txt")
    sink = RememberingSink()
    problem = look(source, sink, 0, 1, 10, 20, 30)
    assert "expected to remove a.txt from the drop folder" in problem and "its bytes are safe" in problem
    assert sink.contents() == [b"a\n"]
    (tmp_path / "taken").unlink()
    assert look(source, sink, 40) == ""
    assert (tmp_path / "taken" / "a.txt").exists() and sink.contents() == [b"a\n"]


def test_a_file_that_is_replaced_between_reading_and_removing_is_not_lost(tmp_path: Path) -> None:
    path = tmp_path / "latest.txt"
    path.write_bytes(b"old\n")

    class ReplacingSink(RememberingSink):
        def put(self, captures: Any) -> None:
            super().put(captures)
            if len(self.captures) == 1:
                path.write_bytes(b"newer\n")

    sink = ReplacingSink()
    look(folder_source(tmp_path, settle_s=0.0, payload_format="line"), sink, 0, 1, 10, 11)
    assert sink.contents() == [b"old\n", b"newer\n"]
    assert not path.exists()


def test_a_name_that_is_no_utf_8_is_taken_like_any_other(tmp_path: Path) -> None:
    name = os.fsdecode(b"m\xfcnchen.txt")
    (tmp_path / name).write_bytes(b"a\n")
    sink = RememberingSink()
    look(folder_source(tmp_path, settle_s=0.0, payload_format="line"), sink, 0, 1)
    (capture,) = sink.captures
    assert capture.origin_name.startswith("cl51:m\\xfcnchen.txt@")
    assert not any(tmp_path.iterdir())


def test_a_file_of_noise_is_one_entry_of_the_quarantine(tmp_path: Path) -> None:
    noise = b"".join(b"CL010326\r\nbroken %d\r\n" % number for number in range(500))
    (tmp_path / "a.dat").write_bytes(noise)
    sink = RememberingSink()
    look(folder_source(tmp_path, settle_s=0.0, payload_format="vaisala-cl"), sink, 0, 1)
    ((_, content, reason),) = sink.unframed
    assert content == noise
    assert reason.endswith("(the first of 500 such parts)")


def test_a_link_or_a_pipe_is_not_touched(tmp_path: Path) -> None:
    outside = tmp_path / "outside.txt"
    outside.write_bytes(b"a\n")
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "link.txt").symlink_to(outside)
    os.mkfifo(folder / "pipe.txt")
    source, sink = folder_source(folder, settle_s=0.0, payload_format="line"), RememberingSink()
    with running(source, sink):
        wait_until(lambda: sink.alarms, "the first look is done")
        (folder / "link.txt").rename(folder / "link2.txt")
        (folder / "real.txt").write_bytes(b"b\n")
        wait_until(lambda: sink.captures, "the real file is taken")
    assert sink.contents() == [b"b\n"]
    assert sorted(path.name for path in folder.iterdir()) == ["link2.txt", "pipe.txt"]
