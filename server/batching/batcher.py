"""Takes single observations, gives batches to workers, and hands each observation its own answer.

A batch leaves when a worker has room, with what is there then (server.batching decides what). One that fails is run
again in parts until the observation that breaks it stands alone:

- The model raises: in halves. An observation that is alone has found its failure.
- Memory runs out: in halves, and from then on batches of that model version are smaller.
- The worker dies or hangs: in eighths, since each death costs seconds and a batch only milliseconds. An observation
  that is alone is set aside after DEATHS_MAX deaths. Batches that only waited in that worker run again whole.

Knows no store.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from fieldpost.errors import FieldpostError, RejectedError, TryAgainError, UnknownModelError
from server.analyses import AnalysisResult
from server.batching.policy import MIB, BatchPolicy, Priority, QueueSnapshot, Waiting
from server.models.card import ModelCard
from server.workers.jobs import Job, JobDone, ModelKey, ModelPackage, ResultBlock, WorkItem
from server.workers.protocol import Worker, WorkerEvents, WorkerFacts, WorkerKind
from server.workers.worker_pool import WorkerPool
from server.workers.worker_wire import answers_all

logger = logging.getLogger(__name__)

BATCH_BYTES_MAX = 32 * MIB
DEATHS_MAX = 3
"""A lone observation with which this many workers died is set aside. One death may be chance: memory, an operator."""
DEATH_PARTS = 8
TICK_S = 1.0
EXPIRY_WAIT_MIN_S = 0.001


class PredictionFailedError(RejectedError):
    """The model cannot answer for this observation; asking again will not help."""


class ExpiredError(TryAgainError):
    """The deadline passed, or would have, before a worker was free."""


class Asker(Protocol):
    """Who asked, for one observation or many, and is told once about each; called in the event loop."""

    def take_results(self, block: ResultBlock, rows: list[int], tickets: list[int]) -> None:
        """Results came: these rows of the block, for these tickets."""

    def take_failure(self, ticket: int, error: FieldpostError) -> None:
        """There will be no result: a PredictionFailedError, an ExpiredError or another TryAgainError says why."""


@dataclass(slots=True)
class Request:
    """An observation that waits for its answer.

    Attributes:
        item: The observation.
        asker: Who asked.
        ticket: What it is called there.
        deaths: How many workers died with it.
        too_much_count: How many batches with it found no memory.
        is_stored: Whether an instrument sent it; otherwise somebody asks at once.
        is_over: Whether the asker was told, or wants to know no more.
    """

    item: WorkItem
    asker: Asker
    ticket: int
    deaths: int = 0
    too_much_count: int = 0
    is_stored: bool = False
    is_over: bool = False


class _Promise:
    """Asks for one observation, with a future."""

    def __init__(self, answer: asyncio.Future[AnalysisResult]) -> None:
        self._answer = answer

    def take_results(self, block: ResultBlock, rows: list[int], tickets: list[int]) -> None:
        if not self._answer.done():
            self._answer.set_result(block.result(rows[0]))

    def take_failure(self, ticket: int, error: FieldpostError) -> None:
        _settle(self._answer, error)


@dataclass(slots=True)
class _Model:
    package: ModelPackage
    kind: WorkerKind
    timeout_s: float


@dataclass(frozen=True, slots=True)
class _Sent:
    """A batch on its way; without any items it only loads the model, for whom `loaded` waits."""

    key: ModelKey
    priority: Priority
    waiting: list[Waiting[Request]]
    sent_s: float
    loaded: asyncio.Future[None] | None = None


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
        self._sent: dict[int, _Sent] = {}
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
            self._fail(waiting.value, TryAgainError(f"{key} was taken out of service", hint="ask the active version"))
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
        waiting = self.ask(key, item, _Promise(answer), 0, lane=lane, priority=priority, deadline_s=deadline_s)
        waiting.value.is_stored = is_stored
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
        if self._is_closed:
            raise TryAgainError("the server is stopping")
        if key not in self._models:
            raise UnknownModelError(f"expected a model version at work, but got {key}")
        try:
            waiting = self._policy.add(
                key,
                Request(item, asker, ticket),
                lane=lane,
                priority=priority,
                size_bytes=len(item.payload),
                now_s=self._loop.time(),
                deadline_s=deadline_s,
            )
        except TryAgainError:
            self.counts.refused += 1
            raise
        self._schedule_pump()
        return waiting

    def withdraw(self, waiting: Waiting[Request]) -> None:
        """Nobody wants the answer any more: the asker hears nothing more of it, and it leaves the queue."""
        waiting.value.is_over = True
        self.counts.cancelled += 1
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
            self._fail(each.value, stopping)
        for loaded in (*(loaded for _, loaded in self._loads), *(each.loaded for each in sent)):
            _settle(loaded, stopping)
        self._loads.clear()

    def on_done(self, worker: Worker, done: JobDone) -> None:
        """A worker answered."""
        sent = self._sent.pop(done.job_id, None)
        if sent is None:
            return  # closed meanwhile
        if sent.loaded is not None:
            _settle(sent.loaded, PredictionFailedError(done.failure) if done.failure else None)
        elif done.failure:
            self._take_failure(worker, sent, done)
        else:
            self._take_results(sent, done)
        self._pump()

    def _take_results(self, sent: _Sent, done: JobDone) -> None:
        try:
            _check_answer(done, len(sent.waiting))
        except ValueError as error:  # whatever a model's answer is, this loop lives on
            failure = f"the answer cannot be read: {error}"
            self._policy.note_lost(sent.key, sent.priority, done.duration_s)
            self._run_again(sent.waiting, 2, failure)
            return
        self._policy.note_cost(sent.key, len(sent.waiting), done.duration_s)
        self.model_counts[sent.key].deaths_in_a_row = 0
        for place, failure in done.refusals.items():
            self._fail_for_good(sent.waiting[place], failure)
            self.model_counts[sent.key].refused_callers += not sent.waiting[place].value.is_stored
        for block in done.blocks:
            self._hand_out(sent, block)

    def _hand_out(self, sent: _Sent, block: ResultBlock) -> None:
        """Tells each asker of its rows of a block."""
        told: dict[Asker, tuple[list[int], list[int]]] = {}
        for row, place in enumerate(block.places):
            request = sent.waiting[place].value
            if not request.is_over:
                request.is_over = True
                rows, tickets = told.setdefault(request.asker, ([], []))
                rows.append(row)
                tickets.append(request.ticket)
        self.counts.observations += len(block.places)
        self.model_counts[sent.key].predicted += len(block.places)
        for asker, (rows, tickets) in told.items():
            asker.take_results(block, rows, tickets)

    def _take_failure(self, worker: Worker, sent: _Sent, done: JobDone) -> None:
        count = len(sent.waiting)
        facts = {"model": str(sent.key), "worker": worker.name, "observation_count": count, "failure": done.failure}
        logger.warning("batch failed", extra=facts)
        self._policy.note_lost(sent.key, sent.priority, done.duration_s)
        if done.is_out_of_memory:
            self.counts.out_of_memory += 1
            if count == 1:
                self._policy.note_too_large(sent.key, sent.waiting[0].value.too_much_count)
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
                _settle(sent.loaded, TryAgainError(f"a worker was lost while it loaded {sent.key}: {reason}"))
                continue
            self._policy.note_lost(sent.key, sent.priority, self._loop.time() - sent.sent_s if is_blamed else 0.0)
            if is_blamed:
                self._blame(worker, sent, reason)
            else:
                self._run_again(sent.waiting, 1, reason)
        self._schedule_pump()

    def _blame(self, worker: Worker, sent: _Sent, reason: str) -> None:
        count = len(sent.waiting)
        facts = {"model": str(sent.key), "worker": worker.name, "observation_count": count, "reason": reason}
        logger.error("worker lost with a batch", extra=facts)
        self._policy.note_death(sent.key, self._loop.time())
        self.model_counts[sent.key].deaths_in_a_row += 1
        for waiting in sent.waiting:
            waiting.value.deaths += 1
        is_again = count == 1 and sent.waiting[0].value.deaths < DEATHS_MAX
        deaths = max(waiting.value.deaths for waiting in sent.waiting)
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
                self._fail(each.value, gone)
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
            self.counts.expired += 1
            self._fail(late.value, ExpiredError("no worker was free in time for the deadline", hint="allow more time"))
        self._set_expiry_timer()

    def _feed(self, worker: Worker) -> bool:
        """Gives a worker one job; returns whether there was one."""
        now_s = self._loop.time()
        if (sent := self._next_load(worker.kind, now_s)) is None:
            batch = self._policy.take(worker.kind, now_s)
            if batch is None:
                return False
            sent = _Sent(batch.key, batch.priority, batch.items, now_s)
            self.counts.batches += 1
        model = self._models[sent.key]
        job_id = next(self._job_ids)
        self._sent[job_id] = sent
        items = [waiting.value.item for waiting in sent.waiting]
        worker.send(Job(job_id, sent.key, items, model.timeout_s), model.package)
        return True

    def _next_load(self, kind: WorkerKind, now_s: float) -> _Sent | None:
        for _ in range(len(self._loads)):
            key, loaded = self._loads.popleft()
            model = self._models.get(key)
            if model is None:
                _settle(loaded, UnknownModelError(f"expected a model version at work, but got {key}"))
            elif model.kind is kind:
                return _Sent(key, Priority.LIVE, [], now_s, loaded)
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
        self.counts.observations += 1
        self.counts.failures += 1
        self.model_counts[waiting.key].failed += 1
        text = failure.encode("utf-8", "replace").decode()  # a model may say what no message can hold
        self._fail(waiting.value, PredictionFailedError(text))

    def _fail(self, request: Request, error: FieldpostError) -> None:
        if not request.is_over:
            request.is_over = True
            request.asker.take_failure(request.ticket, error)


def _check_answer(done: JobDone, item_count: int) -> None:
    """Raises ValueError where an answer is not about each observation of its batch, once."""
    for block in done.blocks:
        block.check()
    if not answers_all(done, item_count):
        raise ValueError(f"it is not about each of {item_count} observations, once")


def _settle(future: asyncio.Future[None] | asyncio.Future[AnalysisResult] | None, error: FieldpostError | None) -> None:
    """Ends a future that is not done yet; nobody has to look at it."""
    if future is None or future.done():
        return
    if error is None:
        future.set_result(None)  # type: ignore[arg-type]
    else:
        future.set_exception(error)
        future.exception()
