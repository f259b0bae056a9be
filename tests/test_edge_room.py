"""Disks that are full or refuse: what goes, what stays, and that capture goes on. On real small file systems."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from concurrent.futures import Future
from datetime import date
from pathlib import Path

import pytest
from small_disk import break_card, card, small_disk

from edge_agent.alarms import Alarms
from edge_agent.buffer import Buffer
from edge_agent.capture import Capture, observation_of
from edge_agent.intake import Intake
from edge_agent.report import InstrumentReport
from edge_agent.source_threads import Captured
from edge_agent.storage.retention import RetentionPolicy, StoredFile, choose_for_room
from edge_agent.upkeep import Upkeep
from fieldpost.errors import BrokenStateError
from fieldpost.payload import decode_checked

MIB = 1 << 20
OBSERVATION_BYTES = 32 << 10
DAY_FILE_BYTES = 256 << 10


def stored(first: int, *, is_delivered: bool, size_bytes: int = 100) -> StoredFile:
    return StoredFile(first, first, date(2026, 1, 1), size_bytes, is_delivered)


# --- what goes ---


def test_delivered_files_go_first_and_the_oldest_of_them_first() -> None:
    old, undelivered, newer, newest = (
        stored(1, is_delivered=True),
        stored(2, is_delivered=False),
        stored(3, is_delivered=True),
        stored(4, is_delivered=True),
    )
    files = [old, undelivered, newer, newest]
    assert choose_for_room(files, 1, may_drop=True) == [old]
    assert choose_for_room(files, 150, may_drop=True) == [old, newer]
    assert choose_for_room(files, 250, may_drop=True) == [old, newer, undelivered]
    assert choose_for_room(files, 250, may_drop=False) == [old, newer]
    assert choose_for_room(files, 0, may_drop=True) == []


def test_the_file_that_is_being_written_never_goes() -> None:
    assert choose_for_room([stored(1, is_delivered=True)], 1000, may_drop=True) == []


# --- a station on a small disk ---


class SmallStation:
    """Buffer, upkeep and intake as the agent has them, on a disk of its own."""

    def __init__(self, folder: Path, policy: RetentionPolicy) -> None:
        self.alarms = Alarms()
        self.buffer = Buffer(folder / "buffer", "magurele", day_file_max_bytes=DAY_FILE_BYTES)
        self.upkeep = Upkeep(self.buffer, self.alarms, policy)
        self.intake = Intake(self.buffer, self.alarms, self.upkeep)
        self.intake.instruments = {"cl51": InstrumentReport("cl51")}
        self.now_s = 1000.0
        self.waiting: list[Captured] = []

    def capture(self, number: int) -> bool:
        """One observation of bytes that cannot be compressed; whether it is on the disk."""
        content = number.to_bytes(8, "big") + os.urandom(OBSERVATION_BYTES)
        capture = Capture("cl51", "file", content, origin_name="cl51:run", origin_index=number)
        one = Captured("cl51", [observation_of(capture)], Future())
        self.waiting.append(one)
        self.intake.add(one)
        return self.try_again()

    def try_again(self) -> bool:
        self.now_s += 60
        written = bool(self.intake.write(self.now_s))
        self.upkeep.work(self.now_s, 1.8e9)
        return written

    def numbers(self) -> list[int]:
        found = self.buffer.read(1, self.buffer.last_sequence, 1 << 30).observations
        return [int.from_bytes(decode_checked(observation)[:8], "big") for observation in found]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", 2 * MIB) as folder:
        yield folder


def test_on_a_full_disk_the_oldest_delivered_observations_make_room_for_new_ones(disk: Path) -> None:
    station = SmallStation(disk, RetentionPolicy())
    for number in range(1, 201):
        assert station.capture(number) or station.try_again()
        if number >= 10:
            station.buffer.deliver([(1, number - 9)])
    kept = station.numbers()
    assert kept == list(range(kept[0], 201)), "what is kept is the newest, without a hole"
    assert len(kept) > 20, "most of the disk is used"
    assert not station.buffer.ledger.dropped
    assert station.alarms.texts() == []
    station.buffer.close()


def test_a_disk_full_of_undelivered_observations_gives_up_the_oldest_and_says_so(disk: Path) -> None:
    station = SmallStation(disk, RetentionPolicy())
    for number in range(1, 201):
        assert station.capture(number) or station.try_again(), "capture goes on"
    kept = station.numbers()
    assert kept == list(range(kept[0], 201))
    dropped = station.buffer.ledger.dropped
    assert list(dropped) == [(1, kept[0] - 1)]
    assert station.upkeep.take_gone()[0][0] == 1
    assert f"{len(dropped)} undelivered observations had to go" in " ".join(station.alarms.texts())
    station.buffer.close()
    again = Buffer(disk / "buffer", "magurele")
    assert list(again.ledger.dropped) == [(1, kept[0] - 1)], "it is still known after a restart"
    assert again.last_sequence == 200
    again.close()


def test_where_nothing_undelivered_may_go_the_sources_wait_until_there_is_room(disk: Path) -> None:
    station = SmallStation(disk, RetentionPolicy(drops_undelivered=False))
    number = 0
    while station.capture(number := number + 1):
        pass
    assert not station.try_again()
    assert not station.waiting[-1].done.done(), "the source still has it"
    assert "the disk takes nothing" in " ".join(station.alarms.texts())
    station.buffer.deliver([(1, number - 1)])
    assert station.try_again() or station.try_again()
    assert station.waiting[-1].done.done()
    assert station.numbers()[-1] == number
    assert not station.buffer.ledger.dropped
    station.buffer.close()


def test_a_disk_that_others_have_filled_costs_delivered_observations_only_until_nothing_can_be_written(
    disk: Path,
) -> None:
    station = SmallStation(disk, RetentionPolicy(disk_free_floor_bytes=MIB))
    for number in range(1, 26):
        assert station.capture(number)
    (disk / "of-others").write_bytes(bytes(512 << 10))
    assert not station.try_again(), "nothing waits"
    assert station.numbers() == list(range(1, 26)), "below the floor, but nothing is delivered"
    station.buffer.deliver([(1, 25)])
    station.try_again()
    assert station.numbers()[0] > 1
    assert station.numbers()[-1] == 25
    station.buffer.close()


def test_the_buffer_stays_below_its_ceiling(tmp_path: Path) -> None:
    station = SmallStation(tmp_path, RetentionPolicy(buffer_max_bytes=MIB))
    for number in range(1, 101):
        assert station.capture(number)
        station.buffer.deliver([(number, number)])
        assert station.buffer.size_bytes() <= MIB
    assert station.numbers()[-1] == 100
    assert not station.buffer.ledger.dropped
    station.buffer.close()


def test_at_its_ceiling_a_buffer_that_drops_nothing_lets_the_sources_wait(tmp_path: Path) -> None:
    station = SmallStation(tmp_path, RetentionPolicy(buffer_max_bytes=MIB, drops_undelivered=False))
    number = 0
    while station.capture(number := number + 1):
        assert number < 100
    assert "the ceiling of 1048576 bytes is reached" in " ".join(station.alarms.texts())
    file_count = len(list((station.buffer.folder / "days").glob("*.obs")))
    assert not station.try_again()
    assert len(list((station.buffer.folder / "days").glob("*.obs"))) == file_count
    station.buffer.deliver([(1, number - 1)])
    station.try_again()
    assert station.try_again()
    assert station.numbers()[-1] == number
    assert not station.buffer.ledger.dropped
    station.buffer.close()


def test_a_card_that_turns_read_only_stops_nothing_and_what_was_promised_is_there_after_a_power_cycle(
    tmp_path: Path,
) -> None:
    with card(tmp_path / "card", tmp_path / "image") as folder:
        station = SmallStation(folder, RetentionPolicy())
        assert station.capture(1)
        break_card(folder)
        assert not station.capture(2)
        assert not station.capture(3)
        assert not any(one.done.done() for one in station.waiting[1:]), "the sources still have them"
        assert os.strerror(errno.EROFS) in " ".join(station.alarms.texts())
        assert station.numbers() == [1], "what is there can still be read, and sent"
        station.buffer.deliver([(1, 1)])
        station.upkeep.note_settled(5000)
        station.try_again()
        assert "what is delivered cannot be written down" in " ".join(station.alarms.texts())
        with pytest.raises(BrokenStateError):
            station.buffer.close()
    with card(tmp_path / "card", tmp_path / "image") as folder:
        station = SmallStation(folder, RetentionPolicy())
        assert station.numbers() == [1]
        assert station.capture(2)
        station.buffer.close()
