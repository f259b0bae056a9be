"""Sees to it that the newest bag of a day holds the day: skips, completes or makes it, and records what is verified.

A bag is never edited: what comes late makes the next version. Whatever ends a run, the next one finds what is left
to do. Ordinary functions; time is an argument; knows no Prefect.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Literal

from fieldpost.errors import BrokenStateError, FieldpostError, TryAgainError
from flows.bags.bag import (
    OnStep,
    Step,
    ignore_step,
    read_contents_sha256,
    read_manifest_sha256,
    relative_path,
    verify,
    write_part,
)
from flows.bags.bag_format import PAYLOAD_FOLDER
from flows.bags.day import Contents, DayReader
from flows.bags.provenance import PROVENANCE_NAME
from flows.site import Site
from server.archive.bags import BagRecord, InstrumentDay, list_instrument_days, newest_bag, write_bag
from server.archive.shelf import read_file

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
        verified_count: SHA-256 of observations that were computed from the bag and found equal; 0 where present.
    """

    day: InstrumentDay
    status: Literal["archived", "present", "recorded"]
    record: BagRecord
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
    """Makes bags of the days of a site.

    Args:
        site: Where the days are, where bags lie, and where they are recorded.
        on_step: Told of each step.
        lock_wait_s: How long to wait for another run that works on the same instrument.
    """

    def __init__(self, site: Site, *, on_step: OnStep = ignore_step, lock_wait_s: float = LOCK_WAIT_S) -> None:
        self.site = site
        self._store, self._shelf = site.store, site.shelf
        self._on_step = on_step
        self._lock_wait_s = lock_wait_s

    def find_days(
        self, first_day: date, last_day: date, *, station: str | None = None, instrument: str | None = None
    ) -> list[InstrumentDay]:
        """The days, both ends included, that have observations; of all stations and instruments where none is named."""
        with self._store.read() as connection:
            return list_instrument_days(
                connection, first_day, last_day, station=station or "", instrument=instrument or ""
            )

    def find_present(self, day: InstrumentDay) -> ArchivedDay | None:
        """What is recorded of the day where its newest bag holds exactly what the store holds; else None.

        Raises:
            TryAgainError: The disk refused.
            BrokenStateError: What the store holds of the day cannot be read.
        """
        with self._store.read() as connection:
            newest = newest_bag(connection, day)
        reader = DayReader(self._store, day)
        if newest is None or not self._holds(newest, reader, reader.look()):
            return None
        return ArchivedDay(day, "present", newest, 0)

    def archive(self, day: InstrumentDay, now_unix_nanos: int) -> ArchivedDay:
        """Sees to it that the newest bag of the day holds exactly what the store holds of it.

        Raises:
            TryAgainError: The disk or the database refused, or another run is at it; nothing is left behind.
            BrokenStateError: What was read, from the store or back from the bag, is not what was written; or the
                archive is empty although bags are recorded.
        """
        self.site.check_shelf()  # before each day: the array may have gone since the last one
        home = f"{day.station}/{day.instrument}"
        with self._shelf.lock(home, self._lock_wait_s):
            self._on_step(Step.LOCKED, Path(home))
            self._shelf.sweep(home)
            self._on_step(Step.SWEPT, Path(home))
            return self._archive_locked(day, now_unix_nanos)

    def _archive_locked(self, day: InstrumentDay, now_unix_nanos: int) -> ArchivedDay:
        reader = DayReader(self._store, day)
        contents = reader.look()
        with self._store.read() as connection:
            newest = newest_bag(connection, day)
        self._on_step(Step.LOOKED, Path(str(day.day)))
        if newest is not None and self._holds(newest, reader, contents):
            return ArchivedDay(day, "present", newest, 0)
        version = 1 if newest is None else newest.version + 1
        while self._shelf.has(path := relative_path(day, version)):
            if read_contents_sha256(self._shelf, path) == contents.sha256:
                return self._record_found(reader, contents, version, path, now_unix_nanos)
            version += 1  # it holds something else: never recorded, never edited, never in our way
        return self._make(reader, contents, version, path, now_unix_nanos)

    def _make(self, reader: DayReader, contents: Contents, version: int, path: str, now_unix_nanos: int) -> ArchivedDay:
        with self._shelf.stage(path) as part:
            manifest_sha256, verified_count = self._write(part, reader, contents, version, now_unix_nanos)
            self._on_step(Step.VERIFIED, part)
            bag_bytes = sum(each.stat().st_size for each in part.rglob("*") if each.is_file())
            record = _to_record(contents, version, path, manifest_sha256, bag_bytes, now_unix_nanos, now_unix_nanos)
            self._shelf.publish(part, path)
        self._on_step(Step.PUBLISHED, Path(path))
        self._record(reader.day, record)
        return ArchivedDay(reader.day, "archived", record, verified_count)

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

    def _record_found(
        self, reader: DayReader, contents: Contents, version: int, path: str, now_unix_nanos: int
    ) -> ArchivedDay:
        """Records a bag that an earlier run published, once it has been read back again."""
        with self._shelf.open(path) as folder:
            verified_count = verify(folder, reader, contents)
        archived = json.loads(read_file(self._shelf, path, f"{PAYLOAD_FOLDER}/{PROVENANCE_NAME}"))["archive_unix_nanos"]
        manifest_sha256 = read_manifest_sha256(self._shelf, path)
        bag_bytes = sum(byte_count for _, byte_count in self._shelf.list_files(path))
        record = _to_record(contents, version, path, manifest_sha256, bag_bytes, archived, now_unix_nanos)
        self._record(reader.day, record)
        return ArchivedDay(reader.day, "recorded", record, verified_count)

    def _holds(self, record: BagRecord, reader: DayReader, contents: Contents) -> bool:
        """Whether the recorded bag is in its place and holds exactly this; one that was found damaged is read whole."""
        is_as_recorded = read_manifest_sha256(self._shelf, record.path) == record.manifest_sha256
        says_so = is_as_recorded and read_contents_sha256(self._shelf, record.path) == contents.sha256
        return says_so and (not record.damage or self._is_whole(record, reader, contents))

    def _is_whole(self, record: BagRecord, reader: DayReader, contents: Contents) -> bool:
        try:
            with self._shelf.open(record.path) as folder:
                verify(folder, reader, contents)
        except BrokenStateError:
            return False
        return True

    def _record(self, day: InstrumentDay, record: BagRecord) -> None:
        written = self._store.write(lambda connection: write_bag(connection, day, record))
        try:
            written.result(RECORD_WAIT_S)
        except TimeoutError as error:
            raise TryAgainError(
                f"the database did not record {record.path} within {RECORD_WAIT_S:g} s",
                hint="the bag is complete; the next run records it",
            ) from error
        self._on_step(Step.RECORDED, Path(record.path))


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
    contents: Contents,
    version: int,
    path: str,
    manifest_sha256: str,
    bag_bytes: int,
    archive_unix_nanos: int,
    check_unix_nanos: int,
) -> BagRecord:
    return BagRecord(
        version,
        path,
        manifest_sha256,
        contents.observation_count,
        contents.prediction_count,
        archive_unix_nanos,
        payload_bytes=contents.payload_bytes,
        bag_bytes=bag_bytes,
        check_unix_nanos=check_unix_nanos,
    )
