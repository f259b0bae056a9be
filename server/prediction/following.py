"""Keeps a model version that remembers up to date: the Dispatcher's sibling, for observations that follow each other.

Two streams find what waits: *live*, what came fresh since the version was put to work, and *backlog*, everything else.
Each note goes to its course (server/prediction/course.py has the rules); each course is followed stretch by stretch,
one at a time of an instrument, and of many instruments at once.

Nothing here is remembered that matters: after a crash the same query finds the same work, and what is known of each
instrument is stored with the predictions that it comes after, or made again.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from dataclasses import dataclass, field

from fieldpost.errors import TryAgainError
from server.analyses import CourseStart
from server.batching.batcher import Batcher
from server.broadcast import Broadcast
from server.models.card import ModelCard
from server.prediction.course import CourseWork, choose_work, find_course
from server.prediction.pending import PendingObservation, Span, find_pending, last_observation_id
from server.prediction.settled import SettledMark
from server.prediction.streams import Stream, go_back, read_live_mark
from server.prediction.stretches import Stretches
from server.storage.store import Store
from server.telemetry.observer import Observer

logger = logging.getLogger(__name__)

LOOK_MAX = 1024
"""Observations noted in one look."""
COURSES_MAX = 1024
"""Courses with something to do that are in memory, before the backlog is looked at any further."""
RETRY_WAIT_S = 1.0
EXAMINE_EVERY_S = 10.0
"""How often to look whether what a course waits for has come, or is waited for no more."""


@dataclass(slots=True)
class _Instrument:
    """What is to be done for one instrument.

    Attributes:
        works: By the start of the course.
        turn: Held for a step: at most one stretch of an instrument is on its way.
        running: The tasks that take the steps, by whether they are for what is fresh.
    """

    works: dict[int, CourseWork] = field(default_factory=dict)
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    running: set[bool] = field(default_factory=set)

    def forget(self) -> None:
        """Forgets courses in which nothing is to be done; but of the newest, how far its gaps were looked at."""
        newest = max(self.works)
        for start in [start for start, work in self.works.items() if work.first_id is None and start != newest]:
            del self.works[start]


class Follower:
    """Keeps one model version up to date.

    Args:
        store: Where observations are and predictions go.
        batcher: Who predicts; the model version was added to it.
        card: The model version.
        course_start: How it cuts an instrument's time into courses.
        stored: Told when observations were stored.
        predicted: Told when predictions were stored.
        observer: Told of each prediction that is stored; None where nobody looks.
    """

    def __init__(
        self,
        store: Store,
        batcher: Batcher,
        card: ModelCard,
        course_start: CourseStart,
        *,
        stored: Broadcast,
        predicted: Broadcast,
        observer: Observer | None = None,
    ) -> None:
        self._store = store
        self._card = card
        self._course_start = course_start
        self._stored = stored
        self._predicted = predicted
        self._mark = SettledMark(store, card, with_provisional=True)
        self._stretches = Stretches(
            store, batcher, card, on_waiting=self._note_waiting, on_moved=self._note_moved, observer=observer
        )
        self._instruments: defaultdict[int, _Instrument] = defaultdict(_Instrument)
        self._has_room = asyncio.Event()

    async def run(self) -> None:
        """Runs until cancelled.

        Raises:
            ExceptionGroup: The model version was taken out of service.
        """
        settled_id = await asyncio.to_thread(self._mark.read)
        mark_id = await asyncio.to_thread(read_live_mark, self._store)
        self._live, self._backlog = Stream(True, mark_id, mark_id), Stream(False, mark_id, settled_id)
        async with asyncio.TaskGroup() as self._tasks:
            self._tasks.create_task(self._find(self._live), name="find-live")
            self._tasks.create_task(self._find(self._backlog), name="find-backlog")
            self._tasks.create_task(self._examine(), name="examine-courses")
            self._tasks.create_task(self._mark.keep(settled_id, self._find_done, self._look_again), name="settle")

    async def _find(self, stream: Stream) -> None:
        while True:
            told = self._stored.listen()  # before looking: what is stored while we look is told again
            span = stream.span()
            try:
                pending, until_id, is_all = await asyncio.to_thread(self._look, span)
            except TryAgainError as error:
                logger.warning("nothing to be found", extra={"model": str(self._card.key), "error": str(error)})
                await asyncio.sleep(RETRY_WAIT_S)
                continue
            for each in pending:
                self._note(each, each.measure_unix_nanos, is_live=stream.is_live)
            if stream.span() == span:  # otherwise it was set back meanwhile, and looks again from there
                stream.cursor = until_id
                if is_all:
                    await stream.wait(told)
            if not stream.is_live:
                await self._wait_for_room()

    def _look(self, span: Span) -> tuple[list[PendingObservation], int, bool]:
        with self._store.read() as connection:
            pending, until_id = find_pending(connection, self._card, span, LOOK_MAX, with_provisional=True)
            return pending, until_id, until_id >= last_observation_id(connection)

    async def _wait_for_room(self) -> None:
        while sum(each.has_backlog for each in self._all_works()) > COURSES_MAX:
            self._has_room.clear()
            await self._has_room.wait()

    def _note(self, pending: PendingObservation, measure_unix_nanos: int, *, is_live: bool) -> None:
        """An observation waits, which belongs to the course of this measure time."""
        instrument = self._instruments[pending.instrument_id]
        works = instrument.works.values()
        work = next((each for each in works if each.course.holds(measure_unix_nanos)), None)
        if work is None:
            version, longitude_deg = self._card.key.version, pending.longitude_deg
            course = find_course(lambda at: self._course_start(version, at, longitude_deg), measure_unix_nanos)
            work = CourseWork(pending.instrument_id, course)
            instrument.works[course.start_unix_nanos] = work
        work.note(pending.observation_id, measure_unix_nanos, is_live=is_live)
        self._take_up(instrument)

    def _take_up(self, instrument: _Instrument) -> None:
        """Sees to it that somebody is at work for an instrument."""
        for is_live in (True, False):
            if is_live not in instrument.running and choose_work([*instrument.works.values()], is_live=is_live):
                instrument.running.add(is_live)
                self._tasks.create_task(self._keep_up(instrument, is_live), name="follow")

    async def _keep_up(self, instrument: _Instrument, is_live: bool) -> None:
        """Takes one step after the other until nothing is left to do."""
        while True:
            async with instrument.turn:
                work = choose_work([*instrument.works.values()], is_live=is_live)
                if work is None:
                    break
                await self._stretches.step(work, is_live=is_live)
                instrument.forget()
            self._has_room.set()
            self._predicted.tell()
        instrument.running.discard(is_live)
        self._take_up(instrument)  # what is fresh may have shown what is late

    async def _examine(self) -> None:
        """Has courses that wait looked at once more, now and then."""
        while True:
            await asyncio.sleep(EXAMINE_EVERY_S)
            for instrument in self._instruments.values():
                for work in instrument.works.values():
                    work.is_waiting = False
                self._take_up(instrument)

    def _note_waiting(self, observation_id: int) -> None:
        self._mark.lower(observation_id - 1)

    def _note_moved(self, pending: PendingObservation, measure_unix_nanos: int) -> None:
        self._note(pending, measure_unix_nanos, is_live=False)

    def _all_works(self) -> list[CourseWork]:
        return [work for instrument in self._instruments.values() for work in instrument.works.values()]

    def _find_done(self) -> int:
        first_ids = [work.first_id for work in self._all_works() if work.first_id is not None]
        waiting = [*self._stretches.broken_ids, *first_ids]
        return min((self._backlog.cursor, self._live.cursor, *(each - 1 for each in waiting)))

    def _look_again(self, after_id: int) -> None:
        go_back(self._live, self._backlog, after_id)
        self._stretches.broken_ids.clear()
