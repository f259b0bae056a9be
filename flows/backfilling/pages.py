"""Predicts pieces of time for a version that forgets: page by page, several on their way at once.

While workers compute a page, the next ones are read and the ones before are written. A page is written in one
transaction; whatever ends a run, the query finds the pages that were not. Lives in an event loop; knows no flow.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from dataclasses import dataclass, field

from fieldpost.errors import BrokenStateError, FieldpostError, TryAgainError
from flows.backfilling.span import Span
from flows.backfilling.tally import Tally
from flows.backfilling.waiting import Position, list_waiting
from server.analyses import AnalysisResult
from server.batching.batcher import Batcher, PredictionFailedError
from server.batching.policy import MIB, Priority
from server.models.card import ModelCard
from server.prediction.answers import Answer, begin_trip, commit_at_last, make_answer
from server.prediction.pending import PendingObservation, load_item
from server.queries.predictions import write_predictions
from server.storage.store import Store
from server.workers.jobs import ResultBlock, WorkItem

logger = logging.getLogger(__name__)

PAGE_MAX = 128
"""Observations of a page: they are written together, and live work waits for so long to write."""
PAGE_BYTES_MAX = 16 * MIB
"""Of their payloads; a larger one goes alone."""
PAGES_BESIDE = 4
"""Pages on their way beyond two for each process: being read, or being written."""

Loaded = tuple[PendingObservation, WorkItem]


@dataclass(slots=True)
class _Page:
    """A page on its way.

    Attributes:
        loaded: The observations.
        next_after: Where the next page begins; None where there is none.
        unreadable_count: Observations whose payload could not be read.
    """

    loaded: list[Loaded] = field(default_factory=list)
    next_after: Position | None = None
    unreadable_count: int = 0


class _Answers:
    """Hears what becomes of a page's observations, in the event loop."""

    def __init__(self, count: int) -> None:
        self.said: list[AnalysisResult | str | None] = [None] * count
        self._left_count = count
        self.complete: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def take_results(self, block: ResultBlock, rows: list[int], tickets: list[int]) -> None:
        """Results came."""
        results = list(block.results())
        for row, ticket in zip(rows, tickets, strict=True):
            self._take(ticket, results[row])

    def take_failure(self, ticket: int, error: FieldpostError) -> None:
        """There will be no result."""
        if isinstance(error, PredictionFailedError):
            self._take(ticket, str(error))
        elif not self.complete.done():
            self.complete.set_exception(error if isinstance(error, TryAgainError) else TryAgainError(str(error)))

    def _take(self, ticket: int, said: AnalysisResult | str) -> None:
        self.said[ticket] = said
        self._left_count -= 1
        if not self._left_count and not self.complete.done():
            self.complete.set_result(None)


class Pages:
    """Predicts what waits for one model version that forgets.

    Args:
        store: Where observations are and predictions go.
        batcher: Who predicts; the model version was added to it.
        card: The model version.
        tally: Is counted up.
        processes: That predict at once.
    """

    def __init__(self, store: Store, batcher: Batcher, card: ModelCard, tally: Tally, processes: int) -> None:
        self._store = store
        self._batcher = batcher
        self._card = card
        self._tally = tally
        self._room = asyncio.Semaphore(2 * processes + PAGES_BESIDE)

    async def predict(self, spans: Iterable[Span]) -> None:
        """Predicts all that waits in these pieces.

        Raises:
            ExceptionGroup: The store could not be read, or the workers were ended.
        """
        async with asyncio.TaskGroup() as tasks:
            for span in spans:
                after: Position | None = None
                is_more = True
                while is_more:
                    await self._room.acquire()
                    page = await asyncio.to_thread(self._read, span, after)
                    tasks.create_task(self._predict_page(page), name="predict-page")
                    after, is_more = page.next_after, page.next_after is not None

    def _read(self, span: Span, after: Position | None) -> _Page:
        """Reads the next page, in a thread."""
        with self._store.read() as connection:
            waiting = list_waiting(connection, self._card.row_id, span, after, PAGE_MAX)
        page, size_bytes = _Page(), 0
        for number, each in enumerate(waiting):
            size_bytes += each.place.length
            if number and size_bytes > PAGE_BYTES_MAX:
                return page
            try:
                page.loaded.append(load_item(each, self._store.read_segment))
            except BrokenStateError as error:
                page.unreadable_count += 1
                logger.error("payload lost", extra={"observation_id": each.observation_id, "error": str(error)})
            page.next_after = (each.measure_unix_nanos, each.observation_id)
        if len(waiting) < PAGE_MAX:
            page.next_after = None
        return page

    async def _predict_page(self, page: _Page) -> None:
        try:
            self._tally.unreadable_count += page.unreadable_count
            if page.loaded:
                await self._ask_and_write(page.loaded)
        finally:
            self._room.release()

    async def _ask_and_write(self, loaded: list[Loaded]) -> None:
        answers = _Answers(len(loaded))
        asked = [
            self._batcher.ask(
                self._card.key, item, answers, ticket, lane=str(pending.instrument_id), priority=Priority.BACKFILL
            )
            for ticket, (pending, item) in enumerate(loaded)
        ]
        try:
            await answers.complete
        finally:
            for waiting in asked:
                if not waiting.value.is_over:
                    self._batcher.withdraw(waiting)
        made = await asyncio.to_thread(self._make, loaded, answers.said)
        new = [each.prediction for each in made]
        await commit_at_last(self._store, lambda connection: write_predictions(connection, new))
        self._tally.note([each.failure for each in made])

    def _make(self, loaded: list[Loaded], said: list[AnalysisResult | str | None]) -> list[Answer]:
        return [
            make_answer(self._card, pending, begin_trip(pending), each)
            for (pending, _), each in zip(loaded, said, strict=True)
            if each is not None
        ]
