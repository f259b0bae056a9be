"""Takes observations and stretches of them, gives batches to workers, and hands each its own answer.

A batch leaves when a worker has room, with what is there then (server.batching decides what). One that fails is run
again in parts until the observation that breaks it stands alone:

- The model raises: in halves. An observation that is alone has found its failure.
- Memory runs out: in halves, and from then on batches of that model version are smaller.
- The worker dies or hangs: in eighths, since each death costs seconds and a batch only milliseconds. An observation
  that is alone is set aside after DEATHS_MAX deaths. Batches that only waited in that worker run again whole.

A stretch is never parted here, since what its later observations mean depends on the earlier ones: alone in a batch it
is what failed, and whoever asked may ask for a part of it.

Knows no store.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from fieldpost.errors import InvalidRequestError, TryAgainError, UnknownModelError
from server.analyses import AnalysisResult
from server.batching.policy import MIB, BatchPolicy, Priority, QueueSnapshot, Waiting
from server.batching.requests import (
    Asker,
    ExpiredError,
    PredictionFailedError,
    Promise,
    Request,
    StretchPromise,
    settle,
)
from server.batching.sent_batch import SentBatch, sayable
from server.models.card import ModelCard
from server.workers.jobs import Job, JobDone, ModelKey, ModelPackage, StretchAnswer, WorkItem, WorkStretch
from server.workers.protocol import Worker, WorkerEvents, WorkerFacts, WorkerKind
from server.workers.worker_pool import WorkerPool

__all__ = ["Asker", "Batcher", "BatcherCounts", "ExpiredError", "ModelCounts", "PredictionFailedError", "Request"]

logger = logging.getLogger(__name__)

BATCH_BYTES_MAX = 32 * MIB
DEATHS_MAX = 3
"""A lone observation with which this many workers died is set aside. One death may be chance: memory, an operator."""
DEATH_PARTS = 8
HALVINGS_MAX = 31
"""More than any bound of a batch can be halved."""
TICK_S = 1.0
EXPIRY_WAIT_MIN_S = 0.001


@dataclass(slots=True)
class _Model:
    package: ModelPackage
    kind: WorkerKind
    timeout_s: float


@dataclass(slots=True)
class BatcherCounts:
    """What the batcher did since it started: observations, but for batches, and deaths of workers."""

    batches: int = 0
    observations: int = 0
    failures: int = 0
    expired: int = 0
    cancelled: int = 0
    refused: int = 0
    deaths: int = 0
    out_of_memory: int = 0


@dataclass(slots=True)
class ModelCounts:
    """What became of the observations that a model version was asked about."""

    predicted: int = 0
    failed: int = 0
    refused_callers: int = 0
    """Of those that failed, payloads of callers who ask at once and that it refused: no fault of its own."""
    deaths_in_a_row: int = 0
    """Workers that its batches have killed since one was computed."""


class Batcher:
    """Batches for a set of model versions over some workers. Lives in one event loop.

    Args:
        start_pool: Starts the workers, which report to what it is given.
        policy: Decides what goes next.
        batch_bytes_max: Bytes of payloads in one batch.
    """

    def __init__(
        self,
        start_pool: Callable[[WorkerEvents], WorkerPool],
        policy: BatchPolicy[Request] | None = None,
        *,
        batch_bytes_max: int = BATCH_BYTES_MAX,
    ) -> None:
        self._policy: BatchPolicy[Request] = BatchPolicy() if policy is None else policy
        self._batch_bytes_max = batch_bytes_max
        self._models: dict[ModelKey, _Model] = {}
        self._sent: dict[int, SentBatch] = {}
        self._loads: deque[tuple[ModelKey, asyncio.Future[None]]] = deque()
        self._job_ids = itertools.count(1)
        self._pump_is_due = False
        self._is_closed = False
        self.counts = BatcherCounts()
        self.model_counts: dict[ModelKey, ModelCounts] = {}
        self._loop = asyncio.get_running_loop()
        self._expiry_timer: asyncio.TimerHandle | None = None
        self._pool = start_pool(self)
        self._tick_timer = self._loop.call_later(TICK_S, self._tick)

    def add_model(self, package: ModelPackage, card: ModelCard) -> None:
        """Lets a model version be asked; where it is there already, nothing happens."""
        if package.key in self._models:
            return
        kind, trial = WorkerKind(card.kind), card.trial
        self._models[package.key] = _Model(package, kind, card.timeout_s)
        self.model_counts.setdefault(package.key, ModelCounts())
        self._policy.add_model(
            package.key,
            kind,
            max_batch_count=trial.max_batch_count,
            batch_bytes_max=self._batch_bytes_max,
            cost=(trial.batch_fixed_s, trial.observation_s),
        )
        self._pool.need(kind)

    def remove_model(self, key: ModelKey) -> None:
        """Takes a model version out; who waits for it gets a TryAgainError, what is being computed is answered."""
        if self._models.pop(key, None) is None:
            return
        for waiting in self._policy.remove_model(key):
            waiting.value.fail(TryAgainError(f"{key} was taken out of service", hint="ask the active version"))
        for worker in self._pool.workers:
            worker.unload(key)

    def model_keys(self) -> list[ModelKey]:
        """The model versions that can be asked."""
        return list(self._models)

    def load(self, key: ModelKey) -> asyncio.Future[None]:
        """Has a worker load a model version ahead of all that waits; the future tells when it has, or why it cannot."""
        loaded: asyncio.Future[None] = self._loop.create_future()
        self._loads.append((key, loaded))
        self._schedule_pump()
        return loaded

    def submit(
        self,
        key: ModelKey,
        item: WorkItem,
        *,
        lane: str,
        priority: Priority = Priority.LIVE,
        deadline_s: float | None = None,
        is_stored: bool = False,
    ) -> asyncio.Future[AnalysisResult]:
        """Lets an observation wait for its answer.

        Args:
            key: The model version.
            item: The observation.
            lane: Whose it is; lanes take turns.
            priority: What it yields to.
            deadline_s: In the event loop's time; after it the answer is an ExpiredError and costs nothing more.
            is_stored: Whether an instrument sent it: a model that refuses it does badly.

        Returns:
            A future with the result, or a PredictionFailedError, an ExpiredError or, where the server stops, another
            TryAgainError. Cancelling it takes the observation out of the queue.

        Raises:
            OverloadedError: As much waits as may.
            UnknownModelError: The model version was not added.
        """
        answer: asyncio.Future[AnalysisResult] = self._loop.create_future()
        request = Request(item, Promise(answer), 0, is_stored=is_stored)
        waiting = self._add(key, request, lane, priority, len(item.payload), deadline_s=deadline_s)
        answer.add_done_callback(lambda done: self.withdraw(waiting) if done.cancelled() else None)
        return answer

    def follow(
        self, key: ModelKey, stretch: WorkStretch, *, lane: str, priority: Priority
    ) -> asyncio.Future[StretchAnswer]:
        """Lets a stretch wait for its answer: for a model version that remembers.

        Args:
            key: The model version.
            stretch: Observations that an instrument sent; they go into one batch.
            lane: Whose they are; lanes take turns.
            priority: What they yield to.

        Returns:
            A future with what became of each observation and the state after them; or a PredictionFailedError where
            the stretch cannot be computed as a whole (perhaps its parts can), or a TryAgainError. Cancelling it takes
            the stretch out of the queue.

        Raises:
            InvalidRequestError: There is no observation in it.
            OverloadedError: As much waits as may.
            UnknownModelError: The model version was not added.
        """
        if not stretch.items:
            raise InvalidRequestError(f"expected a stretch of at least one observation, but got none (for {key})")
        answer: asyncio.Future[StretchAnswer] = self._loop.create_future()
        request = Request(stretch, StretchPromise(answer), 0, is_stored=True)
        size_bytes = len(stretch.state) + sum(len(item.payload) for item in stretch.items)
        waiting = self._add(key, request, lane, priority, size_bytes, len(stretch.items))
        answer.add_done_callback(lambda done: self.withdraw(waiting) if done.cancelled() else None)
        return answer

    def ask(
        self,
        key: ModelKey,
        item: WorkItem,
        asker: Asker,
        ticket: int,
        *,
        lane: str,
        priority: Priority = Priority.LIVE,
        deadline_s: float | None = None,
    ) -> Waiting[Request]:
        """Like submit, for who asks for many observations: what a batch says of them comes to the asker at once.

        Args:
            key: The model version.
            item: The observation.
            asker: Is told.
            ticket: What the asker calls the observation.
            lane: Whose it is; lanes take turns.
            priority: What it yields to.
            deadline_s: In the event loop's time; after it the answer is an ExpiredError and costs nothing more.

        Returns:
            What withdraw takes.

        Raises:
            OverloadedError: As much waits as may.
            UnknownModelError: The model version was not added.
        """
        return self._add(key, Request(item, asker, ticket), lane, priority, len(item.payload), deadline_s=deadline_s)

    def _add(
        self,
        key: ModelKey,
        request: Request,
        lane: str,
        priority: Priority,
        size_bytes: int,
        observation_count: int = 1,
        deadline_s: float | None = None,
    ) -> Waiting[Request]:
        if self._is_closed:
            raise TryAgainError("the server is stopping")
        if key not in self._models:
            raise UnknownModelError(f"expected a model version at work, but got {key}")
        try:
            waiting = self._policy.add(
                key,
                request,
                lane=lane,
                priority=priority,
                size_bytes=size_bytes,
                now_s=self._loop.time(),
                observation_count=observation_count,
                deadline_s=deadline_s,
            )
        except TryAgainError:
            self.counts.refused += observation_count
            raise
        self._schedule_pump()
        return waiting

    def withdraw(self, waiting: Waiting[Request]) -> None:
        """Nobody wants the answer any more: the asker hears nothing more of it, and it leaves the queue."""
        waiting.value.is_over = True
        self.counts.cancelled += waiting.observation_count
        self._policy.cancel(waiting)

    def queues(self) -> list[QueueSnapshot]:
        """What waits, by model version."""
        return self._policy.snapshot(self._loop.time())

    def workers(self) -> list[WorkerFacts]:
        """How the workers are."""
        return [worker.facts() for worker in self._pool.workers]

    def close(self) -> None:
        """Ends the workers. Who still waits gets a TryAgainError."""
        if self._is_closed:
            return
        self._is_closed = True
        self._tick_timer.cancel()
        if self._expiry_timer is not None:
            self._expiry_timer.cancel()
        self._pool.close()
        stopping = TryAgainError("the server is stopping")
        waiting = [each for key in self._models for each in self._policy.remove_model(key)]
        self._models.clear()
        sent, self._sent = list(self._sent.values()), {}
        for each in (*waiting, *(each for sent_one in sent for each in sent_one.waiting)):
            each.value.fail(stopping)
        for loaded in (*(loaded for _, loaded in self._loads), *(each.loaded for each in sent)):
            settle(loaded, stopping)
        self._loads.clear()

    def on_done(self, worker: Worker, done: JobDone) -> None:
        """A worker answered."""
        sent = self._sent.pop(done.job_id, None)
        if sent is None:
            return  # closed meanwhile
        if sent.loaded is not None:
            settle(sent.loaded, PredictionFailedError(done.failure) if done.failure else None)
        elif done.failure:
            self._take_failure(worker, sent, done)
        else:
            self._take_results(sent, done)
        self._pump()

    def _take_results(self, sent: SentBatch, done: JobDone) -> None:
        try:
            sent.check(done)
        except ValueError as error:  # whatever a model's answer is, this loop lives on
            failure = f"the answer cannot be read: {error}"
            self._policy.note_lost(sent.key, sent.priority, done.duration_s)
            self._run_again(sent.waiting, 2, failure)
            return
        self._policy.note_cost(sent.key, len(sent.owners), done.duration_s)
        self.model_counts[sent.key].deaths_in_a_row = 0
        predicted = sum(len(block.places) for block in done.blocks)
        self.counts.observations += predicted
        self.model_counts[sent.key].predicted += predicted
        for place in done.refusals:
            self._count_failure(sent.key)
            self.model_counts[sent.key].refused_callers += not sent.owners[place].value.is_stored
        sent.hand_out(done)

    def _take_failure(self, worker: Worker, sent: SentBatch, done: JobDone) -> None:
        count = len(sent.owners)
        facts = {"model": str(sent.key), "worker": worker.name, "observation_count": count, "failure": done.failure}
        logger.warning("batch failed", extra=facts)
        self._policy.note_lost(sent.key, sent.priority, done.duration_s)
        if done.is_out_of_memory:
            self.counts.out_of_memory += 1
            if count == 1:
                # a stretch may be what is left of a longer one, which found no memory either: how often, is not known
                times = HALVINGS_MAX if sent.stretches else sent.waiting[0].value.too_much_count
                self._policy.note_too_large(sent.key, times)
            else:
                self._policy.note_out_of_memory(sent.key, count)
                for waiting in sent.waiting:
                    waiting.value.too_much_count += 1
        self._run_again(sent.waiting, 2, done.failure)

    def on_lost(self, worker: Worker, jobs: list[Job], reason: str) -> None:
        """A worker died or hung: what it computed runs again in parts, what only waited in it runs again whole."""
        self.counts.deaths += 1
        found = [self._sent.pop(job.job_id, None) for job in jobs]
        for is_blamed, sent in zip((True, *[False] * len(jobs)), found, strict=False):
            if sent is None:
                continue
            if sent.loaded is not None:
                settle(sent.loaded, TryAgainError(f"a worker was lost while it loaded {sent.key}: {reason}"))
                continue
            self._policy.note_lost(sent.key, sent.priority, self._loop.time() - sent.sent_s if is_blamed else 0.0)
            if is_blamed:
                self._blame(worker, sent, reason)
            else:
                self._run_again(sent.waiting, 1, reason)
        self._schedule_pump()

    def _blame(self, worker: Worker, sent: SentBatch, reason: str) -> None:
        count = len(sent.owners)
        facts = {"model": str(sent.key), "worker": worker.name, "observation_count": count, "reason": reason}
        logger.error("worker lost with a batch", extra=facts)
        if len(sent.waiting) > 1 or count == 1:
            # not of a stretch alone: cutting it until one observation stands alone takes many more deaths than parting
            # a batch does, and they are not the model version's fault
            self._policy.note_death(sent.key, self._loop.time())
            self.model_counts[sent.key].deaths_in_a_row += 1
        for waiting in sent.waiting:
            waiting.value.deaths += 1
        is_again = count == 1 and sent.waiting[0].value.deaths < DEATHS_MAX
        deaths = max(waiting.value.deaths for waiting in sent.waiting)
        failure = f"a worker was lost while it computed it: {reason}"
        if deaths > 1:
            failure = f"{deaths} workers were lost while they computed it, the last one so: {reason}"
        self._run_again(sent.waiting, 1 if is_again else DEATH_PARTS, failure)

    def on_ready(self) -> None:
        """Some worker has room."""
        self._schedule_pump()

    def _run_again(self, batch: list[Waiting[Request]], part_count: int, failure: str) -> None:
        """Runs a batch again, in so many parts; one that cannot be parted has found its failure."""
        if part_count > 1 and len(batch) == 1:
            self._fail_for_good(batch[0], failure)
            return
        wanted = [each for each in batch if not each.value.is_over]
        if wanted and wanted[0].key not in self._models:
            gone = TryAgainError(f"{wanted[0].key} was taken out of service", hint="ask the active version")
            for each in wanted:
                each.value.fail(gone)
            return
        size = max(1, -(-len(wanted) // part_count))
        for start in range(0, len(wanted), size):
            self._policy.put_back(wanted[start : start + size])

    def _schedule_pump(self) -> None:
        """Looks for free workers once all that arrives in this turn of the loop has arrived."""
        if not self._pump_is_due:
            self._pump_is_due = True
            self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        """Gives batches to whoever has room, the emptiest worker first."""
        self._pump_is_due = False
        if self._is_closed:
            return
        free = [worker for worker in self._pool.workers if worker.free_slots]
        while free:
            worker = max(free, key=lambda each: each.free_slots)
            if not self._feed(worker) or not worker.free_slots:
                free.remove(worker)
        for late in self._policy.take_expired(self._loop.time()):
            self.counts.expired += late.observation_count
            late.value.fail(ExpiredError("no worker was free in time for the deadline", hint="allow more time"))
        self._set_expiry_timer()

    def _feed(self, worker: Worker) -> bool:
        """Gives a worker one job; returns whether there was one."""
        now_s = self._loop.time()
        if (sent := self._next_load(worker.kind, now_s)) is None:
            batch = self._policy.take(worker.kind, now_s)
            if batch is None:
                return False
            sent = SentBatch(batch.key, batch.priority, now_s, batch.items)
            self.counts.batches += 1
        model = self._models[sent.key]
        job_id = next(self._job_ids)
        self._sent[job_id] = sent
        worker.send(Job(job_id, sent.key, sent.lay_out(), model.timeout_s, sent.stretches), model.package)
        return True

    def _next_load(self, kind: WorkerKind, now_s: float) -> SentBatch | None:
        for _ in range(len(self._loads)):
            key, loaded = self._loads.popleft()
            model = self._models.get(key)
            if model is None:
                settle(loaded, UnknownModelError(f"expected a model version at work, but got {key}"))
            elif model.kind is kind:
                return SentBatch(key, Priority.LIVE, now_s, loaded=loaded)
            else:
                self._loads.append((key, loaded))
        return None

    def _set_expiry_timer(self) -> None:
        """Who is late is told so although no worker becomes free."""
        if (expiry_s := self._policy.next_expiry_s()) is None:
            return
        at_s = max(expiry_s, self._loop.time()) + EXPIRY_WAIT_MIN_S
        if self._expiry_timer is not None:
            if self._loop.time() < self._expiry_timer.when() <= at_s:
                return  # looks in time, and then sets the next one
            self._expiry_timer.cancel()
        self._expiry_timer = self._loop.call_at(at_s, self._pump)

    def _tick(self) -> None:
        """Once a second, tells the pool how long the queues are."""
        self._tick_timer = self._loop.call_later(TICK_S, self._tick)
        self._schedule_pump()  # a model version may have rested enough
        queues = self.queues()
        for kind in {model.kind for model in self._models.values()}:
            mine = [each for each in queues if self._models[each.key].kind is kind]
            count = sum(each.live_count + each.backfill_count + each.shadow_count for each in mine)
            self._pool.note_queue(kind, max(each.oldest_s for each in mine), count)

    def _fail_for_good(self, waiting: Waiting[Request], failure: str) -> None:
        """The model has no answer for this one."""
        if waiting.observation_count == 1:  # of a stretch of several it is not known yet which
            self._count_failure(waiting.key)
        waiting.value.fail(PredictionFailedError(sayable(failure)))

    def _count_failure(self, key: ModelKey) -> None:
        self.counts.observations += 1
        self.counts.failures += 1
        self.model_counts[key].failed += 1
