"""Predicts whole courses for a version that remembers, with the steps that the server itself takes.

A course is followed from its start: so what is said of an observation depends on no order of arrival, and what a run
that was ended has written is met as final and left alone. Several courses are followed at once. Lives in an event loop;
knows no flow.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from flows.backfilling.span import Span
from flows.backfilling.tally import Tally
from server.batching.batcher import Batcher
from server.models.card import ModelCard
from server.prediction.course import CourseWork, Walk
from server.prediction.pending import PendingObservation
from server.prediction.stretches import Stretches
from server.storage.store import Store
from server.telemetry.observer import Trip

COURSES_BESIDE = 2
"""Courses followed at once beyond two for each process."""


class Courses:
    """Follows courses for one model version that remembers.

    Args:
        store: Where observations are and predictions go.
        batcher: Who predicts; the model version was added to it.
        card: The model version.
        tally: Is counted up.
        processes: That predict at once.

    Attributes:
        moved_unix_nanos: Measure times, by instrument, that only payloads told: they may belong to other courses.
    """

    def __init__(self, store: Store, batcher: Batcher, card: ModelCard, tally: Tally, processes: int) -> None:
        self._tally = tally
        self._room = asyncio.Semaphore(2 * processes + COURSES_BESIDE)
        self.moved_unix_nanos: set[tuple[int, int]] = set()
        self._stretches = Stretches(
            store, batcher, card, on_waiting=lambda _: None, on_moved=self._note_moved, observer=self
        )

    async def predict(self, spans: Iterable[Span]) -> None:
        """Follows these courses.

        Raises:
            ExceptionGroup: The workers were ended.
        """
        async with asyncio.TaskGroup() as tasks:
            for span in spans:
                await self._room.acquire()
                tasks.create_task(self._follow(span), name="follow-course")
        self._tally.unreadable_count = len(self._stretches.broken_ids)

    async def _follow(self, span: Span) -> None:
        """Follows a course from its start to its end.

        What waits in it came late only to this version: nothing is waited for as if it were still on its way.
        """
        work = CourseWork(span.instrument.instrument_id, span.course, is_backlog=True, is_late=True, walk=Walk())
        try:
            while work.walk is not None:
                await self._stretches.step(work, is_live=False)
        finally:
            self._room.release()

    def note_predicted(self, model: str, trip: Trip, answer_unix_nanos: int, failure: str) -> None:
        """A prediction is on the disk."""
        self._tally.note([failure])

    def _note_moved(self, pending: PendingObservation, measure_unix_nanos: int) -> None:
        self.moved_unix_nanos.add((pending.instrument_id, measure_unix_nanos))
