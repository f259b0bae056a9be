"""What a program said that its buffer holds, and whether a buffer that is opened afterwards keeps it.

A promise is one line of text, said after the call that makes it has returned; a permission ("delivering", "may-go") is
said before the call. Knows no fault: it is the same after a kill, a refusing disk and a power cut.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from edge_agent.buffer import Buffer
from edge_agent.capture import Capture, observation_of
from fieldpost.payload import decode_checked
from fieldpost.ranges import RangeSet
from fieldpost.v1 import observation_pb2 as pb

STATION = "magurele"
DAY_FILE_BYTES = 6000
ORIGIN = "cl51:run"
NEW_NUMBER = 1_000_000


def content_of(number: int) -> bytes:
    """The bytes of an observation: they cannot be compressed, and some are larger than a sector of the disk."""
    length = 1300 if number % 3 == 0 else 80
    noise = b"".join(hashlib.sha256(b"%d %d" % (number, part)).digest() for part in range(length // 32))
    return b"telegram %d " % number + noise


def observation(number: int) -> pb.Observation:
    """The observation that a source hands over as its number-th."""
    return observation_of(
        Capture(
            "cl51",
            "vaisala-cl",
            content_of(number),
            origin_name=ORIGIN,
            origin_index=number,
            clock=pb.CaptureClock(),
        )
    )


@dataclass(slots=True)
class Promises:
    """What was said, put together.

    Attributes:
        epoch: The epoch of the buffer; empty where it was not said yet.
        numbers: Which observation was promised under which sequence.
        delivered: Sequences that were saved as delivered, and not opened again since.
        may_be_settled: Sequences that the buffer may hold for done: delivered, refused, skipped.
        may_go: Sequences that the buffer was told to delete.
        copies: Numbers that were to be appended a second time.
    """

    epoch: str = ""
    numbers: dict[int, int] = field(default_factory=dict)
    delivered: RangeSet = field(default_factory=RangeSet)
    may_be_settled: RangeSet = field(default_factory=RangeSet)
    may_go: RangeSet = field(default_factory=RangeSet)
    copies: Counter[int] = field(default_factory=Counter)

    def add(self, line: str) -> None:
        """Takes one line."""
        word, *rest = line.split()
        if word == "epoch":
            self.epoch = rest[0]
            return
        values = [int(value) for value in rest]
        match word:
            case "appended":
                self.numbers.update(enumerate(values[1:], start=values[0]))
            case "copying":
                self.copies[values[0]] += 1
            case "delivering" | "refusing" | "skipping":
                self.may_be_settled.add(values[0], values[-1])
            case "delivered":
                self.delivered.add(values[0], values[-1])
            case "reopening":
                self.delivered.discard(values[0], values[1])
            case "reopened":
                self.may_be_settled.discard(values[0], values[1])
            case "may-go":
                self.may_go.add(values[0], values[1])
                self.delivered.discard(values[0], values[1])
            case _:
                raise ValueError(f"expected a promise, but got {line!r}")


def promises_of(lines: Iterable[str]) -> Promises:
    """What these lines promise."""
    promises = Promises()
    for line in lines:
        promises.add(line)
    return promises


def read_numbers(buffer: Buffer) -> dict[int, int]:
    """The number of each observation that can be read, by sequence; its bytes are held against those it was made of."""
    found = {}
    for each in buffer.read(1, buffer.last_sequence, 1 << 30).observations:
        content = decode_checked(each)
        number = int(content.split(b" ", 2)[1])
        assert content == content_of(number), "wrong bytes"
        assert (each.header.station, each.header.epoch) == (STATION, buffer.epoch)
        found[each.header.sequence] = number
    return found


def hold(folder: Path, lines: Iterable[str], *, may_repeat: bool = False) -> None:
    """Opens the buffer and holds it to its promises; then goes on with it.

    Args:
        folder: The buffer's folder.
        lines: What was said.
        may_repeat: Whether a source may hand over again what the buffer has already: after a power cut, for what was
            not promised.
    """
    promises = promises_of(lines)
    buffer = Buffer(folder, STATION, day_file_max_bytes=DAY_FILE_BYTES)
    try:
        found = _hold_open(buffer, promises, may_repeat=may_repeat)
        (sequence,) = buffer.append([observation(NEW_NUMBER)], 1.8e9)
        assert sequence not in found and sequence not in promises.numbers, f"sequence {sequence} is given away twice"
        epoch = buffer.epoch
    finally:
        buffer.close()
    buffer = Buffer(folder, STATION, day_file_max_bytes=DAY_FILE_BYTES)
    try:
        assert buffer.epoch == epoch
        assert read_numbers(buffer) == found | {sequence: NEW_NUMBER}, "the next start reads something else"
    finally:
        buffer.close()


def _hold_open(buffer: Buffer, promises: Promises, *, may_repeat: bool) -> dict[int, int]:
    assert promises.epoch in ("", buffer.epoch), "another epoch"
    found = read_numbers(buffer)
    for sequence, number in promises.numbers.items():
        if sequence in found:
            assert found[sequence] == number, f"sequence {sequence} is {found[sequence]}, but {number} was promised"
        else:
            assert sequence in promises.may_go, f"sequence {sequence} is gone"
    for number, count in Counter(found.values()).items():
        assert count <= 1 + promises.copies[number] or may_repeat, f"observation {number} is here {count} times"
    _hold_origins(buffer, found, promises, may_repeat=may_repeat)
    _hold_ledger(buffer, found, promises)
    return found


def _hold_origins(buffer: Buffer, found: dict[int, int], promises: Promises, *, may_repeat: bool) -> None:
    """A source goes on behind what the buffer calls its highest: nothing before that may be missing."""
    highest = buffer.origins().get(ORIGIN, 0)
    here = set(found.values())
    gone = {number for sequence, number in promises.numbers.items() if sequence in promises.may_go}
    missing = set(range(1, highest + 1)) - here - gone
    assert not missing, f"{sorted(missing)} are not here, and the source goes on behind {highest}"
    assert highest >= max(here, default=0) or may_repeat, "the source would hand over what is here"


def _hold_ledger(buffer: Buffer, found: dict[int, int], promises: Promises) -> None:
    for first, last in promises.delivered:
        assert not list(buffer.ledger.delivered.gaps(first, last)), f"{first}-{last} are forgotten as delivered"
    settled = buffer.settled()
    for sequence in found:
        is_allowed = sequence in promises.may_be_settled or sequence in promises.may_go
        assert is_allowed or sequence not in settled, f"sequence {sequence} would never be sent"
