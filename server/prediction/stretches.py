"""Follows a course for one stretch: has it looked at, read, asked about, and written in one transaction.

What a step did not finish, the next one finds. Decides no order of courses; knows what a worker is only by the batcher.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import replace

from fieldpost.errors import BrokenStateError, OverloadedError, TryAgainError
from server.batching.batcher import Batcher, PredictionFailedError
from server.batching.policy import MIB, Priority
from server.models.card import ModelCard
from server.prediction.answers import (
    Answer,
    PredictedObserver,
    begin_trip,
    commit_at_last,
    make_answer,
    note_stored,
)
from server.prediction.course import Choice, CourseWork, Position, Turn, Walk, is_in_order
from server.prediction.course_looks import CourseLook, look_at_course
from server.prediction.course_rows import CourseRow, Head
from server.prediction.course_writes import OutdatedError, StretchWrite, write_stretch
from server.prediction.pending import PendingObservation, load_item
from server.prediction.room import Room
from server.prediction.streams import choose_priority
from server.storage.store import Store
from server.workers.jobs import StretchAnswer, WorkItem, WorkStretch

logger = logging.getLogger(__name__)

OVERLOAD_WAIT_S = 0.1
RETRY_WAIT_S = 1.0
LIVE_MAX, BACKLOG_MAX = 512, 64
"""Stretches in memory at once; a live one is mostly of one observation."""
BYTES_MAX = 64 * MIB
"""Of their payloads, for each of the two."""

Loaded = tuple[CourseRow, bool, WorkItem]
"""An observation, whether its prediction is written, and what is asked."""
Moved = Callable[[PendingObservation, int], None]
"""Told of an observation whose payload tells another measure time than it was followed at."""


class Stretches:
    """Takes single steps in courses, for one model version.

    Args:
        store: Where observations are and predictions go.
        batcher: Who predicts.
        card: The model version.
        on_waiting: Told of an observation from which on predictions wait to be made again.
        on_moved: Told of observations that belong elsewhere.
        observer: Told of each prediction that is stored; None where nobody looks.

    Attributes:
        broken_ids: Observations whose payload could not be read: not settled, so that a repair and a restart find them.
    """

    def __init__(
        self,
        store: Store,
        batcher: Batcher,
        card: ModelCard,
        *,
        on_waiting: Callable[[int], None],
        on_moved: Moved,
        observer: PredictedObserver | None,
    ) -> None:
        self._store = store
        self._batcher = batcher
        self._card = card
        self._on_waiting = on_waiting
        self._on_moved = on_moved
        self._observer = observer
        self._rooms = {True: Room(LIVE_MAX, BYTES_MAX), False: Room(BACKLOG_MAX, BYTES_MAX)}
        self.broken_ids: set[int] = set()

    async def step(self, work: CourseWork, *, is_live: bool) -> None:
        """Does what comes next in a course; nobody else may be at work for its instrument.

        Args:
            work: What is known of it; told what became of it.
            is_live: Whether for the sake of what is fresh.

        Raises:
            TryAgainError: The model version was taken out of service.
        """
        noted_from = work.take_up(is_live=is_live)
        try:
            look = await asyncio.to_thread(self._look, work, noted_from, is_live)
        except TryAgainError as error:
            logger.warning("nothing to be found", extra={"model": str(self._card.key), "error": str(error)})
            work.take_back(noted_from, is_live=is_live)
            await asyncio.sleep(RETRY_WAIT_S)
            return
        work.is_late, work.late_unix_nanos, work.gap_sight = look.is_late, look.late_unix_nanos, look.gap_sight
        if look.choice is Choice.DONE:
            work.rest()
        elif look.choice is Choice.WAIT:
            work.is_waiting = True
        elif look.choice is Choice.FOLLOW_ON or not is_live:  # what is late does not go before what is fresh elsewhere
            async with self._rooms[is_live].take(sum(row.pending.place.length for row in look.rows)):
                try:
                    await self._follow(work, look, is_live)
                except OutdatedError:
                    logger.warning("followed by somebody else, too", extra={"model": str(self._card.key)})
                    work.take_back(noted_from, is_live=is_live)

    def _look(self, work: CourseWork, noted_from: int | None, is_live: bool) -> CourseLook:
        with self._store.read() as connection:
            return look_at_course(connection, self._card.row_id, work, noted_from, time.time_ns(), is_live=is_live)

    async def _follow(self, work: CourseWork, look: CourseLook, is_live: bool) -> None:
        loaded = await asyncio.to_thread(self._load, look)
        answered = StretchAnswer([], look.base.state)
        trips = [begin_trip(row.pending) for row, _, _ in loaded]
        if loaded:
            priority = choose_priority(self._card.state, is_live=is_live)
            items = tuple(item for _, _, item in loaded)
            answered = await self._ask(WorkStretch(look.base.state, items), str(work.instrument_id), priority)
        is_provisional = not look.after.is_complete
        answers: list[Answer] = []
        positions = {row.pending.observation_id: row.position for row in look.rows}
        for (row, is_remade, _), trip, said in zip(loaded, trips, answered.results, strict=True):
            answer = make_answer(self._card, row.pending, trip, said, is_provisional=is_provisional)
            if is_remade:
                answers.append(answer)
            positions[row.pending.observation_id] = _place(row, answer)
        turns = [
            Turn(positions[row.pending.observation_id], row.pending.capture_unix_nanos, row.epoch_id)
            for row in look.rows
        ]
        if is_in_order(work.course, look.base.through, turns):
            through = max(positions.values(), default=look.base.through)
            after = replace(look.after, state=answered.state, through=through)
            await self._write(work, look, answers, after)
            self._go_on(work, look, after, is_live)
        else:
            await self._write(work, look, [_as_provisional(each) for each in answers], None)
            work.walk = None
            work.take_back(None, is_live=is_live)  # what comes after them, and was noted before, is followed yet
            for row, _, _ in loaded:
                self._on_moved(row.pending, positions[row.pending.observation_id].measure_unix_nanos)

    def _load(self, look: CourseLook) -> list[Loaded]:
        """Reads the payloads; what cannot be read is left out, and waits."""
        loaded: list[Loaded] = []
        for row, is_remade in zip(look.rows, look.is_remade, strict=True):
            try:
                pending, item = load_item(row.pending, self._store.read_segment)
            except BrokenStateError as error:
                facts = {"observation_id": row.pending.observation_id, "error": str(error)}
                logger.error("payload lost", extra=facts)
                if is_remade:
                    self.broken_ids.add(row.pending.observation_id)
                continue
            if not pending.is_time_known:  # the same however often, and by whomever, it was predicted before
                item = item._replace(measure_unix_nanos=pending.capture_unix_nanos)
            loaded.append((replace(row, pending=pending), is_remade, item))
        return loaded

    async def _ask(self, stretch: WorkStretch, lane: str, priority: Priority) -> StretchAnswer:
        """Asks for a stretch; one that fails in halves, until the observation that breaks it has found its failure."""
        while True:
            try:
                return await self._batcher.follow(self._card.key, stretch, lane=lane, priority=priority)
            except OverloadedError:  # others ask for the same version; what is stored can wait
                await asyncio.sleep(OVERLOAD_WAIT_S)
            except PredictionFailedError as error:
                if len(stretch.items) == 1:
                    return StretchAnswer([str(error)], stretch.state)
                break
        middle = len(stretch.items) // 2
        first = await self._ask(WorkStretch(stretch.state, stretch.items[:middle]), lane, priority)
        second = await self._ask(WorkStretch(first.state, stretch.items[middle:]), lane, priority)
        return StretchAnswer(first.results + second.results, second.state)

    async def _write(self, work: CourseWork, look: CourseLook, answers: list[Answer], after: Walk | None) -> None:
        """Writes a stretch; without `after`, what was said of it is provisional, and it is followed once more."""
        new = [each.prediction for each in answers]
        waiting_after, head = None, None
        if after is not None and after.through is not None:
            is_first_waiting = after.is_behind_waiting and not look.base.is_behind_waiting
            if is_first_waiting and not look.is_last and not look.is_cut_off:
                waiting_after = after.through
            if look.choice is Choice.FOLLOW_ON or (look.is_last and look.is_newest):
                head = Head(work.course.start_unix_nanos, after.through, after.is_complete, after.state)
        remade_ids = {each.observation_id for each in new}
        before = [row.prediction_id for row in look.rows if row.pending.observation_id in remade_ids]
        wanted = StretchWrite(
            self._card.row_id,
            work.instrument_id,
            work.course,
            new,
            [each for each in before if each is not None],
            waiting_after,
            head,
            look.head,
        )
        first_id = await commit_at_last(self._store, lambda connection: write_stretch(connection, wanted))
        if first_id is not None:
            work.lower(first_id)
            self._on_waiting(first_id)
        for answer in answers:
            note_stored(self._observer, self._card, answer)

    def _go_on(self, work: CourseWork, look: CourseLook, after: Walk, is_live: bool) -> None:
        """Notes what is known now, for the next step."""
        if look.choice is Choice.FOLLOW_ON:
            work.head_gaps, work.is_head_behind = after.gaps, after.is_behind_waiting and not look.is_last
            work.is_late = work.is_late or not after.is_complete
            if not look.is_last:
                work.is_live, work.is_backlog = work.is_live or is_live, work.is_backlog or not is_live
        elif look.is_last:
            work.walk, work.is_late = None, not after.is_complete
            work.head_gaps = after.gaps
        else:
            work.walk = after
        if look.is_last:
            work.rest()


def _place(row: CourseRow, answer: Answer) -> Position:
    """Where the observation stands, now that its payload was read."""
    is_untold = row.pending.measure_unix_nanos == row.pending.capture_unix_nanos
    if answer.prediction.is_time_news and is_untold:
        return row.position._replace(measure_unix_nanos=answer.prediction.measure_unix_nanos)
    return row.position


def _as_provisional(answer: Answer) -> Answer:
    return replace(answer, prediction=replace(answer.prediction, is_provisional=True))
