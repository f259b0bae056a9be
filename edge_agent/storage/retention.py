"""Which day files may go: those that the server holds whole and whose time to be kept has passed. Pure.

Delivered and retained are two clocks. A receipt never deletes; age never deletes what is not delivered.
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
    """How long delivered observations are kept.

    Attributes:
        retention_days: Days after which a delivered day file may go.
    """

    retention_days: int = 1096


def choose_expired(files: Sequence[StoredFile], now_unix_s: float, policy: RetentionPolicy) -> list[StoredFile]:
    """The files that may be deleted, oldest first.

    The newest file is never among them: it is being written. Where a file's day is no plausible one (the clock was
    wrong), the day of the next file with a plausible one stands in: the file cannot be younger than that.

    Args:
        files: All day files, ascending in sequence.
        now_unix_s: The time now.
        policy: How long to keep.
    """
    today = datetime.fromtimestamp(now_unix_s, UTC).date()
    if today < EARLIEST_PLAUSIBLE_DAY:
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
