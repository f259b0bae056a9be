"""Stations whose clock is wrong: in 1970 after a power cut, an hour or days back, in 2099 for a while.

The agents are real processes; faults/faults.c adds an offset to their wall clock and answers for the kernel whether it
is synchronised. Nothing is lost or captured twice, times are corrected, and nothing is deleted before its time.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest
from conftest import skip_or_fail
from faults.agent import Agent, Held, Server
from faults.library import build_library, compiler, fast_folder
from faults.promises import STATION, content_of, observation

from edge_agent.alarms import Alarms
from edge_agent.buffer import Buffer
from edge_agent.clock_trust import TRUST_AFTER_S, ClockTrust
from edge_agent.storage.day_files import list_day_files
from edge_agent.storage.retention import RetentionPolicy
from edge_agent.upkeep import RETENTION_INTERVAL_S, Upkeep
from fieldpost.v1 import observation_pb2 as pb

DAY_S = 86400.0
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC).timestamp()
YEAR_2099 = datetime(2099, 6, 1, tzinfo=UTC).timestamp()


# --- what may be deleted for its age ---


def test_a_clock_that_is_not_synchronised_is_not_believed() -> None:
    trust = ClockTrust(date(2026, 3, 1))
    assert not trust.note(10, NOW, is_synchronised=False)
    assert trust.note(20, NOW + 10, is_synchronised=True)


def test_a_clock_that_jumped_is_believed_after_some_days_without_a_jump() -> None:
    trust = ClockTrust(date(2026, 3, 1))
    assert trust.note(10, NOW, is_synchronised=True)
    assert not trust.note(20, YEAR_2099, is_synchronised=True)
    assert not trust.note(3620, YEAR_2099 + 3600, is_synchronised=True)
    assert not trust.note(3630, NOW + 3620, is_synchronised=True), "the jump back is one as well"
    assert not trust.note(3630 + TRUST_AFTER_S - 1, NOW + 3620 + TRUST_AFTER_S, is_synchronised=True)
    assert trust.note(3630 + TRUST_AFTER_S + 1, NOW + 3620 + TRUST_AFTER_S, is_synchronised=True)


def test_a_start_far_from_the_last_day_file_is_like_a_jump_and_one_near_it_is_not() -> None:
    assert not ClockTrust(date(2026, 3, 1)).note(10, YEAR_2099, is_synchronised=True)
    assert not ClockTrust(date(2026, 3, 1)).note(10, NOW - 2 * DAY_S, is_synchronised=True)
    assert ClockTrust(date(2026, 3, 1)).note(10, NOW + DAY_S, is_synchronised=True)
    assert ClockTrust(None).note(10, NOW, is_synchronised=True)


def test_a_wrong_date_for_an_hour_deletes_no_delivered_file_and_the_right_one_does(tmp_path: Path) -> None:
    buffer = Buffer(tmp_path / "buffer", STATION)
    for day in range(4):
        buffer.append([observation(day + 1)], NOW + day * DAY_S)
    buffer.deliver([(1, 4)])
    upkeep = Upkeep(buffer, Alarms(), RetentionPolicy(retention_days=2))
    start_unix_s, now_s = NOW + 3 * DAY_S, 1000.0
    for hour, unix_s in enumerate([YEAR_2099, YEAR_2099 + RETENTION_INTERVAL_S, start_unix_s]):
        now_s += RETENTION_INTERVAL_S + 1
        upkeep.work(now_s, unix_s, is_synchronised=True)
        assert len(buffer.files()) == 4, f"after {hour} hours"
    upkeep.work(now_s + DAY_S, start_unix_s + DAY_S, is_synchronised=False)
    assert len(buffer.files()) == 4, "not synchronised"
    for days in (2, 4):
        upkeep.work(now_s + days * DAY_S, start_unix_s + days * DAY_S, is_synchronised=True)
    assert [file.first_sequence for file in buffer.files()] == [4], "the rest was past its retention"
    buffer.close()


def test_what_was_captured_under_a_wrong_year_is_found_by_its_corrected_time(tmp_path: Path) -> None:
    buffer = Buffer(tmp_path / "buffer", STATION)
    boot = "ab" * 16
    clocks = [
        (YEAR_2099, pb.CLOCK_SYNC_UNSYNCHRONISED),
        (NOW + 60, pb.CLOCK_SYNC_SYNCHRONISED),
    ]
    for number, (unix_s, sync) in enumerate(clocks, start=1):
        clock = pb.CaptureClock(boot_id=boot, monotonic_nanos=number * 60 * 10**9, clock_sync=sync)
        clock.wall_time.FromNanoseconds(int(unix_s) * 10**9)
        one = observation(number)
        one.header.capture_clock.CopyFrom(clock)
        buffer.append([one], unix_s)
        buffer.clock_marks.note(clock)
    assert [file.day.year for file in buffer.files()] == [2099, 2026]
    assert list(buffer.sequences_between(NOW - 10, NOW + 10)) == [(1, 1)]
    buffer.close()


# --- real agents ---


class Clock:
    """The clock of an agent's process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.set(0.0, "synchronised")

    def set(self, offset_s: float, state: str) -> None:
        # The agent keeps the file open: it is written in place, in one write.
        with self.path.open("r+b" if self.path.exists() else "wb", buffering=0) as file:
            file.write(f"{offset_s:>20} {state:<16}\n".encode())


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if compiler() is None:
        skip_or_fail("there is no C compiler (apt install gcc): the library of faults cannot be built")
    return build_library(tmp_path_factory.mktemp("faults"))


class Field:
    """A station with a drop folder, its clock, and the server."""

    def __init__(self, folder: Path, port: int, library: Path, server: Server) -> None:
        self.server = server
        self.library = library
        self.drop_folder = folder / "drop"
        self.drop_folder.mkdir()
        self.clock = Clock(folder / "clock")
        instrument = (
            f'\n[[instruments]]\nname = "cl51"\nsource = "folder"\nfolder = "{self.drop_folder}"\n'
            'payload_format = "file"\nsettle_s = 0.0\npoll_interval_s = 0.05\n'
        )
        self.agent = Agent(folder / "agent", STATION, port, instrument, clock_wait_s=30, retention_days=30)
        self.dropped: dict[int, float] = {}

    def start(self, *flags: str) -> None:
        self.agent.start(self.library, *flags, clock=self.clock.path)

    def drop(self, *numbers: int) -> None:
        """The instrument puts files there."""
        for number in numbers:
            self.dropped[number] = time.time()
            (self.drop_folder / ".part").write_bytes(content_of(number))
            (self.drop_folder / ".part").rename(self.drop_folder / f"{number:04d}.dat")

    def wait_until_taken(self) -> None:
        deadline = time.monotonic() + 15
        while any(self.drop_folder.glob("*.dat")):
            assert time.monotonic() < deadline, self.agent.log()
            time.sleep(0.01)

    def drop_and_wait(self, *numbers: int) -> None:
        for number in numbers:
            self.drop(number)
            self.wait_until_taken()

    def held(self) -> dict[int, Held]:
        """What the server holds, by number; it must be in order, and each of them once."""
        with self.server.changed:
            sequences = sorted(self.server.held[STATION])
            held = [self.server.held[STATION][sequence] for sequence in sequences]
        numbers = [int(each.content.split(b" ", 2)[1]) for each in held]
        assert numbers == sorted(set(numbers)), "out of order, or twice"
        assert all(each.content == content_of(number) for each, number in zip(held, numbers, strict=True))
        return dict(zip(numbers, held, strict=True))

    def wait_for(self, *numbers: int) -> dict[int, Held]:
        try:
            self.server.wait_until(lambda: len(self.server.held[STATION]) >= len(numbers))
        except AssertionError:
            raise AssertionError(self.agent.log()) from None
        held = self.held()
        assert sorted(held) == sorted(numbers)
        return held

    def stop(self) -> None:
        assert self.agent.process is not None
        self.agent.process.terminate()
        assert self.agent.process.wait(15) == 0, self.agent.log()

    def days(self) -> list[date]:
        return [name.day for name in list_day_files(self.agent.buffer_folder / "days")]


@pytest.fixture
def field(mosquitto_port: int, library: Path) -> Iterator[Field]:
    with tempfile.TemporaryDirectory(dir=fast_folder()) as folder:
        server = Server(mosquitto_port)
        field = Field(Path(folder), mosquitto_port, library, server)
        yield field
        field.agent.kill()
        server.close()


def best_time_s(held: Held) -> float:
    """When it was captured, as far as the station knew."""
    header = held.header
    best = header.corrected_wall_time if header.HasField("corrected_wall_time") else header.capture_clock.wall_time
    return best.ToNanoseconds() / 1e9


@pytest.mark.mosquitto
def test_what_was_captured_in_1970_arrives_with_the_right_time_though_nothing_was_captured_since(field: Field) -> None:
    field.clock.set(-time.time() + 5000, "unsynchronised")
    field.start()
    field.drop_and_wait(1, 2, 3)
    assert not field.held(), "they are kept back until the clock is right"
    field.clock.set(0, "synchronised")
    field.wait_for(1, 2, 3)
    field.drop_and_wait(4, 5)
    held = field.wait_for(1, 2, 3, 4, 5)
    for number, each in held.items():
        assert abs(best_time_s(each) - field.dropped[number]) < 5, f"observation {number}"
        assert each.header.HasField("corrected_wall_time") == (number <= 3)
    assert datetime.fromtimestamp(held[1].header.capture_clock.wall_time.seconds, UTC).year == 1970
    assert held[1].header.capture_clock.clock_sync == pb.CLOCK_SYNC_UNSYNCHRONISED
    field.stop()
    assert field.days() == [date(1970, 1, 1), datetime.now(UTC).date()]


@pytest.mark.mosquitto
def test_a_clock_that_goes_back_while_the_agent_runs_loses_and_repeats_nothing(field: Field) -> None:
    field.start()
    field.drop_and_wait(1, 2)
    jumps: list[float] = [-3600, -3 * DAY_S, 0]
    for index, offset_s in enumerate(jumps):
        field.clock.set(offset_s, "synchronised")
        field.drop_and_wait(3 + 2 * index, 4 + 2 * index)
    field.wait_for(*range(1, 9))
    field.stop()
    today = datetime.now(UTC).date()
    assert field.days() == [today, today - timedelta(days=3), today], "an hour back begins no new file"
    _hold_all_in_buffer(field, 8)


@pytest.mark.mosquitto
def test_a_year_2099_for_a_while_deletes_nothing_and_costs_nothing(field: Field) -> None:
    field.agent.buffer_folder.mkdir()
    buffer = Buffer(field.agent.buffer_folder, STATION)
    for number in range(1, 13):
        buffer.append([observation(number)], time.time() - (25 - 2 * number) * DAY_S)
    buffer.deliver([(1, 12)])
    buffer.close()
    field.clock.set(73 * 365 * DAY_S, "synchronised")
    field.start()
    field.drop_and_wait(13)
    field.clock.set(0, "synchronised")
    field.drop_and_wait(14)
    field.wait_for(13, 14)
    field.stop()
    field.clock.set(73 * 365 * DAY_S, "unsynchronised")
    field.start()
    field.drop_and_wait(15)
    field.stop()
    field.clock.set(0, "synchronised")
    field.start("--exit-when-delivered")
    field.wait_for(13, 14, 15)
    field.stop()
    _hold_all_in_buffer(field, 15)


def _hold_all_in_buffer(field: Field, count: int) -> None:
    buffer = Buffer(field.agent.buffer_folder, STATION)
    try:
        numbers = [o.header.sequence for o in buffer.read(1, buffer.last_sequence, 1 << 30).observations]
        assert numbers == list(range(1, count + 1))
        assert not buffer.ledger.skipped and not buffer.ledger.dropped
    finally:
        buffer.close()
