"""All day files of a buffer as one sequence of records: the newest is written, any is read, one is kept open.

Knows no epoch, no receipt and no source.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

from edge_agent.storage.day_file import DayFile, DayFileName, parse_day_file_name
from edge_agent.storage.durable import disk_error
from edge_agent.storage.records import Record
from fieldpost.errors import FieldpostError, TryAgainError
from fieldpost.v1 import observation_pb2 as pb

logger = logging.getLogger(__name__)

OPEN_TRIES = 3
OPEN_WAIT_S = 0.05
MIN_RECORD_BYTES = 64
"""No record is shorter: epoch and SHA-256 alone are longer than that."""

SetAside = Callable[[str, bytes, str], None]
"""(name, bytes, reason): keeps damaged bytes for a person to look at."""


class DayFiles:
    """The day files in a folder. Opening looks at the newest alone, and cuts off what a power cut left at its end.

    Args:
        folder: Where they are.
        max_bytes: A file that would grow beyond this is followed by another one.
        set_aside: Takes what is cut off.
        set_aside_folder: Where a file goes that cannot be opened.

    Raises:
        BrokenStateError: The disk refuses.
    """

    def __init__(self, folder: Path, max_bytes: int, set_aside: SetAside, set_aside_folder: Path) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._active: DayFile | None = None
        self._read_file: DayFile | None = None
        self._is_active_left = False
        self.lost_through = 0
        """The highest sequence that may have been in a file that could not be opened."""
        self.names = list_day_files(folder)
        """Ascending in sequence; the last one is written."""
        while self.names and not self._open_newest(set_aside, set_aside_folder):
            self.names.pop()
        self._sealed_bytes = sum(self.size_of(name) for name in self.names[:-1])

    @property
    def last_sequence(self) -> int:
        """The highest sequence on the disk; 0 where there is none."""
        return self._active.last_sequence if self._active else 0

    @property
    def hole_in_tail(self) -> int | None:
        """The first sequence that a power cut left without a record among the last that were written, if any."""
        return self._active.hole_in_tail if self._active else None

    def newest_record(self) -> Record | None:
        """The last undamaged record; None where there is none."""
        for name in reversed(self.names):
            with contextlib.suppress(FieldpostError):  # gone, or the card refuses to open it
                file = self._open(name)
                for sequence in range(file.last_sequence, name.first_sequence - 1, -1):
                    record = file.read(sequence)
                    if record is not None:
                        return record
        return None

    def append(self, first_sequence: int, records: list[bytes], today: date, before_new: Callable[[], None]) -> None:
        """Appends records of consecutive sequences durably; begins a new file where day, size or sequence ask for it.

        Args:
            first_sequence: Of the first record.
            records: As pack_record makes them.
            today: The day of the wall clock, UTC.
            before_new: Called before a new file is made.

        Raises:
            TryAgainError: The disk is full; nothing was appended.
            BrokenStateError: The disk refuses for another reason; nothing was appended.
        """
        active = self._active
        if (
            active is None
            or self._is_active_left
            or not self._takes(active, first_sequence, sum(map(len, records)), today)
        ):
            before_new()
            active = self._begin(DayFileName(first_sequence, today))
        active.append(first_sequence, records)

    def leave_newest(self) -> None:
        """Lets the next append begin a new file, so that the newest may be deleted, or is not written again."""
        if self._active is not None and self._active.last_sequence >= self._active.name.first_sequence:
            self._is_active_left = True

    def read(self, sequence: int) -> Record | None:
        """The record of the sequence; None where there is none that is undamaged."""
        index = self._index_of(sequence)
        if index < 0:
            return None
        try:
            return self._open(self.names[index]).read(sequence)
        except FieldpostError:
            # Gone, or the card refuses to open it: its observations are reported as missing, the others go on.
            return None

    def read_run(self, first: int, last: int, max_bytes: int) -> list[Record]:
        """Records from first on that lie in one file; nothing where the first one is damaged, gone, or larger."""
        index = self._index_of(first)
        if index < 0:
            return []
        try:
            return self._open(self.names[index]).read_run(first, last, max_bytes)
        except FieldpostError:
            return []

    def gap_end(self, sequence: int) -> int:
        """The last sequence that is missing for the same reason as this one, which has no record."""
        index = self._index_of(sequence)
        is_file_gone = index >= 0 and not (self._folder / str(self.names[index])).exists()
        if (index < 0 or is_file_gone) and index + 1 < len(self.names):
            return self.names[index + 1].first_sequence - 1
        return sequence

    def read_headers(self, name: DayFileName) -> Iterator[pb.ObservationHeader]:
        """The headers of a file's records, without their payloads and without holding their checksums."""
        try:
            yield from self._open(name).read_headers()
        except FieldpostError:
            return  # gone, or the card refuses to open it

    def read_from(self, sequence: int) -> Iterator[Record]:
        """All undamaged records from the sequence on."""
        for name in self.names[max(0, self._index_of(sequence)) :]:
            with contextlib.suppress(FieldpostError):  # gone, or the card refuses to open it
                yield from self._open(name).read_all(sequence)

    def ranges(self) -> list[tuple[DayFileName, int]]:
        """Each file that has sequences, with the last of them."""
        lasts = [name.first_sequence - 1 for name in self.names[1:]] + [self.last_sequence]
        return [(name, last) for name, last in zip(self.names, lasts, strict=False) if last >= name.first_sequence]

    def size_of(self, name: DayFileName) -> int:
        """Length of a file in bytes; 0 where it is gone."""
        try:
            return (self._folder / str(name)).stat().st_size
        except OSError:
            return 0

    def size_bytes(self) -> int:
        """Bytes of all files."""
        return self._sealed_bytes + (self._active.end if self._active else 0)

    def delete(self, name: DayFileName) -> None:
        """Deletes a file and its index; not the newest.

        Raises:
            BrokenStateError: The disk refuses.
        """
        if self._read_file is not None and self._read_file.name == name:
            self._close_read_file()
        path = self._folder / str(name)
        size_bytes = self.size_of(name)
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise disk_error(error, path) from error
        self.names.remove(name)
        self._sealed_bytes -= size_bytes
        with contextlib.suppress(OSError):  # an index without its file harms nobody
            path.with_suffix(".idx").unlink(missing_ok=True)

    def close(self) -> None:
        """Closes what is open."""
        self._close_read_file()
        if self._active is not None:
            self._active.close()
            self._active = None

    def _open_newest(self, set_aside: SetAside, set_aside_folder: Path) -> bool:
        """Opens the newest file with its torn end cut off. A file without any record goes out of the way."""
        path = self._folder / str(self.names[-1])
        file = _open_patiently(path)
        if file is None:
            # Its sequences may have been sent: they are not given again.
            self.lost_through = self.names[-1].first_sequence + self.size_of(self.names[-1]) // MIN_RECORD_BYTES
            _move(path, set_aside_folder / path.name)
            logger.warning("day file set aside", extra={"file": path.name, "reason": "it cannot be opened"})
            return False
        try:
            self._clear_tail(file, set_aside)
        except BaseException:
            file.close()
            raise
        if file.last_sequence >= file.name.first_sequence:
            self._active = file
            return True
        file.close()
        try:
            path.unlink()
            path.with_suffix(".idx").unlink(missing_ok=True)
        except OSError as error:
            raise disk_error(error, path) from error
        return False

    def _clear_tail(self, file: DayFile, set_aside: SetAside) -> None:
        torn = file.read_tail()
        if not torn:
            return
        try:
            set_aside(f"{file.path.stem}-{file.end}.torn", torn, "a write that was cut off")
        except TryAgainError:
            # No room to keep it now: the next write goes over it. Nobody was promised what is in it.
            return
        file.cut_tail()

    def _takes(self, file: DayFile, first_sequence: int, added_bytes: int, today: date) -> bool:
        if file.last_sequence + 1 != first_sequence:
            return False
        is_empty = file.last_sequence < file.name.first_sequence
        return is_empty or (file.end + added_bytes <= self._max_bytes and not _is_new_day(file.name.day, today))

    def _begin(self, name: DayFileName) -> DayFile:
        fresh = DayFile(self._folder / str(name), is_owned=True, is_new=True)
        if self._active is not None:
            self._sealed_bytes += self._active.end
            self._active.close()
        self._active = fresh
        self._is_active_left = False
        self.names.append(name)
        return fresh

    def _index_of(self, sequence: int) -> int:
        """Index of the file that should hold the sequence; -1 before the first file."""
        return bisect_right(self.names, sequence, key=lambda name: name.first_sequence) - 1

    def _open(self, name: DayFileName) -> DayFile:
        if self._active is not None and self._active.name == name:
            return self._active
        if self._read_file is None or self._read_file.name != name:
            self._close_read_file()
            self._read_file = DayFile(self._folder / str(name), is_owned=True)
        return self._read_file

    def _close_read_file(self) -> None:
        if self._read_file is not None:
            self._read_file.close()
            self._read_file = None


def _open_patiently(path: Path) -> DayFile | None:
    """Opens a file, if need be after some tries: a card may fail once. None where it cannot be opened."""
    for try_number in range(OPEN_TRIES):
        try:
            return DayFile(path, is_owned=True)
        except FieldpostError as error:
            logger.warning("day file not opened", extra={"file": path.name, "reason": str(error)})
            time.sleep(try_number * OPEN_WAIT_S)
    return None


def _move(path: Path, target: Path) -> None:
    try:
        path.rename(target)
    except OSError as error:
        raise disk_error(error, path) from error


def list_day_files(folder: Path) -> list[DayFileName]:
    """The day files in a folder, ascending in sequence."""
    names = (parse_day_file_name(entry.name) for entry in os.scandir(folder))
    return sorted((name for name in names if name is not None), key=lambda name: name.first_sequence)


def utc_day(unix_s: float) -> date:
    """The UTC day of an instant."""
    return datetime.fromtimestamp(unix_s, UTC).date()


def _is_new_day(file_day: date, today: date) -> bool:
    # A clock that steps back a little around midnight opens no file; one that was wrong by days does.
    return today > file_day or today < file_day - timedelta(days=1)
