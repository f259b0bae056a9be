"""The station's memory: numbered observations on the disk, what became of each, and nothing lost at any power cut.

    <buffer>/lock              held by the one process that writes here
    <buffer>/epoch             32 hexadecimal digits, made once
    <buffer>/days/*.obs, *.idx day files and their indexes
    <buffer>/delivered.json    the ledger of receipts, written lazily
    <buffer>/origins.json      how far each source has come, written when a day file begins and at close
    <buffer>/quarantine/       inputs that could not be framed
    <buffer>/set-aside/        damaged parts of this buffer itself

An observation is on the disk when append returns. A receipt only marks; retention alone deletes. Damage is set aside
and the rest goes on. Knows no network and no source; used by one thread.
"""

from __future__ import annotations

import logging
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from edge_agent.storage.day_file import DayFileName
from edge_agent.storage.day_files import DayFiles, utc_day
from edge_agent.storage.durable import disk_error, replace_file, sync_folder
from edge_agent.storage.ledger import Ledger, ledger_from_json
from edge_agent.storage.lock import lock_buffer
from edge_agent.storage.origins import Origins, origins_from_json
from edge_agent.storage.quarantine import Quarantine
from edge_agent.storage.records import pack_record
from edge_agent.storage.retention import RetentionPolicy, StoredFile, choose_expired
from fieldpost.errors import BrokenStateError, InvalidRequestError
from fieldpost.names import EPOCH_PATTERN, check_name
from fieldpost.ranges import RangeSet
from fieldpost.v1 import observation_pb2 as pb

logger = logging.getLogger(__name__)

DAY_FILE_MAX_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class ReadResult:
    """What a read found.

    Attributes:
        observations: Ascending in sequence.
        missing: Ranges before the end of the read that have no undamaged record.
    """

    observations: list[pb.Observation]
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
        _make_folders(folder, folder / "days", self._set_aside_folder)
        self._lock: int | None = lock_buffer(folder)
        try:
            self.quarantine = Quarantine(folder / "quarantine")
            self._files = DayFiles(folder / "days", day_file_max_bytes, self._set_aside, self._set_aside_folder)
            self.epoch = self._load_epoch()
            self.ledger = self._load_ledger()
            self._is_ledger_saved = True
            self.last_sequence = self._files.last_sequence
            self.skip_to(self.ledger.highest())
            self._origins = self._load_origins()
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

    def append_again(self, sequence: int, now_unix_s: float) -> int | None:
        """Appends the bytes of an earlier observation under a new sequence.

        Returns:
            The new sequence; None where the earlier record cannot be read.
        """
        found = self.read(sequence, sequence, max_bytes=0).observations
        return self.append(found, now_unix_s)[0] if found else None

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
            replace_file(self.folder / "delivered.json", self.ledger.to_json())
            self._is_ledger_saved = True

    def delete_expired(self, now_unix_s: float, policy: RetentionPolicy) -> list[StoredFile]:
        """Deletes the delivered day files that are past their retention."""
        expired = choose_expired(self.files(), now_unix_s, policy)
        for file in expired:
            self.ledger.skipped.add(file.first_sequence, file.last_sequence)
            self._is_ledger_saved = False
        self.save()
        for file in expired:
            self._files.delete(DayFileName(file.first_sequence, file.day))
        return expired

    def close(self) -> None:
        """Saves and closes everything; another process may then open the buffer."""
        try:
            self.save()
            self._save_origins()
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
        observations: list[pb.Observation] = []
        missing: list[tuple[int, int]] = []
        total_bytes = 0
        sequence = first
        while sequence <= last:
            record = self._files.read(sequence)
            if record is None:
                missing.append((sequence, min(last, self._files.gap_end(sequence))))
                self._note_unreadable(*missing[-1])
                sequence = missing[-1][1] + 1
                continue
            total_bytes += len(record.payload)
            bound = max_bytes if observations else first_max_bytes
            if bound is not None and total_bytes > bound:
                break
            observations.append(pb.Observation(header=record.header, payload=record.payload))
            sequence += 1
        return ReadResult(observations, missing)

    def held(self) -> RangeSet:
        """The sequences that have an observation here."""
        held = RangeSet((name.first_sequence, last) for name, last in self._files.ranges())
        for first, last in self.ledger.skipped:
            held.discard(first, last)
        return held

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

    # --- opening ---

    def _load_epoch(self) -> str:
        """The epoch; told by the records where its own file is lost, and made anew only where there are none."""
        path = self.folder / "epoch"
        written = path.read_text(errors="replace").strip() if path.exists() else ""
        newest = self._files.newest_record()
        if newest is not None and newest.header.station != self.station:
            raise InvalidRequestError(
                f"expected a buffer of station {self.station}, but {self.folder} holds that of {newest.header.station}",
                hint="set another buffer_folder, or the station's old name",
            )
        epoch = newest.header.epoch if newest else written
        if not EPOCH_PATTERN.fullmatch(epoch):
            epoch = secrets.token_hex(16)
        if epoch != written:
            replace_file(path, epoch.encode() + b"\n")
        return epoch

    def _load_ledger(self) -> Ledger:
        path = self.folder / "delivered.json"
        if not path.exists():
            return Ledger(self.epoch)
        content = path.read_bytes()
        try:
            return ledger_from_json(content, self.epoch)
        except BrokenStateError as error:
            self._set_aside("delivered.json", content, str(error))
            return Ledger(self.epoch)

    def _load_origins(self) -> Origins:
        """What origins.json says, and the headers of the records behind it; without it, those of the last two files."""
        path = self.folder / "origins.json"
        origins = Origins(
            through_sequence=self._files.names[-2].first_sequence - 1 if len(self._files.names) > 1 else 0
        )
        if path.exists():
            content = path.read_bytes()
            try:
                origins = origins_from_json(content)
            except BrokenStateError as error:
                self._set_aside("origins.json", content, str(error))
        for record in self._files.read_from(origins.through_sequence + 1):
            # Behind a hole that a power cut tore into the last write, the sources begin again: twice is better than
            # never.
            if self._files.hole_in_tail is not None and record.header.sequence >= self._files.hole_in_tail:
                break
            origins.add(record.header.origin, record.header.sequence)
        return origins

    # --- helpers ---

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _note_unreadable(self, first: int, last: int) -> None:
        for gap_first, gap_last in list(self.ledger.skipped.gaps(first, last)):
            self.unreadable.add(gap_first, gap_last)

    def _save_origins(self) -> None:
        replace_file(self.folder / "origins.json", self._origins.to_json())

    def _set_aside(self, name: str, content: bytes, reason: str) -> None:
        """Keeps damaged bytes of our own for a person to look at."""
        path = self._set_aside_folder / f"{secrets.token_hex(4)}-{name}"
        replace_file(path, content)
        facts = {"file": path.name, "reason": reason, "content_bytes": len(content)}
        logger.warning("part of the buffer set aside", extra=facts)


def _make_folders(*folders: Path) -> None:
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            sync_folder(folder.parent)
        except OSError as error:
            raise disk_error(error, folder) from error
