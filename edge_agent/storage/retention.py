"""Which day files go, and when: those that the server holds and whose time has passed, and more where room is short.

Delivered and retained are two clocks. A receipt never deletes; age never deletes what is not delivered. Only a disk, or
a ceiling, that is full of undelivered observations makes the oldest of them go, where the policy says so. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

# A Pi without a clock battery wakes up in the past; a day before this is no day.
EARLIEST_PLAUSIBLE_DAY = date(2025, 1, 1)


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A day file, as the policy sees it.

    Attributes:
        first_sequence: The first sequence in it.
        last_sequence: The last.
        day: The UTC day that the station's clock showed when it was begun.
        size_bytes: Its length.
        is_delivered: Whether the server holds all of it.
    """

    first_sequence: int
    last_sequence: int
    day: date
    size_bytes: int
    is_delivered: bool


@dataclass(frozen=True, slots=True)
class RetentionPolicy:
    """How long observations are kept, and what goes where there is no room for that.

    Attributes:
        retention_days: Days after which a delivered day file may go.
        buffer_max_bytes: Ceiling of the buffer; 0 for none.
        disk_free_floor_bytes: Free space below which delivered day files go before their time.
        drops_undelivered: Whether the oldest undelivered observations go where the newest have no room otherwise.
    """

    retention_days: int = 1096
    buffer_max_bytes: int = 0
    disk_free_floor_bytes: int = 0
    drops_undelivered: bool = True

    def excess_bytes(self, buffer_bytes: int) -> int:
        """How far the buffer is beyond its ceiling; 0 or less where it is not."""
        return buffer_bytes - self.buffer_max_bytes if self.buffer_max_bytes else 0


def choose_expired(
    files: Sequence[StoredFile], now_unix_s: float, policy: RetentionPolicy, *, is_clock_trusted: bool = True
) -> list[StoredFile]:
    """The files that may be deleted, oldest first.

    The newest file is never among them: it is being written. Where a file's day is no plausible one (the clock was
    wrong), the day of the next file with a plausible one stands in: the file cannot be younger than that.

    Args:
        files: All day files, ascending in sequence.
        now_unix_s: The time now.
        policy: How long to keep.
        is_clock_trusted: Whether the time now may be believed; nothing is past its retention where it may not.
    """
    today = datetime.fromtimestamp(now_unix_s, UTC).date()
    if today < EARLIEST_PLAUSIBLE_DAY or not is_clock_trusted:
        return []
    oldest_kept = today - timedelta(days=policy.retention_days)
    expired: list[StoredFile] = []
    known_day = today
    for index, file in reversed(list(enumerate(files))):
        if EARLIEST_PLAUSIBLE_DAY <= file.day <= today:
            known_day = file.day
        if index < len(files) - 1 and file.is_delivered and known_day < oldest_kept:
            expired.append(file)
    return expired[::-1]


def choose_for_room(files: Sequence[StoredFile], wanted_bytes: int, *, may_drop: bool) -> list[StoredFile]:
    """The files that go before their time so that so many bytes come free, or as many as there are.

    Delivered ones first, the oldest of them first; undelivered ones never before those. Never the newest file.

    Args:
        files: All day files, ascending in sequence.
        wanted_bytes: How much is to come free.
        may_drop: Whether undelivered files may go.
    """
    older = files[:-1]
    candidates = [file for file in older if file.is_delivered]
    if may_drop:
        candidates += [file for file in older if not file.is_delivered]
    chosen: list[StoredFile] = []
    for file in candidates:
        if wanted_bytes <= 0:
            break
        chosen.append(file)
        wanted_bytes -= file.size_bytes
    return chosen
