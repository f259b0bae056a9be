"""Sees to it that the newest bag of a day holds the day: skips, completes or makes it, and records what is verified.

A bag is never edited: what comes late makes the next version. Whatever ends a run, the next one finds what is left
to do. Ordinary functions; time is an argument; knows no Prefect.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Literal

from fieldpost.errors import BrokenStateError, FieldpostError, TryAgainError
from flows.bags.bag import (
    PART_PREFIX,
    OnStep,
    Step,
    ignore_step,
    publish,
    read_contents_sha256,
    relative_path,
    sweep,
    verify,
    write_part,
)
from flows.bags.bag_format import read_manifest_sha256, read_payload_file
from flows.bags.day import Contents, DayReader
from flows.bags.durable import locked, make_folder, remove_folder
from flows.bags.provenance import PROVENANCE_NAME
from server.archive.bags import BagRecord, InstrumentDay, list_instrument_days, newest_bag, write_bag
from server.storage.store import Store

LOCK_NAME = ".lock"
LOCK_WAIT_S = 600.0
RECORD_WAIT_S = 120.0


@dataclass(frozen=True, slots=True)
class ArchivedDay:
    """What became of a day.

    Attributes:
        day: Which.
        status: "archived": a new bag; "present": the newest bag holds exactly this day; "recorded": an earlier run
            had made the bag and was ended before it could record it.
        record: What the database says of the bag.
        payload_bytes: The instrument's bytes.
        bag_bytes: All files of the bag.
        verified_count: SHA-256 of observations that were computed from the bag and found equal; 0 where present.
    """

    day: InstrumentDay
    status: Literal["archived", "present", "recorded"]
    record: BagRecord
    payload_bytes: int
    bag_bytes: int
    verified_count: int


@dataclass(frozen=True, slots=True)
class FailedDay:
    """A day that could not be archived.

    Attributes:
        day: Which.
        error: Why not.
    """

    day: InstrumentDay
    error: BaseException


Outcome = ArchivedDay | FailedDay


class Archivist:
    """Makes bags of the days of a store.

    Args:
        store: Where the days are, and where bags are recorded.
        folder: The archive, an absolute path on the storage array.
        on_step: Told of each step.
        lock_wait_s: How long to wait for another run that works on the same instrument.
    """

    def __init__(
        self, store: Store, folder: Path, *, on_step: OnStep = ignore_step, lock_wait_s: float = LOCK_WAIT_S
    ) -> None:
        self.store = store
        self.folder = folder
        self._on_step = on_step
        self._lock_wait_s = lock_wait_s

    def find_days(
        self, first_day: date, last_day: date, *, station: str | None = None, instrument: str | None = None
    ) -> list[InstrumentDay]:
        """The days, both ends included, that have observations; of all stations and instruments where none is named."""
        with self.store.read() as connection:
            return list_instrument_days(
                connection, first_day, last_day, station=station or "", instrument=instrument or ""
            )

    def archive(self, day: InstrumentDay, now_unix_nanos: int) -> ArchivedDay:
        """Sees to it that the newest bag of the day holds exactly what the store holds of it.

        Raises:
            TryAgainError: The disk or the database refused, or another run is at it; nothing is left behind.
            BrokenStateError: What was read, from the store or back from the bag, is not what was written.
        """
        home = self.folder / day.station / day.instrument
        with _disk_errors(home):
            make_folder(home)
            with locked(home / LOCK_NAME, self._lock_wait_s):
                self._on_step(Step.LOCKED, home)
                sweep(home)
                self._on_step(Step.SWEPT, home)
                return self._archive_locked(day, now_unix_nanos)

    def _archive_locked(self, day: InstrumentDay, now_unix_nanos: int) -> ArchivedDay:
        reader = DayReader(self.store, day)
        contents = reader.look()
        with self.store.read() as connection:
            newest = newest_bag(connection, day)
        self._on_step(Step.LOOKED, self.folder)
        if newest is not None and self._holds(newest, contents):
            return self._report(day, "present", newest, contents, 0)
        version = 1 if newest is None else newest.version + 1
        while (final := self.folder / relative_path(day, version)).exists():
            if read_contents_sha256(final) == contents.sha256:
                return self._record_found(reader, contents, version, final)
            version += 1  # it holds something else: never recorded, never edited, never in our way
        return self._make(reader, contents, version, final, now_unix_nanos)

    def _make(
        self, reader: DayReader, contents: Contents, version: int, final: Path, now_unix_nanos: int
    ) -> ArchivedDay:
        make_folder(final.parent)
        part = final.with_name(f"{PART_PREFIX}{final.name}-{secrets.token_hex(4)}")
        try:
            manifest_sha256, verified_count = self._write(part, reader, contents, version, now_unix_nanos)
            self._on_step(Step.VERIFIED, part)
            publish(part, final)
        except BaseException:
            remove_folder(part)
            raise
        self._on_step(Step.PUBLISHED, final)
        record = _to_record(reader.day, contents, version, manifest_sha256, now_unix_nanos)
        self._record(reader.day, record)
        self._on_step(Step.RECORDED, final)
        return self._report(reader.day, "archived", record, contents, verified_count)

    def _write(
        self, part: Path, reader: DayReader, contents: Contents, version: int, now_unix_nanos: int
    ) -> tuple[str, int]:
        """Writes the bag and reads it back; returns the SHA-256 of its manifest, and how many others were compared."""
        try:
            manifest_sha256 = write_part(part, reader, contents, version, now_unix_nanos, self._on_step)
            return manifest_sha256, verify(part, reader, contents)
        except BrokenStateError as error:
            if reader.look().sha256 == contents.sha256:
                raise
            raise TryAgainError(
                f"{reader.day} changed while it was archived: predictions of it were made again",
                hint="run again; nothing is left behind",
            ) from error

    def _record_found(self, reader: DayReader, contents: Contents, version: int, final: Path) -> ArchivedDay:
        """Records a bag that an earlier run published, once it has been read back again."""
        verified_count = verify(final, reader, contents)
        archived = json.loads(read_payload_file(final, PROVENANCE_NAME))["archive_unix_nanos"]
        record = _to_record(reader.day, contents, version, read_manifest_sha256(final), archived)
        self._record(reader.day, record)
        self._on_step(Step.RECORDED, final)
        return self._report(reader.day, "recorded", record, contents, verified_count)

    def _holds(self, record: BagRecord, contents: Contents) -> bool:
        """Whether the recorded bag is in its place and holds exactly this."""
        folder = self.folder / record.path
        is_as_recorded = read_manifest_sha256(folder) == record.manifest_sha256
        return is_as_recorded and read_contents_sha256(folder) == contents.sha256

    def _record(self, day: InstrumentDay, record: BagRecord) -> None:
        written = self.store.write(lambda connection: write_bag(connection, day, record))
        try:
            written.result(RECORD_WAIT_S)
        except TimeoutError as error:
            raise TryAgainError(
                f"the database did not record {record.path} within {RECORD_WAIT_S:g} s",
                hint="the bag is complete; the next run records it",
            ) from error

    def _report(
        self,
        day: InstrumentDay,
        status: Literal["archived", "present", "recorded"],
        record: BagRecord,
        contents: Contents,
        verified_count: int,
    ) -> ArchivedDay:
        files = (path for path in (self.folder / record.path).rglob("*") if path.is_file())
        bag_bytes = sum(path.stat().st_size for path in files)
        return ArchivedDay(day, status, record, contents.payload_bytes, bag_bytes, verified_count)


def archive_days(archivist: Archivist, days: Iterable[InstrumentDay], clock: Callable[[], int]) -> list[Outcome]:
    """Archives the days one after the other; one that fails does not keep the others.

    Args:
        archivist: Who makes the bags.
        days: Which.
        clock: Nanoseconds since 1970-01-01T00:00Z.
    """
    outcomes: list[Outcome] = []
    for day in days:
        try:
            outcomes.append(archivist.archive(day, clock()))
        except FieldpostError as error:
            outcomes.append(FailedDay(day, error))
    return outcomes


def _to_record(
    day: InstrumentDay, contents: Contents, version: int, manifest_sha256: str, archive_unix_nanos: int
) -> BagRecord:
    return BagRecord(
        version,
        relative_path(day, version),
        manifest_sha256,
        contents.observation_count,
        contents.prediction_count,
        archive_unix_nanos,
    )


@contextmanager
def _disk_errors(home: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise TryAgainError(
            f"the archive {home} could not be written or read: {error}",
            hint="check that the storage is mounted, writable and has free space; then run again",
        ) from error
