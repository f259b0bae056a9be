"""Workers inside the test's process: they compute in the event loop, and fail in the ways that real ones do."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from following_support import DIGITS, Digits

from fieldpost.v1 import observation_pb2 as pb
from server.analyses import Analysis, AnalysisInput, AnalysisResult
from server.models.card import ModelCard, ModelKind, ModelState, Restriction, Trial
from server.workers.jobs import Job, JobDone, ModelKey, ModelPackage, WorkItem
from server.workers.protocol import WorkerEvents, WorkerFacts, WorkerKind
from server.workers.worker import finish_in_blocks, is_out_of_memory, prepare_batch

LENGTH = ModelKey("length", 1)


class LengthAnalysis:
    """Answers with the payload's length; breaks on `poison`."""

    name, version, instrument_models, max_batch = "length", 1, frozenset({"any"}), 8

    def predict(self, batch: Sequence[AnalysisInput]) -> list[AnalysisResult | Exception]:
        if any(each.payload == b"poison" for each in batch):
            raise ZeroDivisionError("poisoned")
        if any(each.payload == b"unspeakable" for each in batch):
            raise ZeroDivisionError("\udcff")
        return [AnalysisResult(np.array([len(each.payload)], np.int64), ()) for each in batch]


class InProcessWorker:
    """A worker that answers after a while, and dies with a `deadly` payload.

    Attributes:
        jobs: What it was given, in order.
        delay_s: How long it computes; 0 for the next turn of the loop.
        memory_count: Observations for which its memory is enough.
        memory_bytes: Bytes of payloads for which it is.
        is_away: Takes nothing, as one that is starting.
        will_not_load: Model versions that it cannot load.
    """

    def __init__(
        self,
        events: WorkerEvents,
        name: str = "test-1",
        kind: WorkerKind = WorkerKind.BUILT_IN,
        *,
        delay_s: float = 0.0,
        slots: int = 1,
    ) -> None:
        self.events, self.name, self.kind, self.delay_s, self.slots = events, name, kind, delay_s, slots
        self.jobs: list[Job] = []
        self.loaded: set[ModelKey] = set()
        self.unloaded: list[ModelKey] = []
        self.deaths = 0
        self.memory_count = self.memory_bytes = 10**9
        self.is_away = self.is_closed = False
        self.will_not_load: set[ModelKey] = set()
        self._held: list[Job] = []

    @property
    def free_slots(self) -> int:
        return 0 if self.is_away or self.is_closed else self.slots - len(self._held)

    def send(self, job: Job, package: ModelPackage) -> None:
        assert package.key == job.key
        self.jobs.append(job)
        self._held.append(job)
        if len(self._held) == 1:
            self._begin()

    def _begin(self) -> None:
        loop = asyncio.get_running_loop()
        loop.call_later(self.delay_s, self._work) if self.delay_s else loop.call_soon(self._work)

    def _work(self) -> None:
        if self.is_closed or not self._held:
            return
        if self.is_away:
            asyncio.get_running_loop().call_later(0.01, self._work)
            return
        job = self._held[0]
        if any(item.payload == b"deadly" for item in job.items):
            self.deaths += 1
            lost, self._held = self._held, []
            self.loaded.clear()
            self.events.on_lost(self, lost, "killed by signal 9")
            return
        self._held.pop(0)
        if self._held:
            self._begin()
        self.events.on_done(self, self._compute(job))

    def _compute(self, job: Job) -> JobDone:
        if job.key in self.will_not_load:
            return JobDone(job.job_id, failure="cannot be loaded")
        self.loaded.add(job.key)
        if len(job.items) > self.memory_count or sum(len(each.payload) for each in job.items) > self.memory_bytes:
            return JobDone(job.job_id, failure="MemoryError", is_out_of_memory=True)
        analysis: Analysis = Digits() if job.key == DIGITS else LengthAnalysis()
        try:
            done = finish_in_blocks(job.job_id, analysis, prepare_batch(analysis, job.items, job.stretches))
        except Exception as error:
            return JobDone(job.job_id, failure=str(error), is_out_of_memory=is_out_of_memory(error))
        return replace(done, duration_s=1e-4 * len(job.items))

    def unload(self, key: ModelKey) -> None:
        self.loaded.discard(key)
        self.unloaded.append(key)

    def facts(self) -> WorkerFacts:
        return WorkerFacts(self.name, "cpu", not self.is_away, len(self.jobs), self.deaths, 0.0, 0)

    def close(self) -> None:
        self.is_closed = True


class InProcessPool:
    """A pool of such workers, of whatever kinds are asked for.

    Attributes:
        queues: What the pool was told of the queues, the newest last.
    """

    def __init__(self, events: WorkerEvents, count: int = 1, **worker: object) -> None:
        self.events, self._count, self._facts = events, count, worker
        self.workers: list[InProcessWorker] = []
        self.queues: list[tuple[WorkerKind, float, int]] = []

    def need(self, kind: WorkerKind) -> None:
        if not any(each.kind is kind for each in self.workers):
            for number in range(1, self._count + 1):
                self.workers.append(InProcessWorker(self.events, f"{kind}-{number}", kind, **self._facts))  # type: ignore[arg-type]

    def note_queue(self, kind: WorkerKind, oldest_s: float, waiting_count: int) -> None:
        self.queues.append((kind, oldest_s, waiting_count))

    def close(self) -> None:
        for worker in self.workers:
            worker.close()


def pool_of(pools: list[InProcessPool], count: int = 1, **worker: object) -> Callable[[WorkerEvents], InProcessPool]:
    """What starts a pool, which is then in `pools`."""

    def start(events: WorkerEvents) -> InProcessPool:
        pools.append(InProcessPool(events, count, **worker))
        return pools[-1]

    return start


def make_card(
    key: ModelKey = LENGTH,
    *,
    row_id: int = 1,
    state: ModelState = ModelState.ACTIVE,
    kind: ModelKind = ModelKind.BUILT_IN,
    instrument_models: frozenset[str] = frozenset({"cl51"}),
    restriction: Restriction = Restriction(),  # noqa: B008
    max_batch_count: int = 8,
) -> ModelCard:
    """A model version at work."""
    trial = Trial(max_batch_count=max_batch_count)
    return ModelCard(row_id, key, state, kind, instrument_models, restriction, trial)


def make_item(payload: bytes, payload_bytes: int | None = None) -> WorkItem:
    """An observation with this payload; with a false size, a damaged one."""
    size = len(payload) if payload_bytes is None else payload_bytes
    return WorkItem(payload, pb.PAYLOAD_ENCODING_IDENTITY, size, "any", 0)
