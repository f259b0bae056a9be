"""A worker over all its lives: fed, watched, and started again when it dies. Lives in the event loop.

- It takes jobs only once it has started and has loaded again what the workers of its kind have loaded: until then
  requests wait in the queue, where they can expire and other workers can take them, and not behind minutes of loading.
- A job's time counts from when the worker began with it: when it was sent, or when the one before it was answered.
  Loading a model has a time of its own.
- A life that ends without having been given a job makes the next one wait, a second at first and twice as long each
  time; after a life that worked the next begins at once.
- A model whose loading ends a life is not loaded again before somebody asks for it.

What a life is (a process here, an actor of Ray elsewhere) it does not know.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from server.workers.jobs import Job, JobDone, ModelKey, ModelPackage
from server.workers.protocol import WorkerEvents, WorkerFacts, WorkerKind
from server.workers.worker_wire import (
    Answer,
    Buffer,
    Load,
    Loaded,
    Ready,
    Unload,
    answers_all,
    encode_message,
)

logger = logging.getLogger(__name__)

JOBS_MAX = 2
START_TIMEOUT_S = 120.0
LOAD_TIMEOUT_S = 300.0
RESTART_WAIT_MIN_S = 1.0
RESTART_WAIT_MAX_S = 60.0


@dataclass(frozen=True, slots=True)
class Ended:
    """A life is over, for a reason."""

    reason: str


class Life(Protocol):
    """One life of a worker."""

    def send(self, parts: Sequence[Buffer]) -> None:
        """Lets a frame go out; returns at once."""

    def kill(self) -> None:
        """Ends it at once; it reports that it ended."""

    def join(self) -> None:
        """Waits until a killed one is gone."""

    def memory_bytes(self) -> int:
        """Resident memory of its process; 0 where that is not known."""


Report = Answer | Ended
StartLife = Callable[[Callable[[Report], None]], Life]
"""Starts a life, which reports what it says from any thread; the last report is that it ended."""


class SupervisedWorker:
    """One worker.

    Args:
        name: Its name.
        kind: Which models it runs.
        device: What it is to compute with.
        start_life: Starts one of its lives.
        events: Who hears of it.
        packages: What the workers of this kind have loaded; they share it.
    """

    def __init__(
        self,
        name: str,
        kind: WorkerKind,
        device: str,
        start_life: StartLife,
        events: WorkerEvents,
        packages: dict[ModelKey, ModelPackage],
    ) -> None:
        self.name = name
        self.kind = kind
        self._device = device
        self._start_life = start_life
        self._events = events
        self._packages = packages
        self._loop = asyncio.get_running_loop()
        self._jobs: dict[int, Job] = {}
        self._on_retired: Callable[[], None] | None = None
        self._is_closed = False
        self._batch_count = self._restart_count = self._failed_starts = 0
        self._busy_s = 0.0
        self._last_death = ""
        self._restart_timer: asyncio.TimerHandle | None = None
        self._life_number = 0
        self._start()

    @property
    def free_slots(self) -> int:
        """How many more jobs it takes now."""
        return JOBS_MAX - len(self._jobs) if self.is_ready and self._on_retired is None else 0

    @property
    def is_ready(self) -> bool:
        """Whether it lives, and has loaded what it had to."""
        return self._has_started and not self._preloading

    def send(self, job: Job, package: ModelPackage) -> None:
        """Gives it a job; one that it does not live to answer comes back through on_lost."""
        if job.key not in self._told:
            self._tell_to_load(package)
        self._jobs[job.job_id] = job
        self._has_worked = True
        self._life.send(encode_message(job))
        if len(self._jobs) == 1:
            self._watch()

    def unload(self, key: ModelKey) -> None:
        """Lets it forget a model version."""
        self._packages.pop(key, None)
        if key in self._told:
            self._told.remove(key)
            self._loaded.discard(key)
            self._preloading.discard(key)
            self._life.send(encode_message(Unload(key)))

    def facts(self) -> WorkerFacts:
        """How it is."""
        return WorkerFacts(
            name=self.name,
            device=self._device,
            is_ready=self.is_ready,
            batch_count=self._batch_count,
            restart_count=self._restart_count,
            busy_s=self._busy_s,
            memory_bytes=self._life.memory_bytes(),
            last_death=self._last_death,
        )

    def busy_s(self) -> float:
        """How long it has computed until now; the job that it has counts too."""
        return self._busy_s + (self._loop.time() - self._began_s if self._jobs else 0.0)

    def retire(self, on_retired: Callable[[], None]) -> None:
        """Takes no more jobs, and closes when it has none; then calls back."""
        self._on_retired = on_retired
        self._end_if_retired()

    def close(self) -> None:
        """Ends it; it finishes nothing, and says nothing more."""
        self._is_closed = True
        for timer in (self._restart_timer, self._watchdog):
            if timer is not None:
                timer.cancel()
        self._life.kill()
        self._life.join()

    def _start(self) -> None:
        self._life_number += 1
        number = self._life_number
        self._has_started = self._has_worked = False
        self._told: set[ModelKey] = set()
        self._loaded: set[ModelKey] = set()
        self._preloading: set[ModelKey] = set()
        self._load_count = 0  # that are not answered yet
        self._life_reason = ""
        self._watchdog: asyncio.TimerHandle | None = None
        self._life = self._start_life(lambda report: self._call(number, report))
        for package in list(self._packages.values()):
            self._tell_to_load(package)
            self._preloading.add(package.key)
        self._watch()

    def _call(self, life_number: int, report: Report) -> None:
        """Runs in a thread of the life."""
        try:
            self._loop.call_soon_threadsafe(self._hear, life_number, report)
        except RuntimeError:
            logger.debug("a worker reported after the event loop's end")

    def _hear(self, life_number: int, report: Report) -> None:
        if self._is_closed or life_number != self._life_number:
            return
        if isinstance(report, Ended):
            self._bury(report.reason)
            return
        if isinstance(report, JobDone):
            self._finish(report)
        elif isinstance(report, Loaded):
            self._note_loaded(report)
        elif isinstance(report, Ready):
            self._has_started = True
            self._device = report.device
            logger.info(
                "worker started",
                extra={"worker": self.name, "device": report.device, "confinements": list(report.confinements)},
            )
            self._note_ready()
        self._watch()

    def _finish(self, done: JobDone) -> None:
        job = next(iter(self._jobs.values()), None)
        if job is None or job.job_id != done.job_id or not answers_all(done, len(job.items), len(job.stretches)):
            self._end_life("it answered what it was not asked")
            return
        del self._jobs[done.job_id]
        took_s = min(max(0.0, done.duration_s), job.timeout_s)  # 0 for NaN: it may say anything, and we reckon with it
        if took_s != done.duration_s:
            done = replace(done, duration_s=took_s)
        self._batch_count += 1
        self._busy_s += done.duration_s
        self._failed_starts = 0
        self._events.on_done(self, done)
        self._end_if_retired()

    def _note_loaded(self, report: Loaded) -> None:
        self._load_count -= 1
        if self._load_count < 0:
            self._end_life("it loaded what it was not told to")
        elif report.failure:
            logger.error("model was not loaded", extra={"worker": self.name, "model": str(report.key)})
            self._told.discard(report.key)  # the next job brings it again
            self._packages.pop(report.key, None)
        elif report.key in self._told:  # otherwise it was told to forget it meanwhile
            self._loaded.add(report.key)
        if report.key in self._preloading:
            self._preloading.remove(report.key)
            self._note_ready()

    def _note_ready(self) -> None:
        if self.is_ready:
            self._failed_starts = 0
            self._events.on_ready()

    def _tell_to_load(self, package: ModelPackage) -> None:
        self._told.add(package.key)
        self._packages[package.key] = package
        self._load_count += 1
        self._life.send(encode_message(Load(package)))

    def _watch(self) -> None:
        """Starts the clock of what the worker does now."""
        if self._watchdog is not None:
            self._watchdog.cancel()
            self._watchdog = None
        self._began_s = self._loop.time()
        job = next(iter(self._jobs.values()), None)
        if not self._has_started:
            self._watch_for(START_TIMEOUT_S, "it did not start within")
        elif self._told - self._loaded and (job is None or job.key not in self._loaded):
            self._watch_for(LOAD_TIMEOUT_S, "loading a model took longer than")
        elif job is not None:
            self._watch_for(job.timeout_s, f"it hung: a batch for {job.key} took longer than")

    def _watch_for(self, timeout_s: float, text: str) -> None:
        self._watchdog = self._loop.call_later(timeout_s, self._end_life, f"{text} {timeout_s:g} s")

    def _end_life(self, reason: str) -> None:
        self._life_reason = reason
        self._has_started = False  # takes nothing more
        self._life.kill()

    def _bury(self, status: str) -> None:
        if self._watchdog is not None:
            self._watchdog.cancel()
        reason = self._life_reason or status
        self._last_death = reason
        self._has_started = False
        lost, self._jobs = list(self._jobs.values()), {}
        being_loaded = next((key for key in self._packages if key in self._told - self._loaded), None)
        if being_loaded is not None:
            del self._packages[being_loaded]
        wait_s = 0.0
        if not self._has_worked:
            wait_s = min(RESTART_WAIT_MIN_S * 2**self._failed_starts, RESTART_WAIT_MAX_S)
            self._failed_starts += 1
        logger.error(
            "worker died",
            extra={"worker": self.name, "reason": reason, "job_count": len(lost), "restart_wait_s": wait_s},
        )
        self._restart_timer = self._loop.call_later(wait_s, self._restart)
        if lost:
            self._events.on_lost(self, lost, reason)
        self._end_if_retired()

    def _restart(self) -> None:
        self._restart_count += 1
        try:
            self._start()
        except OSError as error:  # no memory, no process or no file left for one more: later there may be
            self._bury(f"it could not be started: {error}")

    def _end_if_retired(self) -> None:
        if self._on_retired is not None and not self._jobs and not self._is_closed:
            self.close()
            self._on_retired()
