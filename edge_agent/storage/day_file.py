"""One day file of the buffer and its index: records appended durably, read back by sequence, damage stepped over.

`<first sequence>-<YYYYMMDD>.obs` holds records in ascending sequence. `.idx` beside it holds the offset of each
sequence, 8 bytes little-endian. The index is never synced and never trusted: what it says is held against the records,
and it is written anew where it is wrong. Knows nothing of other day files, receipts or retention.

Between records, and behind the last one, there may be zeros. Space is filled with them ahead, and an append begins on a
page of its own where that wastes little: syncing it then costs a card its own pages, and neither the file system's
journal nor the page before (measured on ext4: 8.6 KB instead of 26 KB for each telegram of 3.3 KB).
"""

from __future__ import annotations

import contextlib
import os
import re
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from edge_agent.storage.durable import disk_error, sync_folder
from edge_agent.storage.index_file import read_index, write_index
from edge_agent.storage.records import Record, parse_record, read_header, read_record, scan_records, whole_end
from fieldpost.errors import BrokenStateError
from fieldpost.v1 import observation_pb2 as pb

NAME_PATTERN = re.compile(r"(\d{12,19})-(\d{4})(\d\d)(\d\d)\.obs")
NO_RECORD = (1 << 64) - 1
"""What the index says of a sequence that has no undamaged record."""
INDEX_EVERY = 1024
"""So many records are appended before the index is written: for each record alone an SD card would write a page of it.
After a crash they are found again by reading them."""
PAGE_BYTES = 4096
AHEAD_BYTES = 256 << 10
"""So much is filled with zeros ahead of small appends."""
SMALL_APPEND_BYTES = 32 << 10
"""For larger ones the journal costs little, and zeros would cost much."""
_MAX_HOLE = 10_000_000


@dataclass(frozen=True, slots=True)
class DayFileName:
    """What the name of a day file says."""

    first_sequence: int
    day: date

    def __str__(self) -> str:
        return f"{self.first_sequence:012d}-{self.day:%Y%m%d}.obs"


def parse_day_file_name(name: str) -> DayFileName | None:
    """The parts of the name; None where it is not the name of a day file."""
    match = NAME_PATTERN.fullmatch(name)
    if match is None:
        return None
    try:
        return DayFileName(int(match[1]), date(int(match[2]), int(match[3]), int(match[4])))
    except ValueError:
        return None


class DayFile:
    """An open day file.

    Args:
        path: The file.
        is_owned: Whether this process holds the buffer's lock: only then records are appended and the index mended.
        is_new: Whether to make the file; where it exists, it must be empty.

    Raises:
        BrokenStateError: The file cannot be opened.
        TryAgainError: The disk is full.
    """

    def __init__(self, path: Path, *, is_owned: bool = False, is_new: bool = False) -> None:
        name = parse_day_file_name(path.name)
        if name is None:
            raise BrokenStateError(f"expected a day file named <sequence>-<YYYYMMDD>.obs, but got {path.name!r}")
        self.path = path
        self.name = name
        self._is_owned = is_owned
        flags = (os.O_RDWR if is_owned else os.O_RDONLY) | (os.O_CREAT if is_new else 0)
        try:
            self._descriptor = os.open(path, flags | os.O_CLOEXEC, 0o640)
        except OSError as error:
            raise disk_error(error, path) from error
        if is_new:
            self._make_durable()
        self._offsets = array("Q")
        self._indexed_count = 0
        self._known_count = 0  # how many sequences the index named when the file was opened
        self._is_rebuilt = False
        self.hole_in_tail: int | None = None
        """The first sequence without a record that was found behind the end of the index."""
        self.end = 0
        """Where the last record ends, in bytes."""
        self._filled_end = 0  # up to here there are zeros on the disk
        self._load()

    def read_all(self, start_sequence: int | None = None) -> Iterator[Record]:
        """The undamaged records, ascending, from start_sequence on; each is read from disk and checked."""
        first = max(self.name.first_sequence, start_sequence or 0)
        for sequence in range(first, self.last_sequence + 1):
            record = self.read(sequence)
            if record is not None:
                yield record

    def read_headers(self) -> Iterator[pb.ObservationHeader]:
        """The headers of the records, ascending, without their payloads; checksums are not held."""
        for offset in self._offsets:
            header = read_header(self._read_at, offset) if offset != NO_RECORD else None
            if header is not None:
                yield header

    @property
    def last_sequence(self) -> int:
        """The highest sequence in the file; first_sequence - 1 where there is none."""
        return self.name.first_sequence + len(self._offsets) - 1

    @property
    def size(self) -> int:
        """Length of the file in bytes, damage at its end included."""
        return os.fstat(self._descriptor).st_size

    def append(self, first_sequence: int, records: list[bytes]) -> None:
        """Writes records of consecutive sequences and returns once the disk has them.

        After an error the file is as long as before and stays usable.

        Raises:
            TryAgainError: The disk is full.
            BrokenStateError: The disk refuses for another reason, or the sequence does not follow.
        """
        if first_sequence != self.last_sequence + 1:
            raise BrokenStateError(
                f"expected sequence {self.last_sequence + 1} in {self.path}, but got {first_sequence}"
            )
        content = b"".join(records)
        start = _place(self.end, len(content))
        try:
            if len(content) <= SMALL_APPEND_BYTES:
                self._fill_ahead(start + len(content))
            self._write_at(start, content)
            os.fdatasync(self._descriptor)
        except OSError as error:
            # Tidy only: the next write begins behind self.end in any case.
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, self.end)
            self._filled_end = 0
            raise disk_error(error, self.path) from error
        for record in records:
            self._offsets.append(start)
            start += len(record)
        self.end = start
        if len(self._offsets) - self._indexed_count >= INDEX_EVERY:
            self._write_index()

    def read(self, sequence: int) -> Record | None:
        """The record of the sequence; None where the file has none that is undamaged."""
        record = self._read_indexed(sequence)
        if record is None and not self._is_rebuilt and self._is_indexed(sequence):
            self._rebuild()
            record = self._read_indexed(sequence)
        return record

    def read_run(self, first: int, last: int, max_bytes: int) -> list[Record]:
        """Records from first on with one read of the file, up to last, or as many as lie in so many bytes.

        Ends before one that is damaged or not there; nothing where first itself is.
        """
        if not self._is_indexed(first):
            return []
        index = first - self.name.first_sequence
        begin = self._offsets[index]
        end_index = min(last, self.last_sequence) - self.name.first_sequence + 1
        ends = self._offsets[index + 1 : end_index + 1]
        if end_index == len(self._offsets):
            ends.append(self.end)
        content = self._read_at(begin, max((end for end in ends if end - begin <= max_bytes), default=begin) - begin)
        records: list[Record] = []
        for sequence, offset in enumerate(self._offsets[index:end_index], first):
            record = parse_record(content, offset - begin, offset) if offset != NO_RECORD else None
            if record is None or record.header.sequence != sequence:
                break
            records.append(record)
        return records

    def read_tail(self) -> bytes:
        """What lies behind the last undamaged record, without the zeros at its end: a write that a power cut tore."""
        return self._read_at(self.end, max(0, self.size - self.end)).rstrip(b"\0")

    def cut_tail(self) -> None:
        """Removes what lies behind the last undamaged record.

        Raises:
            BrokenStateError: The disk refuses.
        """
        try:
            os.ftruncate(self._descriptor, self.end)
            os.fsync(self._descriptor)
        except OSError as error:
            raise disk_error(error, self.path) from error

    def close(self) -> None:
        """Writes the index, gives back the space ahead, and closes the file."""
        if self._filled_end > self.end:
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, self.end)
        self._write_index()
        os.close(self._descriptor)

    def _make_durable(self) -> None:
        """Of a new file: its name. Where that fails, an empty file may stay, and the next try takes that one."""
        try:
            if self.size:
                raise BrokenStateError(f"expected no day file {self.path} yet, but got one of {self.size} bytes")
            sync_folder(self.path.parent)
        except OSError as error:
            os.close(self._descriptor)
            raise disk_error(error, self.path) from error
        except BrokenStateError:
            os.close(self._descriptor)
            raise

    def _is_indexed(self, sequence: int) -> bool:
        """Whether the index names an offset for the sequence."""
        if not self.name.first_sequence <= sequence <= self.last_sequence:
            return False
        return self._offsets[sequence - self.name.first_sequence] != NO_RECORD

    def _read_indexed(self, sequence: int) -> Record | None:
        if not self._is_indexed(sequence):
            return None
        record = read_record(self._read_at, self._offsets[sequence - self.name.first_sequence])
        return record if record is not None and record.header.sequence == sequence else None

    def _load(self) -> None:
        """Takes the index as far as it fits, and walks the records behind it."""
        self._offsets = read_index(self.path.with_suffix(".idx"))
        self._known_count = len(self._offsets)
        while self._offsets and self._offsets[-1] == NO_RECORD:
            self._offsets.pop()
        self._indexed_count = len(self._offsets)
        last = self._read_indexed(self.last_sequence)
        if last is None:
            self._rebuild()
            return
        self.end = last.end
        self._walk(last.end)
        self._write_index()

    def _rebuild(self) -> None:
        """Makes the index anew from the records."""
        self._is_rebuilt = True
        self._offsets = array("Q")
        self._indexed_count = self.end = 0
        self._walk(0)
        self._write_index(is_new=True)

    def _walk(self, start: int) -> None:
        for record in scan_records(self._read_at, start):
            hole = record.header.sequence - self.last_sequence - 1
            if not 0 <= hole <= _MAX_HOLE:
                continue
            if hole and self.hole_in_tail is None and len(self._offsets) + hole > self._known_count:
                self.hole_in_tail = self.last_sequence + 1
            self._offsets.extend([NO_RECORD] * hole)
            self._offsets.append(record.offset)
            self.end = record.end
        # What was whole once may have been promised and sent: its sequence is never given to another observation.
        while (end := self._damaged_end()) is not None:
            self._offsets.append(NO_RECORD)
            self.end = end

    def _damaged_end(self) -> int | None:
        """Where a record ends that was written whole behind the last undamaged one; None where there is none."""
        next_page = self.end + -self.end % PAGE_BYTES
        ends = (whole_end(self._read_at, offset, self.size) for offset in dict.fromkeys((self.end, next_page)))
        return next((end for end in ends if end is not None), None)

    def _read_at(self, offset: int, length: int) -> bytes:
        """Bytes of the file; a block that the disk cannot read comes as zeros, which no checksum takes for a record."""
        try:
            return os.pread(self._descriptor, length, offset)
        except OverflowError:
            return b""  # an index with a flipped bit names a place beyond all files
        except OSError:
            return bytes(max(0, min(length, self.size - offset)))

    def _fill_ahead(self, end: int) -> None:
        """Writes zeros where small appends will be. Where the disk has no room for them, it may have for the record."""
        if end <= self._filled_end:
            return
        filled_end = end + AHEAD_BYTES
        with contextlib.suppress(OSError):
            self._write_at(self.end, bytes(filled_end - self.end))
            self._filled_end = filled_end

    def _write_at(self, offset: int, content: bytes) -> None:
        view = memoryview(content)
        while view:
            written = os.pwrite(self._descriptor, view, offset)
            view = view[written:]
            offset += written

    def _write_index(self, *, is_new: bool = False) -> None:
        """Adds to the index what it lacks."""
        if self._is_owned and (self._indexed_count < len(self._offsets) or is_new):
            path = self.path.with_suffix(".idx")
            self._indexed_count = write_index(path, self._offsets, self._indexed_count, is_new=is_new)


def _place(end: int, length: int) -> int:
    """Where an append begins: on the next page, unless that would leave more than half of its own length empty."""
    padding = -end % PAGE_BYTES
    return end + padding if padding <= length // 2 else end
