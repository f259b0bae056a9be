"""A station that does not know the time: it records, corrects what it wrote down, and does not wait for ever."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_agent.buffer import Buffer
from edge_agent.capture import Capture, observation_of
from edge_agent.clock import boot_id
from edge_agent.clock_marks import MAX_BOOTS, ClockMarks, ClockWait, clock_marks_from_json, needs_time
from fieldpost.errors import BrokenStateError
from fieldpost.v1 import observation_pb2 as pb

S = 10**9
TRUE_START = 1_780_000_000 * S  # when the station of these tests was switched on


def clock(
    monotonic_s: float, wall_nanos: int, *, is_synchronised: bool = False, boot_id: str = "b" * 32
) -> pb.CaptureClock:
    sync = pb.CLOCK_SYNC_SYNCHRONISED if is_synchronised else pb.CLOCK_SYNC_UNSYNCHRONISED
    result = pb.CaptureClock(monotonic_nanos=round(monotonic_s * S), boot_id=boot_id, clock_sync=sync)
    result.wall_time.FromNanoseconds(wall_nanos)
    return result


def right(monotonic_s: float, **changes: str) -> pb.CaptureClock:
    return clock(monotonic_s, TRUE_START + round(monotonic_s * S), is_synchronised=True, **changes)


def test_what_was_captured_in_1970_is_corrected_once_the_clock_of_the_same_boot_is_right() -> None:
    marks = ClockMarks()
    woke = clock(5, 5 * S)
    assert marks.corrected_unix_nanos(woke) is None
    marks.note(woke)
    assert marks.corrected_unix_nanos(woke) is None, "a clock that is not synchronised tells nothing"
    marks.note(right(100))
    assert marks.corrected_unix_nanos(woke) == TRUE_START + 5 * S
    assert marks.corrected_unix_nanos(right(100)) is None, "nothing to correct"
    assert marks.corrected_unix_nanos(clock(5, 5 * S, boot_id="c" * 32)) is None, "another boot"


def test_a_clock_that_loses_its_server_is_corrected_by_the_nearest_moment_at_which_it_was_right() -> None:
    marks = ClockMarks()
    marks.note(right(10))
    drifted = clock(100_100, TRUE_START + 100_100 * S + 7 * S, is_synchronised=True)
    marks.note(drifted)
    assert marks.corrected_unix_nanos(clock(11, 0)) == TRUE_START + 11 * S
    assert marks.corrected_unix_nanos(clock(100_000, 0)) == TRUE_START + 100_007 * S


def test_marks_survive_a_restart_and_do_not_grow_for_ever() -> None:
    marks = ClockMarks()
    for number in range(MAX_BOOTS + 50):
        marks.note(right(10, boot_id=f"{number:032x}"))
    assert len(marks.boots) == MAX_BOOTS
    assert not marks.is_saved
    again = clock_marks_from_json(marks.to_json())
    assert again.corrected_unix_nanos(clock(3, 0, boot_id=f"{MAX_BOOTS:032x}")) == TRUE_START + 3 * S
    for content in (b"", b"[1]", b'{"a": 1}', b'{"a": [[1]]}', b'{"a": [["x", 1]]}'):
        with pytest.raises(BrokenStateError, match="expected the marks of the clock"):
            clock_marks_from_json(content)


def test_the_corrected_time_stands_in_the_header_beside_what_the_clock_said() -> None:
    marks = ClockMarks()
    marks.note(right(100))
    header = pb.ObservationHeader(capture_clock=clock(5, 5 * S))
    marks.correct(header)
    assert header.corrected_wall_time.ToNanoseconds() == TRUE_START + 5 * S
    assert header.capture_clock.wall_time.ToNanoseconds() == 5 * S
    header = pb.ObservationHeader(capture_clock=right(200))
    marks.correct(header)
    assert not header.HasField("corrected_wall_time")


def telegram(sequence: int, capture_clock: pb.CaptureClock) -> pb.ObservationHeader:
    return pb.ObservationHeader(sequence=sequence, payload_format="vaisala-cl", capture_clock=capture_clock)


def test_only_what_has_no_other_time_than_a_wrong_clocks_needs_one() -> None:
    assert needs_time(telegram(1, clock(1, 0)))
    assert not needs_time(telegram(1, right(1)))
    stamped = telegram(1, clock(1, 0))
    stamped.measure_time.seconds = 5
    assert not needs_time(stamped)
    assert not needs_time(pb.ObservationHeader(payload_format="netcdf", capture_clock=clock(1, 0)))


def test_observations_wait_for_the_time_until_the_clock_is_right() -> None:
    wait = ClockWait(120)
    assert not wait.note_captured(telegram(1, right(1)))
    assert wait.note_captured(telegram(2, clock(2, 0)))
    assert not wait.note_captured(telegram(3, clock(3, 0)))
    assert wait.from_sequence == 2
    assert not wait.pass_time(10_000, is_synchronised=False), "without a link there is no hurry"
    wait.note_connected(10_000)
    assert not wait.pass_time(10_119, is_synchronised=False)
    assert wait.pass_time(10_119, is_synchronised=True)
    assert wait.from_sequence is None


def test_observations_do_not_wait_for_ever_for_a_time_server_that_is_not_there() -> None:
    wait = ClockWait(120)
    wait.note_captured(telegram(1, clock(1, 0)))
    wait.note_connected(50)
    wait.note_connected(160)
    assert wait.pass_time(170, is_synchronised=False), "a link that flaps does not begin the wait anew"
    assert not wait.note_captured(telegram(2, clock(2, 0))), "from here on everything goes at once"
    nothing = ClockWait(0)
    assert not nothing.note_captured(telegram(1, clock(1, 0)))


# --- in the buffer ---


def append_telegrams(buffer: Buffer, clocks: list[pb.CaptureClock], now_unix_s: float) -> None:
    captures = [Capture("cl51", "vaisala-cl", b"t%d" % n, "cl51:run", n, clock=each) for n, each in enumerate(clocks)]
    buffer.append([observation_of(capture) for capture in captures], now_unix_s)


def test_a_time_is_found_in_the_buffer_by_the_clock_as_it_was_corrected(tmp_path: Path) -> None:
    buffer = Buffer(tmp_path / "buffer", "magurele")
    append_telegrams(buffer, [clock(n, n * S) for n in (10, 20, 30)], 10)
    append_telegrams(buffer, [right(n) for n in (40, 50)], TRUE_START / S + 40)
    buffer.clock_marks.note(right(40))
    start = TRUE_START / S
    assert list(buffer.sequences_between(start + 20, start + 50)) == [(2, 4)]
    assert list(buffer.sequences_between(start + 9 * 86400, start + 10 * 86400)) == []
    buffer.close()
    again = Buffer(tmp_path / "buffer", "magurele")
    assert list(again.sequences_between(start + 20, start + 50)) == [(2, 4)], "the marks are on the disk"
    again.close()


def test_a_restart_in_the_same_boot_finds_what_still_waits_for_the_time(tmp_path: Path) -> None:
    buffer = Buffer(tmp_path / "buffer", "magurele")
    assert buffer.first_waiting_for_time() is None
    here = boot_id()
    append_telegrams(buffer, [clock(1, S, boot_id="c" * 32), clock(2, 2 * S, boot_id=here)], 10)
    append_telegrams(buffer, [clock(3, 3 * S, boot_id=here)], 10)
    assert buffer.first_waiting_for_time() == 2
    append_telegrams(buffer, [right(4, boot_id=here)], TRUE_START / S)
    assert buffer.first_waiting_for_time() is None, "from here on the clock was right"
    buffer.close()
