"""Brings archived days back, bit for bit: each bag is read whole first, and what lacks is added.

All recorded versions of a day are taken, the newest first: together they are the day. Whatever ends a run, the next one
goes on; what is there already is compared and left alone. Ordinary functions; time is an argument; knows no Prefect.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import date
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

from sqlalchemy import Connection, make_url

from fieldpost.errors import BrokenStateError, FieldpostError, TryAgainError
from flows.bags.bag_format import PAYLOAD_FOLDER
from flows.bags.provenance import PROVENANCE_NAME
from flows.bags.reading import BagReader
from flows.restoring.batches import read_batches
from flows.restoring.folder import DayFolder, FolderStep, sweep
from flows.restoring.outcomes import DayPlan, RestoredDay
from flows.restoring.room import check_room, row_bytes
from flows.restoring.whole_bag import open_whole
from flows.site import Site
from server.archive.bags import BagRecord, InstrumentDay
from server.archive.bring_back import (
    ArchivedObservation,
    BroughtBack,
    bring_back,
    find_present,
    list_archived_days,
    list_bags,
)
from server.archive.disk import locked, make_folder
from server.archive.holds import write_hold
from server.archive.shelf import read_file

LOCK_NAME = ".lock"
LOCK_WAIT_S = 600.0
WRITE_WAIT_S = 120.0

T = TypeVar("T")


class RestoreStep(StrEnum):
    """What has just been done of a restore into the store; a run can end after any of them."""

    LOCKED = "locked"
    HELD = "held"
    CHECKED = "checked"
    WRITTEN = "written"
    COMMITTED = "committed"
    RESTORED = "restored"


OnStep = Callable[[RestoreStep | FolderStep], None]


def ignore_step(step: RestoreStep | FolderStep) -> None:
    """Does nothing."""


class Restorer:
    """Restores days of a site.

    Args:
        site: Where the days are missing, and the archive that has them.
        on_step: Told of each step.
        lock_wait_s: How long to wait for another run that works on the same instrument.
    """

    def __init__(self, site: Site, *, on_step: OnStep = ignore_step, lock_wait_s: float = LOCK_WAIT_S) -> None:
        self.site = site
        self._on_step = on_step
        self._lock_wait_s = lock_wait_s

    def find_days(
        self, first_day: date, last_day: date, *, station: str | None = None, instrument: str | None = None
    ) -> list[InstrumentDay]:
        """The days, both ends included, that have a bag; of all stations and instruments where none is named."""
        with self.site.store.read() as connection:
            return list_archived_days(
                connection, first_day, last_day, station=station or "", instrument=instrument or ""
            )

    def plan(self, days: Iterable[InstrumentDay]) -> list[DayPlan]:
        """What is to come back, and how many bytes, from the records alone; of bags before format 2, from the bags."""
        with self.site.store.read() as connection:
            recorded = [(day, list_bags(connection, day)) for day in days]
        return [DayPlan(day, tuple(map(self._with_bytes, bags))) for day, bags in recorded]

    def check_room(self, plans: Iterable[DayPlan], folder: Path | None) -> None:
        """Makes sure that the disks have room for all these days, in a folder or, where it is None, in the store.

        Raises:
            TryAgainError: They do not.
        """
        needed: Counter[Path] = Counter()
        settings, database = self.site.settings, make_url(self.site.settings.database)
        plans = list(plans)
        if isinstance(settings.archive, str):  # one bag at a time is brought here
            bags = (bag.bag_bytes or 0 for plan in plans for bag in plan.bags)
            needed[settings.archive_staging] += max(bags, default=0)
        for plan in plans:
            if folder is not None:
                needed[folder] += plan.payload_bytes + sum(bag.bag_bytes or 0 for bag in plan.bags)
                continue
            if isinstance(settings.segments, Path):
                needed[settings.segments] += plan.payload_bytes
            if database.get_backend_name() == "sqlite" and database.database:
                needed[Path(database.database).parent] += row_bytes(plan.bags)
        check_room(needed)

    def restore(self, day: InstrumentDay, *, keep_until_unix_nanos: int, with_predictions: bool = True) -> RestoredDay:
        """Brings back into the store what it lacks of a day.

        Args:
            day: Which.
            keep_until_unix_nanos: Until then it stays, however old it is.
            with_predictions: Whether predictions come back too. Where not, the models at work predict them anew.

        Raises:
            BrokenStateError: A bag is damaged and has no whole copy, or the store holds other bytes under an identity;
                what the other versions of the day hold is back.
            TryAgainError: A disk or the database refused, or another run is at it.
        """
        with self.site.shelf.lock(f"{day.station}/{day.instrument}", self._lock_wait_s):
            self._on_step(RestoreStep.LOCKED)
            # First of all: pruning, which looks once an hour, is not to take again what is coming back.
            held = (day.instrument_id, day.day, keep_until_unix_nanos)
            self._write(lambda connection: write_hold(connection, *held), day)
            self._on_step(RestoreStep.HELD)

            def take(reader: BagReader, restored: RestoredDay) -> None:
                self._take_into_store(reader, restored, with_predictions=with_predictions)

            restored = self._take_each(day, take)
        self._on_step(RestoreStep.RESTORED)
        return restored

    def restore_to_folder(self, day: InstrumentDay, folder: Path) -> RestoredDay:
        """Puts a day into a folder as plain files; see folder.py.

        Raises:
            BrokenStateError: A bag is damaged and has no whole copy, or what lies in the folder differs from it.
            TryAgainError: A disk refused, or another run is at it.
        """
        final = folder.absolute() / day.station / day.instrument / day.day.isoformat()
        with _folder_errors(final):
            make_folder(final.parent)
            with locked(final.parent / LOCK_NAME, self._lock_wait_s):
                sweep(final.parent)
                files = DayFolder(final, self._on_step)
                try:
                    restored = self._take_each(day, lambda reader, _: files.take(reader))
                    versions, checked_count = files.finish()
                finally:
                    files.abandon()
        restored.checked_count += checked_count
        observation_count = sum(each.observation_count for each in versions)
        if files.is_there:
            restored.present_count = observation_count
        else:
            restored.observation_count = observation_count
            restored.payload_bytes = sum(each.payload_bytes for each in versions)
        return restored

    def _take_each(self, day: InstrumentDay, take: Callable[[BagReader, RestoredDay], None]) -> RestoredDay:
        """Takes all whole versions of a day, and only then says which is damaged."""
        with self.site.store.read() as connection:
            recorded = list_bags(connection, day)
        restored = RestoredDay(day, tuple(bag.version for bag in recorded))
        broken: list[BrokenStateError] = []
        for bag in recorded:
            try:
                with open_whole(self.site.shelf, self.site.copy, bag) as whole:
                    self._on_step(RestoreStep.CHECKED)
                    restored.places.add(whole.place)
                    restored.checked_count += whole.file_count
                    take(whole.reader, restored)
            except BrokenStateError as error:
                broken.append(error)
        if broken:
            if len(recorded) == 1:
                raise broken[0]
            which = f"{len(broken)} of {len(recorded)} versions of {day} could not be taken: {broken[0]}"
            raise BrokenStateError(which, hint=broken[0].hint) from broken[0]
        return restored

    def _take_into_store(self, reader: BagReader, restored: RestoredDay, *, with_predictions: bool) -> None:
        day, store = restored.day, self.site.store

        def find(identities: Iterable[tuple[str, int]]) -> set[tuple[str, int]]:
            with store.read() as connection:
                return find_present(connection, day, identities)

        begin_s = time.monotonic()
        for batch in read_batches(reader, find, with_predictions=with_predictions):
            ready_s = time.monotonic()
            brought = self._write(self._bringing_back(day, batch), day)
            self._on_step(RestoreStep.COMMITTED)
            restored.checked_count += len(batch)
            restored.observation_count += brought.observation_count
            restored.present_count += brought.present_count
            restored.prediction_count += brought.prediction_count
            restored.payload_bytes += brought.payload_bytes
            restored.unknown.update(brought.unknown)
            # At least half of the writer's time is for what stations send.
            time.sleep(max(0.0, (time.monotonic() - ready_s) - (ready_s - begin_s)))
            begin_s = time.monotonic()

    def _bringing_back(
        self, day: InstrumentDay, batch: list[ArchivedObservation]
    ) -> Callable[[Connection], BroughtBack]:
        def operation(connection: Connection) -> BroughtBack:
            brought = bring_back(connection, self.site.store.segments, day, batch)
            self._on_step(RestoreStep.WRITTEN)
            return brought

        return operation

    def _with_bytes(self, bag: BagRecord) -> BagRecord:
        if bag.payload_bytes is not None:
            return bag
        try:
            facts = json.loads(read_file(self.site.shelf, bag.path, f"{PAYLOAD_FOLDER}/{PROVENANCE_NAME}"))
            return replace(bag, payload_bytes=int(facts["observations"]["payload_bytes"]))
        except (FieldpostError, ValueError, KeyError):
            return bag  # it is named when it is its turn

    def _write(self, operation: Callable[[Connection], T], day: InstrumentDay) -> T:
        written = self.site.store.write(operation)
        try:
            return written.result(WRITE_WAIT_S)
        except TimeoutError as error:
            raise TryAgainError(
                f"the database did not take {day} within {WRITE_WAIT_S:g} s", hint="run again: what is back stays"
            ) from error


@contextmanager
def _folder_errors(final: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise TryAgainError(
            f"the folder {final} could not be written or read: {error}",
            hint="check that its disk is mounted, writable and has free space; then run again",
        ) from error
