"""Small lives of a buffer, in which every change of the disk is a step. Each says what it has promised as it goes.

A scenario has two halves: what lies on the disk before, and what is done. `act` carries out one call, and again where
the disk refused it: the scenario itself knows no fault.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol, TypeVar

from faults.promises import DAY_FILE_BYTES, STATION, observation

from edge_agent.alarms import Alarms
from edge_agent.buffer import Buffer
from edge_agent.intake import Intake
from edge_agent.report import InstrumentReport
from edge_agent.source_threads import Captured
from edge_agent.storage.retention import RetentionPolicy, choose_expired, choose_for_room
from edge_agent.upkeep import Upkeep

T = TypeVar("T")
Say = Callable[[str], None]
Heal = Callable[[], None]

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC).timestamp()
DAY_S = 86400.0


class Act(Protocol):
    def __call__(self, call: Callable[[], T]) -> T: ...


@dataclass(frozen=True, slots=True)
class Scenario:
    """Attributes:
    prepare: Makes what lies on the disk before; says what it has promised.
    run: What is done, and may be cut off anywhere.
    """

    prepare: Callable[[Path, Say], None]
    run: Callable[[Path, Say, Act, Heal], None]


def open_buffer(folder: Path) -> Buffer:
    return Buffer(folder, STATION, day_file_max_bytes=DAY_FILE_BYTES)


def append(buffer: Buffer, say: Say, act: Act, numbers: range, now_unix_s: float = NOW) -> None:
    sequences = act(lambda: buffer.append([observation(number) for number in numbers], now_unix_s))
    say(f"appended {sequences[0]} {' '.join(map(str, numbers))}")


def deliver(buffer: Buffer, say: Say, act: Act, first: int, last: int) -> None:
    say(f"delivering {first} {last}")
    buffer.deliver([(first, last)])
    act(buffer.save)
    say(f"delivered {first} {last}")


def at_once(call: Callable[[], T]) -> T:
    return call()


# --- what lies on the disk before ---


def nothing(folder: Path, say: Say) -> None:
    pass


def five_days(folder: Path, say: Say) -> None:
    """Five day files of three observations; the first nine are delivered."""
    buffer = open_buffer(folder)
    say(f"epoch {buffer.epoch}")
    for day in range(5):
        append(buffer, say, at_once, range(1 + 3 * day, 4 + 3 * day), NOW + day * DAY_S)
    deliver(buffer, say, at_once, 1, 9)
    buffer.close()


def damaged(folder: Path, say: Say) -> None:
    """A torn write at the end, an index that is gone, another that is short, a ledger and origins of rubbish."""
    five_days(folder, lambda line: None if line.startswith("deliver") else say(line))
    *_, before, newest = sorted((folder / "days").glob("*.obs"))
    newest.write_bytes(newest.read_bytes() + newest.read_bytes()[:100])
    newest.with_suffix(".idx").unlink()
    before.with_suffix(".idx").write_bytes(b"short")
    (folder / "delivered.json").write_bytes(b"{rubbish")
    (folder / "origins.json").write_bytes(b"rubbish")


def rubbish_last(folder: Path, say: Say) -> None:
    """A newest day file that never came to hold a record."""
    five_days(folder, say)
    (folder / "days" / "000000000016-20260306.obs").write_bytes(b"x" * 700)


# --- what is done ---


def appends(folder: Path, say: Say, act: Act, heal: Heal) -> None:
    """Several groups, a full day file, a new day, a clock that was wrong, and the end."""
    buffer = act(lambda: open_buffer(folder))
    say(f"epoch {buffer.epoch}")
    for group, (first, last) in enumerate([(1, 1), (2, 4), (5, 9), (10, 12), (13, 13)]):
        append(buffer, say, act, range(first, last + 1), NOW + (group >= 3) * DAY_S)
    append(buffer, say, act, range(14, 16), 3600.0)
    act(buffer.close)


def receipts(folder: Path, say: Say, act: Act, heal: Heal) -> None:
    """Delivered, refused, appended again, opened again, skipped: each saved."""
    buffer = act(lambda: open_buffer(folder))
    append(buffer, say, act, range(16, 19))
    deliver(buffer, say, act, 10, 16)
    say("refusing 17")
    buffer.refuse(17, "INVALID", "no sha256")
    act(buffer.save)
    say("copying 18")
    (copy,) = act(lambda: buffer.append_again(18, NOW))
    say(f"appended {copy.header.sequence} 18")
    say("refusing 18")
    buffer.refuse(18, "IDENTITY_CONFLICT", "its bytes have another sequence")
    act(buffer.save)
    say("reopening 2 4")
    buffer.reopen([(2, 4)])
    act(buffer.save)
    say("reopened 2 4")
    say("skipping 20 29")
    buffer.skip_to(29)
    act(buffer.save)
    append(buffer, say, act, range(19, 21))
    act(buffer.save_clock_marks)
    act(buffer.close)


def retention(folder: Path, say: Say, act: Act, heal: Heal) -> None:
    """What is delivered and old goes; then room is made of the rest, at the end of what is undelivered."""
    buffer = act(lambda: open_buffer(folder))
    policy = RetentionPolicy(retention_days=100)
    later = NOW + 101.5 * DAY_S  # the first two day files are old
    for file in choose_expired(buffer.files(), later, policy):
        say(f"may-go {file.first_sequence} {file.last_sequence}")
    act(lambda: buffer.delete_expired(later, policy))
    append(buffer, say, act, range(16, 18), NOW + 5 * DAY_S)
    for _ in range(2):
        make_room(buffer, say, act, 3000)
    append(buffer, say, act, range(18, 20), NOW + 5 * DAY_S)
    act(buffer.close)


def make_room(buffer: Buffer, say: Say, act: Act, wanted_bytes: int) -> None:
    def once() -> None:
        for file in choose_for_room(buffer.files(), wanted_bytes, may_drop=True):
            say(f"may-go {file.first_sequence} {file.last_sequence}")
        buffer.make_room(wanted_bytes, may_drop=True)

    act(once)


def opening(folder: Path, say: Say, act: Act, heal: Heal) -> None:
    """Opening alone, which mends."""
    buffer = act(lambda: open_buffer(folder))
    append(buffer, say, act, range(16, 17))
    act(buffer.close)


class TalkingUpkeep(Upkeep):
    """Says what may go before it goes."""

    def __init__(self, buffer: Buffer, alarms: Alarms, policy: RetentionPolicy, say: Say) -> None:
        super().__init__(buffer, alarms, policy)
        self._buffer = buffer
        self._say = say

    def make_room(self, wanted_bytes: int) -> bool:
        for file in choose_for_room(self._buffer.files(), wanted_bytes, may_drop=True):
            self._say(f"may-go {file.first_sequence} {file.last_sequence}")
        return super().make_room(wanted_bytes)


def station(folder: Path, say: Say, act: Act, heal: Heal) -> None:
    """Intake and upkeep as the agent has them: the disk's refusals are theirs to bear."""
    buffer = act(lambda: open_buffer(folder))
    alarms = Alarms()
    upkeep = TalkingUpkeep(buffer, alarms, RetentionPolicy(), say)
    intake = Intake(buffer, alarms, upkeep)
    intake.instruments = {"cl51": InstrumentReport("cl51")}
    waiting: dict[int, Captured] = {}
    now_s = 1000.0
    for number in [*range(16, 22), *[0] * 8]:
        now_s += 60
        if number == 0:
            heal()
        else:
            waiting[number] = Captured("cl51", [observation(number)], Future())
            intake.add(waiting[number])
        intake.write(now_s)
        for done in [n for n, captured in waiting.items() if captured.done.done()]:
            say(f"appended {waiting.pop(done).observations[0].header.sequence} {done}")
        upkeep.note_settled(1)
        upkeep.work(now_s, NOW)
    assert not waiting, "capture does not go on once the disk is well"
    act(buffer.close)


SCENARIOS = {
    "appends": Scenario(nothing, appends),
    "receipts": Scenario(five_days, receipts),
    "retention": Scenario(five_days, retention),
    "opening a damaged buffer": Scenario(damaged, opening),
    "opening one with an empty day": Scenario(rubbish_last, opening),
    "station": Scenario(five_days, station),
}
