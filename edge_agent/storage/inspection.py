"""Looks into a buffer from outside, without its lock and without changing anything; the agent may be at work in it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edge_agent.storage.day_file import DayFile
from edge_agent.storage.day_files import list_day_files
from edge_agent.storage.ledger import Ledger, ledger_from_json
from edge_agent.storage.state_file import without_checksum
from fieldpost.errors import BrokenStateError, InvalidRequestError
from fieldpost.ranges import RangeSet


@dataclass(frozen=True, slots=True)
class FileSummary:
    """One day file. Sequences are closed ranges; delivered_count is as of the last time that the agent saved it."""

    name: str
    first_sequence: int
    last_sequence: int
    observation_count: int
    delivered_count: int
    size_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class FileCheck:
    """What a check of one day file found.

    Attributes:
        name: Of the file.
        good_count: Records whose checksum is right.
        damaged: Ranges of sequences without a good record.
        tail_bytes: Bytes behind the last good record: a write under way, or one that was cut off.
    """

    name: str
    good_count: int
    damaged: list[tuple[int, int]]
    tail_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def list_files(folder: Path) -> list[FileSummary]:
    """The day files of a buffer.

    Raises:
        InvalidRequestError: There is no buffer.
    """
    days = folder / "days"
    if not days.is_dir():
        raise InvalidRequestError(f"expected a buffer at {folder}, but there is none", hint="has the agent run yet?")
    delivered = _ledger(folder).delivered
    return [_summarise(DayFile(days / str(name)), delivered) for name in list_day_files(days)]


def check_file(folder: Path, file: FileSummary) -> FileCheck:
    """Reads every record of a day file and holds its checksum."""
    day_file = DayFile(folder / "days" / file.name)
    try:
        good = RangeSet.of(record.header.sequence for record in day_file.read_all())
        damaged = list(good.gaps(day_file.name.first_sequence, max(file.last_sequence, day_file.last_sequence)))
        return FileCheck(file.name, len(good), damaged, len(day_file.read_tail()))
    finally:
        day_file.close()


def _summarise(file: DayFile, delivered: RangeSet) -> FileSummary:
    try:
        first, last = file.name.first_sequence, file.last_sequence
        undelivered = sum(b - a + 1 for a, b in delivered.gaps(first, last))
        count = last - first + 1
        return FileSummary(file.path.name, first, last, count, count - undelivered, file.size)
    finally:
        file.close()


def _ledger(folder: Path) -> Ledger:
    """The ledger as saved; an empty one where it cannot be read, as the agent takes it."""
    try:
        epoch = (folder / "epoch").read_text().strip()
        return ledger_from_json(without_checksum((folder / "delivered.json").read_bytes()), epoch)
    except (OSError, BrokenStateError):
        return Ledger("")
