"""Takes single observations, gives batches to workers, and hands each observation its own answer.

A batch leaves when a worker has room, with what is there then (server.batching decides what). A batch that fails is
split until the observation that breaks it stands alone. Knows no store.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fieldpost.errors import RejectedError, TryAgainError
from server.analyses import AnalysisCard, AnalysisResult
from server.batching import BatchQueue, Waiting
from server.jobs import Job, JobDone, WorkItem
from server.workers import Worker, WorkerEvents

logger = logging.getLogger(__name__)

BATCH_BYTES_MAX = 32 * 1024 * 1024
DEATHS_MAX = 3
"""A lone observation with which this many workers died is set aside. One death may be chance: memory, an operator."""


class PredictionFailedError(RejectedError):
    """The model cannot answer for this observation; asking again will not help."""


@dataclass(frozen=True, slots=True)
class _Request:
    item: WorkItem
    answer: asyncio.Future[AnalysisResult]


@dataclass(slots=True)
class _Dispatch:
    """A batch on its way, and how often a worker died with it."""

    card: AnalysisCard
    requests: list[_Request]
    deaths: int = 0


@dataclass(slots=True)
class BatcherCounts:
    """What the batcher did since it started."""

    batches: int = 0
    observations: int = 0
    failures: int = 0
    expired: int = 0
    deaths: int = 0


class Batcher:
    """Batches for a set of model versions over some workers. Lives in one event loop.

    Args:
        cards: The model versions.
        start_workers: Each starts one worker, which reports to what it is given.
    """

    def __init__(
        self, cards: Sequence[AnalysisCard], start_workers: Sequence[Callable[[WorkerEvents], Worker]]
    ) -> None:
        self._cards = {(card.name, card.version): card for card in cards}
        self._queues: dict[tuple[str, int], BatchQueue[_Request]] = {
            key: BatchQueue(card.max_batch, BATCH_BYTES_MAX) for key, card in self._cards.items()
        }
        self._again: list[_Dispatch] = []
        self._sent: dict[int, _Dispatch] = {}
        self._job_ids = itertools.count(1)
        self._pump_is_due = False
        self.counts = BatcherCounts()
        self._loop = asyncio.get_running_loop()
        self.workers = [start(self) for start in start_workers]

    def submit(
        self, analysis: str, version: int, item: WorkItem, *, lane: str, deadline_s: float | None = None
    ) -> asyncio.Future[AnalysisResult]:
        """Lets an observation wait for its answer.

        Args:
            analysis: Name of the analysis.
            version: Model version.
            item: The observation.
            lane: Whose it is; lanes take turns.
            deadline_s: In the event loop's time; after it the answer is a TryAgainError and costs nothing more.

        Returns:
            A future with the result, or a PredictionFailedError or TryAgainError.
        """
        answer: asyncio.Future[AnalysisResult] = self._loop.create_future()
        size_bytes = len(item.payload)
        self._queues[analysis, version].add(Waiting(_Request(item, answer), lane, size_bytes, deadline_s))
        self._schedule_pump()
        return answer

    def close(self) -> None:
        """Ends the workers. Who still waits gets a TryAgainError."""
        for worker in self.workers:
            worker.close()
        left = [request for each in (*self._sent.values(), *self._again) for request in each.requests]
        for waiting in self._queues.values():
            while batch := waiting.take(float("-inf")).items:
                left += [each.value for each in batch]
        for request in left:
            if not request.answer.done():
                request.answer.set_exception(TryAgainError("the server is stopping"))
                request.answer.exception()  # retrieved: nobody may be waiting any more

    def on_done(self, done: JobDone) -> None:
        """A worker answered."""
        dispatch = self._sent.pop(done.job_id)
        if done.failure:
            self._split(dispatch, done.failure)
        else:
            for request, result in zip(dispatch.requests, done.results(), strict=True):
                self._answer(request, result)
        self._pump()

    def on_lost(self, jobs: list[Job]) -> None:
        """A worker died: its batches run again, in halves when it was not the first time."""
        self.counts.deaths += 1
        for job in jobs:
            dispatch = self._sent.pop(job.job_id)
            dispatch.deaths += 1
            if dispatch.deaths >= DEATHS_MAX or (dispatch.deaths > 1 and len(dispatch.requests) > 1):
                self._split(dispatch, f"{DEATHS_MAX} workers died while they computed it")
            else:
                self._again.append(dispatch)
        self._schedule_pump()

    def on_ready(self) -> None:
        """A worker lives again."""
        self._pump()

    def _schedule_pump(self) -> None:
        """Looks for free workers once all that arrives in this turn of the loop has arrived."""
        if not self._pump_is_due:
            self._pump_is_due = True
            self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        self._pump_is_due = False
        for worker in sorted(self.workers, key=lambda each: -each.free_slots):
            while worker.free_slots and (dispatch := self._next_dispatch()) is not None:
                job_id = next(self._job_ids)
                self._sent[job_id] = dispatch
                self.counts.batches += 1
                items = [request.item for request in dispatch.requests]
                worker.send(Job(job_id, dispatch.card.name, dispatch.card.version, items))

    def _next_dispatch(self) -> _Dispatch | None:
        if self._again:
            return self._again.pop(0)
        for key in list(self._queues):
            batch = self._queues[key].take(self._loop.time())
            for late in batch.expired:
                self.counts.expired += 1
                if not late.value.answer.done():
                    late.value.answer.set_exception(TryAgainError("no worker was free before the deadline"))
            requests = [each.value for each in batch.items if not each.value.answer.cancelled()]
            if requests:
                self._queues[key] = self._queues.pop(key)  # model versions take turns too
                return _Dispatch(self._cards[key], requests)
        return None

    def _split(self, dispatch: _Dispatch, failure: str) -> None:
        """Runs the halves of a broken batch again; a single observation has found its failure."""
        requests = dispatch.requests
        if len(requests) == 1:
            self._answer(requests[0], failure)
            return
        middle = len(requests) // 2
        self._again += [
            _Dispatch(dispatch.card, half, min(dispatch.deaths, 1)) for half in (requests[:middle], requests[middle:])
        ]

    def _answer(self, request: _Request, result: AnalysisResult | str) -> None:
        self.counts.observations += 1
        if request.answer.done():
            return  # cancelled meanwhile
        if isinstance(result, str):
            self.counts.failures += 1
            request.answer.set_exception(PredictionFailedError(result))
        else:
            request.answer.set_result(result)
