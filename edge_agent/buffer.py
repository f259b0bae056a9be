"""The station's memory: numbered observations on the disk, what became of each, and nothing lost at any power cut.

    <buffer>/lock              held by the one process that writes here
    <buffer>/epoch             32 hexadecimal digits, made once
    <buffer>/days/*.obs, *.idx day files and their indexes
    <buffer>/delivered.json    the ledger of receipts, written lazily
    <buffer>/origins.json      how far each source has come, written when a day file begins and at close
    <buffer>/clock.json        when the clock was synchronised, boot by boot
    <buffer>/quarantine/       inputs that could not be framed
    <buffer>/set-aside/        damaged parts of this buffer itself

An observation is on the disk when append returns. A receipt only marks; retention alone deletes, and a disk without
room. Damage is set aside and the rest goes on. Knows no network and no source; used by one thread.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

from edge_agent.clock import boot_id
from edge_agent.clock_marks import ClockMarks, clock_marks_from_json, needs_time
from edge_agent.storage.day_file import DayFileName
from edge_agent.storage.day_files import DayFiles, utc_day
from edge_agent.storage.ledger import Ledger, ledger_from_json
from edge_agent.storage.lock import lock_buffer
from edge_agent.storage.opening import load_epoch, load_origins, make_folders
from edge_agent.storage.origins import origins_from_json
from edge_agent.storage.quarantine import Quarantine
from edge_agent.storage.records import Record, pack_record
from edge_agent.storage.retention import (
    EARLIEST_PLAUSIBLE_DAY,
    RetentionPolicy,
    StoredFile,
    choose_expired,
    choose_for_room,
)
from edge_agent.storage.state_file import load_state, save_state, set_aside
from fieldpost.errors import FieldpostError, TryAgainError
from fieldpost.names import check_name
from fieldpost.ranges import RangeSet
from fieldpost.v1 import observation_pb2 as pb

T = TypeVar("T")

DAY_FILE_MAX_BYTES = 256 << 20
WAITING_MAX = 20_000
"""So many observations are looked at for one that waits for the time: a station without a time server starts, too."""
RUN_MORE_BYTES = 64 << 10  # for headers, and for the space between records


@dataclass(frozen=True, slots=True)
class ReadResult:
    """What a read found.

    Attributes:
        observations: Ascending in sequence.
        missing: Ranges before the end of the read that have no undamaged record.
    """

    observations: list[pb.Observation]
    missing: list[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class FoundRecords:
    """As ReadResult, with records as they are stored."""

    records: list[Record]
    missing: list[tuple[int, int]]


class Buffer:
    """A station's buffer. Opening mends what a power cut or a dying card left behind.

    Args:
        folder: The buffer's folder; made where absent.
        station: Name of the station that writes here.
        day_file_max_bytes: A day file that would grow beyond this is followed by another one.

    Raises:
        TryAgainError: Another process holds this buffer, or the disk is full.
        InvalidRequestError: The buffer belongs to another station.
        BrokenStateError: The disk refuses.
    """

    def __init__(self, folder: Path, station: str, *, day_file_max_bytes: int = DAY_FILE_MAX_BYTES) -> None:
        self.folder = folder
        self.station = check_name("station", station)
        self._set_aside_folder = folder / "set-aside"
        make_folders(folder, folder / "days", self._set_aside_folder)
        self._lock: int | None = lock_buffer(folder)
        try:
            self.quarantine = Quarantine(folder / "quarantine")
            set_aside_here = functools.partial(set_aside, self._set_aside_folder)
            self._files = DayFiles(folder / "days", day_file_max_bytes, set_aside_here, self._set_aside_folder)
            self.epoch = load_epoch(folder, self.station, self._files)
            saved_ledger = self.load_state("delivered.json", lambda content: ledger_from_json(content, self.epoch))
            self.ledger = saved_ledger or Ledger(self.epoch)
            self._is_ledger_saved = True
            self.last_sequence = self._files.last_sequence
            self.skip_to(max(self.ledger.highest(), self._files.lost_through))
            self._origins = load_origins(self.load_state("origins.json", origins_from_json), self._files)
            self.clock_marks = self.load_state("clock.json", clock_marks_from_json) or ClockMarks()
            """When the clock was right; written to disk by save_clock_marks."""
            self.unreadable = RangeSet()
            """Sequences whose records turned out to be damaged or gone since the opening."""
        except BaseException:
            self._unlock()
            raise

    # --- writing ---

    def append(self, observations: list[pb.Observation], now_unix_s: float) -> range:
        """Gives the observations the next sequences and returns once the disk has all of them.

        Sets station, epoch and sequence in the headers.

        Raises:
            TryAgainError: The disk is full; nothing was appended.
            BrokenStateError: The disk refuses for another reason; nothing was appended.
        """
        first = self.last_sequence + 1
        records = []
        for sequence, observation in enumerate(observations, start=first):
            header = observation.header
            header.station, header.epoch, header.sequence = self.station, self.epoch, sequence
            records.append(pack_record(header.SerializeToString(), observation.payload))
        if records:
            self._files.append(first, records, utc_day(now_unix_s), self._save_origins)
            self.last_sequence = first + len(records) - 1
        for observation in observations:
            self._origins.add(observation.header.origin, observation.header.sequence)
        return range(first, first + len(records))

    def append_again(self, sequence: int, now_unix_s: float) -> list[pb.Observation]:
        """Appends the bytes of an earlier observation under a new sequence.

        Returns:
            The observation with its new sequence; nothing where the earlier record cannot be read.
        """
        found = self.read(sequence, sequence, max_bytes=0).observations
        self.append(found, now_unix_s)
        return found

    def deliver(self, ranges: list[tuple[int, int]]) -> None:
        """Marks ranges as held by the server. Written to disk by save."""
        for first, last in ranges:
            self.ledger.deliver(first, last)
        self._is_ledger_saved = False

    def refuse(self, sequence: int, reason: str, detail: str) -> None:
        """Marks one sequence as refused by the server. Written to disk by save."""
        self.ledger.refuse(sequence, reason, detail)
        self._is_ledger_saved = False

    def reopen(self, ranges: list[tuple[int, int]]) -> None:
        """Marks ranges as not delivered, so that they are sent again. Written to disk by save."""
        for first, last in ranges:
            self.ledger.reopen(first, last)
        self._is_ledger_saved = False

    def skip_to(self, sequence: int) -> None:
        """Makes sure that no sequence up to this one is ever given to an observation. Written to disk by save."""
        if sequence > self.last_sequence:
            self.ledger.skipped.add(self.last_sequence + 1, sequence)
            self.last_sequence = sequence
            self._is_ledger_saved = False

    def save(self) -> None:
        """Writes the ledger where it changed since the last save.

        Raises:
            TryAgainError: The disk is full.
            BrokenStateError: The disk refuses for another reason.
        """
        if not self._is_ledger_saved:
            save_state(self.folder / "delivered.json", self.ledger.to_json())
            self._is_ledger_saved = True

    def save_clock_marks(self) -> None:
        """Writes down when the clock was right, where that changed.

        Raises:
            TryAgainError: The disk is full.
            BrokenStateError: The disk refuses for another reason.
        """
        if not self.clock_marks.is_saved:
            save_state(self.folder / "clock.json", self.clock_marks.to_json())
            self.clock_marks.is_saved = True

    def delete_expired(
        self, now_unix_s: float, policy: RetentionPolicy, *, is_clock_trusted: bool = True
    ) -> list[StoredFile]:
        """Deletes the delivered day files that are past their retention; none where the clock may not be believed."""
        expired = choose_expired(self.files(), now_unix_s, policy, is_clock_trusted=is_clock_trusted)
        self._delete(expired)
        return expired

    def make_room(self, wanted_bytes: int, *, may_drop: bool) -> list[StoredFile]:
        """Deletes day files before their time, so that so many bytes come free or as many as there are.

        Where only the newest file is left, the next append begins another one, so that it can go the next time.

        Args:
            wanted_bytes: How much is to come free.
            may_drop: Whether undelivered files may go, once all delivered ones are gone.
        """
        chosen = choose_for_room(self.files(), wanted_bytes, may_drop=may_drop)
        if sum(file.size_bytes for file in chosen) < wanted_bytes:
            self._files.leave_newest()
        self._delete(chosen)
        return chosen

    def leave_newest_file(self) -> None:
        """Lets the next append begin a new file: the disk would not write to the newest one."""
        self._files.leave_newest()

    def close(self) -> None:
        """Saves and closes everything; another process may then open the buffer."""
        try:
            self.save()
            self._save_origins()
            self.save_clock_marks()
        finally:
            self._files.close()
            self._unlock()

    # --- reading ---

    def read(self, first: int, last: int, max_bytes: int, first_max_bytes: int | None = None) -> ReadResult:
        """Reads observations from first on, their checksums held, up to last or until max_bytes is reached.

        Args:
            first: The first sequence wanted.
            last: The last sequence wanted.
            max_bytes: Bound of the sum of payload lengths; the first observation may be larger than that.
            first_max_bytes: Bound of the first observation; None for any size.
        """
        found = self.read_records(first, last, max_bytes, first_max_bytes)
        observations = [pb.Observation(header=record.header, payload=record.payload) for record in found.records]
        return ReadResult(observations, found.missing)

    def read_records(self, first: int, last: int, max_bytes: int, first_max_bytes: int | None = None) -> FoundRecords:
        """As read, but the records as they are stored."""
        records: list[Record] = []
        missing: list[tuple[int, int]] = []
        total_bytes = 0
        sequence = first
        run: list[Record] = []
        while sequence <= last:
            if not run:
                run = self._files.read_run(sequence, last, max_bytes + RUN_MORE_BYTES)[::-1]
            record = run.pop() if run else self._files.read(sequence)
            if record is None:
                missing.append((sequence, min(last, self._files.gap_end(sequence))))
                self._note_unreadable(*missing[-1])
                sequence = missing[-1][1] + 1
                continue
            total_bytes += len(record.payload)
            bound = max_bytes if records else first_max_bytes
            if bound is not None and total_bytes > bound:
                break
            records.append(record)
            sequence += 1
        return FoundRecords(records, missing)

    def held(self) -> RangeSet:
        """The sequences that have an observation here."""
        held = RangeSet((name.first_sequence, last) for name, last in self._files.ranges())
        for first, last in self.ledger.skipped:
            held.discard(first, last)
        return held

    def sequences_between(self, start_unix_s: float, end_unix_s: float) -> RangeSet:
        """The observations captured from a time on, up to and without another, by the clock as far as it is corrected.

        Only headers are read, and only of files that may hold such times: where the clock jumped, any may.
        """
        first, end = round(start_unix_s * 1e9), round(end_unix_s * 1e9)
        days = utc_day(start_unix_s) - timedelta(days=1), utc_day(end_unix_s) + timedelta(days=1)
        found = RangeSet()
        names = [name for name, _ in self._files.ranges()]
        for index, name in enumerate(names):
            # A file before one of an earlier day was begun by a clock that was ahead.
            is_plausible = EARLIEST_PLAUSIBLE_DAY <= name.day <= min(later.day for later in names[index : index + 2])
            if is_plausible and not days[0] <= name.day <= days[1]:
                continue
            for header in self._files.read_headers(name):
                if first <= self.clock_marks.captured_unix_nanos(header) < end:
                    found.add(header.sequence)
        return found

    def first_waiting_for_time(self) -> int | None:
        """The first of the newest observations whose times can be corrected once the clock of this boot is right."""
        found = None
        for sequence in range(self.last_sequence, max(0, self.last_sequence - WAITING_MAX), -1):
            record = self._files.read(sequence)
            if record is None or not needs_time(record.header) or record.header.capture_clock.boot_id != boot_id():
                break
            found = sequence
        return found

    def settled(self) -> RangeSet:
        """The sequences that need not be sent: what the ledger says, and what is not in the buffer any more."""
        settled = self.ledger.settled()
        for first, last in self.held().gaps(1, self.last_sequence):
            settled.add(first, last)
        return settled

    def files(self) -> list[StoredFile]:
        """The day files, ascending."""
        return [
            StoredFile(
                first_sequence=name.first_sequence,
                last_sequence=last,
                day=name.day,
                size_bytes=self._files.size_of(name),
                is_delivered=self.ledger.is_done(name.first_sequence, last),
            )
            for name, last in self._files.ranges()
        ]

    def origins(self) -> dict[str, int]:
        """How far each source has come: the highest index by origin name."""
        return self._origins.highest()

    def size_bytes(self) -> int:
        """Bytes of all day files."""
        return self._files.size_bytes()

    # --- helpers ---

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _note_unreadable(self, first: int, last: int) -> None:
        for gap_first, gap_last in list(self.ledger.skipped.gaps(first, last)):
            self.unreadable.add(gap_first, gap_last)

    def _save_origins(self) -> None:
        save_state(self.folder / "origins.json", self._origins.to_json())

    def load_state(self, name: str, parse: Callable[[bytes], T]) -> T | None:
        """What a small file in the buffer's folder says; None where there is none, or none that makes sense."""
        return load_state(self.folder / name, parse, self._set_aside_folder)

    def _delete(self, files: list[StoredFile]) -> None:
        skipped, dropped = RangeSet(self.ledger.skipped), RangeSet(self.ledger.dropped)
        for file in files:
            self.ledger.delete(file.first_sequence, file.last_sequence)
            self._is_ledger_saved = False
        deleted_count = 0
        try:
            # On a full disk the ledger can only be written after the files are gone. A crash in between costs nothing:
            # what is not in the buffer is not sent.
            with contextlib.suppress(TryAgainError):
                self.save()
            for file in files:
                self._files.delete(DayFileName(file.first_sequence, file.day))
                deleted_count += 1
        except FieldpostError:
            # What the disk does not let go is still here, and is still to be sent.
            self.ledger.skipped, self.ledger.dropped = skipped, dropped
            for file in files[:deleted_count]:
                self.ledger.delete(file.first_sequence, file.last_sequence)
            self._is_ledger_saved = False
            raise
        self.save()
