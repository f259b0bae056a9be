"""Lets go of what is old here and surely in the archive: rows first, then the segments that no row needs any more.

An observation goes when its day is over hot_days ago, nothing at work still waits to predict it, and the newest bag of
its day, read from its first to its last byte just before, has it and each of its predictions. Its sequence stays
promised (epoch.pruned_ranges). A day that somebody brought back stays as long as its hold lasts. Whatever ends a run,
the next one goes on; knows nothing of how a bag is made, nor where it lies.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from functools import partial
from itertools import islice
from typing import TypeVar

from sqlalchemy import Connection

from fieldpost.errors import BrokenStateError, FieldpostError, TryAgainError
from fieldpost.words import count, size
from server.archive.bag_contents import BagContents, read_contents
from server.archive.bags import (
    DayObservation,
    Extent,
    InstrumentDay,
    Position,
    list_day_observations,
    list_instrument_days,
    newest_bag,
    read_extent,
)
from server.archive.holds import is_held
from server.archive.hot_rows import (
    HotPrediction,
    find_segments,
    forget_segments,
    let_go,
    list_empty_segments,
    list_made,
    read_settled_id,
)
from server.archive.orphans import holds_unknown
from server.archive.shelf import Shelf
from server.storage.store import Store

logger = logging.getLogger(__name__)

PAGE_ROWS = 500
"""Rows of one transaction: some tens of milliseconds, in which those who send wait."""
SWEPT_ROWS = 5000
INTERVAL_S = 3600.0
ORPHAN_AGE_S = 86_400
WRITE_TIMEOUT_S = 600.0
FIRST_DAY = date(1678, 1, 1)
"""The first whole day that an instant in 64 bits can be of."""

T = TypeVar("T")


@dataclass(slots=True)
class PruneReport:
    """What was let go, and why the rest of what is old was not; of a dry run, what would be.

    Attributes:
        observation_count: Observations let go.
        prediction_count: Predictions let go with them.
        stored_bytes: What those observations take in their segments.
        segment_count: Segments removed.
        orphan_count: Segments removed that no row named, left by a crash.
        unknown_count: Segments that no row names, with observations that the database does not know.
        unarchived_days: Old days without a bag.
        not_in_bag_count: Old observations that came after the newest bag of their day, or have a prediction that did.
        waiting_count: Old observations that a model at work has still to predict.
        held_days: Old days that stay for a while, since somebody brought them back.
        errors: What went wrong, a line for each day.
    """

    observation_count: int = 0
    prediction_count: int = 0
    stored_bytes: int = 0
    segment_count: int = 0
    orphan_count: int = 0
    unknown_count: int = 0
    unarchived_days: int = 0
    not_in_bag_count: int = 0
    waiting_count: int = 0
    held_days: int = 0
    errors: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """For people."""
        went = f"{count(self.observation_count, 'observation')}, {count(self.prediction_count, 'prediction')}"
        lines = [f"{went}, {size(self.stored_bytes)}; {count(self.segment_count + self.orphan_count, 'segment')}"]
        kept = {
            f"{count(self.unknown_count, 'segment')} with observations that this database does not know (is it "
            "restored from a backup, or another one's folder?)": self.unknown_count,
            f"{count(self.unarchived_days, 'old day')} without a bag": self.unarchived_days,
            f"{count(self.not_in_bag_count, 'old observation')} not in the newest bag": self.not_in_bag_count,
            f"{count(self.waiting_count, 'old observation')} that a model has still to predict": self.waiting_count,
            f"{count(self.held_days, 'old day')} that somebody brought back for a while": self.held_days,
        }
        lines += [f"kept: {what}" for what, number in kept.items() if number]
        return lines + [f"wrong: {error}" for error in self.errors]


@dataclass(frozen=True, slots=True)
class Choice:
    """What is to become of one page of a day."""

    gone: list[DayObservation]
    not_in_bag_count: int
    waiting_count: int


@dataclass(frozen=True, slots=True)
class _Page:
    """Some rows of a day, what became of them, and how many predictions went too."""

    rows: list[DayObservation]
    chosen: Choice
    prediction_count: int


def choose(
    rows: Sequence[DayObservation],
    made: Iterable[HotPrediction],
    contents: BagContents,
    first_unix_nanos: int,
    settled_id: int | None,
) -> Choice:
    """Decides which observations of a day may go. Pure.

    Args:
        rows: Some of the day's observations.
        made: Every prediction on them that the store holds.
        contents: What the newest bag of the day holds.
        first_unix_nanos: The day's first instant.
        settled_id: Nothing up to this observation waits for a prediction; None where nothing ever does.
    """
    identities = {row.observation_id: (row.epoch, row.sequence) for row in rows}
    only_here = set()
    for each in made:
        seconds = (each.predict_unix_nanos - first_unix_nanos) / 1e9  # as the bag has it
        if not contents.has_prediction(each.analysis, each.version, *identities[each.observation_id], seconds):
            only_here.add(each.observation_id)
    gone, not_in_bag, waiting = [], 0, 0
    for row in rows:
        if settled_id is not None and row.observation_id > settled_id:
            waiting += 1
        elif row.observation_id in only_here or not contents.has_observation(row.epoch, row.sequence, row.sha256):
            not_in_bag += 1
        else:
            gone.append(row)
    return Choice(gone, not_in_bag, waiting)


def last_old_day(now_unix_nanos: int, hot_days: int) -> date:
    """The last UTC day that was over at least so many days ago."""
    now = datetime.fromtimestamp(now_unix_nanos // 10**9, UTC).date()
    return now - timedelta(days=hot_days + 1)


def prune(
    store: Store,
    shelf: Shelf,
    *,
    hot_days: int,
    now_unix_nanos: int,
    is_dry_run: bool = False,
    is_sweeping: bool = True,
    stop: threading.Event | None = None,
    looked_at: dict[InstrumentDay, str] | None = None,
) -> PruneReport:
    """Lets go of what may go. Blocking, in a thread of its own; takes at most half of the writer's time.

    Args:
        store: What is pruned.
        shelf: Where the bags lie.
        hot_days: Days that observations stay after the end of theirs; at least 1.
        now_unix_nanos: The time.
        is_dry_run: Only reports.
        is_sweeping: Also removes segments that crashes left.
        stop: Ends the run early once it is set.
        looked_at: Kept from run to run, so that a bag that lacks something is not read again before there is a newer
            one: the manifest's SHA-256 by day.
    """
    looked_at = {} if looked_at is None else looked_at
    pruning = _Pruning(store, shelf, now_unix_nanos, is_dry_run, stop or threading.Event(), looked_at)
    return pruning.run(last_old_day(now_unix_nanos, hot_days), is_sweeping=is_sweeping)


class Retention:
    """Prunes once an hour, and sweeps once.

    Args:
        store: What is pruned.
        shelf: Where the bags lie.
        hot_days: See prune().
    """

    def __init__(self, store: Store, shelf: Shelf, *, hot_days: int) -> None:
        self._store = store
        self._shelf = shelf
        self._hot_days = hot_days
        self._looked_at: dict[InstrumentDay, str] = {}
        self._has_swept = False

    async def run(self) -> None:
        """Until it is cancelled."""
        stop = threading.Event()
        try:
            while True:
                await asyncio.shield(asyncio.to_thread(self._prune, stop))
                await asyncio.sleep(INTERVAL_S)
        finally:
            stop.set()

    def _prune(self, stop: threading.Event) -> None:
        try:
            report = prune(
                self._store,
                self._shelf,
                hot_days=self._hot_days,
                now_unix_nanos=time.time_ns(),
                is_sweeping=not self._has_swept,
                stop=stop,
                looked_at=self._looked_at,
            )
        except (FieldpostError, OSError) as error:  # the outermost loop: the next run goes on
            logger.error("pruning was ended", extra={"error": str(error)})
            return
        self._has_swept = True
        is_wrong = report.errors or report.waiting_count or report.unknown_count
        level = logging.WARNING if is_wrong else logging.INFO
        logger.log(level, "pruned", extra={name: getattr(report, name) for name in PruneReport.__slots__})


class _Pruning:
    """One run."""

    def __init__(
        self,
        store: Store,
        shelf: Shelf,
        now_unix_nanos: int,
        is_dry_run: bool,
        stop: threading.Event,
        looked_at: dict[InstrumentDay, str],
    ) -> None:
        self._store = store
        self._shelf = shelf
        self._now_unix_nanos = now_unix_nanos
        self._is_dry_run = is_dry_run
        self._stop = stop
        self._looked_at = looked_at
        self._report = PruneReport()

    def run(self, last_day: date, *, is_sweeping: bool) -> PruneReport:
        if is_sweeping:
            self._sweep(self._now_unix_nanos / 1e9 - ORPHAN_AGE_S)
        with self._store.read() as connection:
            days = list_instrument_days(connection, FIRST_DAY, last_day)
            extent = read_extent(connection)
        for day in days:
            if self._stop.is_set():
                break
            try:
                self._prune_day(day, extent)
            except BrokenStateError as error:
                self._report.errors.append(f"{day}: {error}")
            except TryAgainError as error:  # it passes, and the other days would only wait for the same
                self._report.errors.append(f"{day}: {error}")
                break
        return self._report

    def _prune_day(self, day: InstrumentDay, extent: Extent) -> None:
        with self._store.read() as connection:
            bag = newest_bag(connection, day)
            is_kept = self._is_kept(connection, day)
        if is_kept:
            self._report.held_days += 1
            return
        if bag is None:
            self._report.unarchived_days += 1
            return
        if self._looked_at.get(day) == bag.manifest_sha256:
            self._report.not_in_bag_count += 1  # at least; what else it lacks is known once there is a newer bag
            return
        with self._shelf.open(bag.path) as folder:
            contents = read_contents(folder, bag.manifest_sha256)
        not_in_bag, waiting = self._report.not_in_bag_count, self._report.waiting_count
        self._prune_pages(day, extent, contents)
        if self._report.not_in_bag_count > not_in_bag and self._report.waiting_count == waiting:
            self._looked_at[day] = bag.manifest_sha256
        else:
            self._looked_at.pop(day, None)

    def _prune_pages(self, day: InstrumentDay, extent: Extent, contents: BagContents) -> None:
        after: Position | None = None
        emptied: set[str] = set()
        while not self._stop.is_set():
            start_s = time.monotonic()
            page = self._transact(partial(self._prune_page, day, extent, after, contents))
            self._count(page)
            emptied.update(row.place.segment for row in page.chosen.gone)
            if len(page.rows) < PAGE_ROWS:
                break
            after = page.rows[-1].position
            if not self._is_dry_run:
                self._stop.wait(time.monotonic() - start_s)  # half of the writer's time is for those who send
        if not self._is_dry_run:
            self._report.segment_count += self._remove_segments(sorted(emptied))

    def _prune_page(
        self,
        day: InstrumentDay,
        extent: Extent,
        after: Position | None,
        contents: BagContents,
        connection: Connection,
    ) -> _Page:
        """Decides and deletes in one transaction, so that nothing can come in between; a hold neither."""
        if self._is_kept(connection, day):
            return _Page([], Choice([], 0, 0), 0)
        rows = list_day_observations(connection, day, extent, after, PAGE_ROWS)
        made = list_made(connection, [row.observation_id for row in rows])
        chosen = choose(rows, made, contents, day.first_unix_nanos, read_settled_id(connection))
        gone_ids = {row.observation_id for row in chosen.gone}
        if gone_ids and not self._is_dry_run:
            let_go(connection, day, chosen.gone)
        return _Page(rows, chosen, sum(each.observation_id in gone_ids for each in made))

    def _is_kept(self, connection: Connection, day: InstrumentDay) -> bool:
        return is_held(connection, day.instrument_id, day.day, self._now_unix_nanos)

    def _count(self, page: _Page) -> None:
        self._report.observation_count += len(page.chosen.gone)
        self._report.prediction_count += page.prediction_count
        self._report.stored_bytes += sum(row.place.length for row in page.chosen.gone)
        self._report.not_in_bag_count += page.chosen.not_in_bag_count
        self._report.waiting_count += page.chosen.waiting_count

    def _sweep(self, before_unix_s: float) -> None:
        """Removes what crashes left: old segments that no row names, and those that a row names but no observation."""
        reader = self._store.segment_reader
        old = reader.list_names(before_unix_s)
        while not self._stop.is_set() and (names := list(islice(old, PAGE_ROWS))):
            with self._store.read() as connection:
                known = find_segments(connection, names)
            for name in names:
                if name in known or reader.is_being_written(name):
                    continue
                if holds_unknown(self._store, name):
                    self._report.unknown_count += 1
                    continue
                self._report.orphan_count += 1
                if not self._is_dry_run:
                    reader.remove(name)
        after_id = -1
        while after_id and not self._stop.is_set():
            with self._store.read() as connection:
                names, after_id = list_empty_segments(connection, after_id, SWEPT_ROWS)
            self._report.segment_count += len(names) if self._is_dry_run else self._remove_segments(names)

    def _remove_segments(self, names: Sequence[str]) -> int:
        """Removes those that no row points to: their own rows first, so that a crash leaves only an orphan."""
        removed = 0
        for first in range(0, len(names), PAGE_ROWS):
            gone = self._transact(partial(self._forget, names[first : first + PAGE_ROWS]))
            for name in gone:
                self._store.segment_reader.remove(name)
            removed += len(gone)
        return removed

    def _forget(self, names: Sequence[str], connection: Connection) -> list[str]:
        return forget_segments(connection, names, self._store.segment_reader.is_being_written)

    def _transact(self, operation: Callable[[Connection], T]) -> T:
        if self._is_dry_run:
            with self._store.read() as connection:
                return operation(connection)
        return self._store.write(operation).result(WRITE_TIMEOUT_S)
