"""Worker processes of a backfill's own, and the loop that feeds them, in a thread beside the flow.

The kernel ends the workers with this thread, and so with the process, however that ends. Knows no flow and no Prefect;
who waits here is told of the time passing, and may look at the tally.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from fieldpost.errors import FieldpostError, RejectedError, TryAgainError
from flows.backfilling.courses import Courses
from flows.backfilling.low_priority import LowPriorityEngine
from flows.backfilling.pages import Pages
from flows.backfilling.span import Span, course_at
from flows.backfilling.tally import Tally
from server.analyses import CourseStart
from server.batching.batcher import Batcher
from server.models.card import ModelCard
from server.storage.store import Store
from server.workers.jobs import ModelPackage
from server.workers.protocol import WorkerEvents
from server.workers.worker_pool import Pool, PoolPlan, WorkerPool

logger = logging.getLogger(__name__)

TICK_S = 1.0
STALL_S = 900.0
"""Nothing was written for so long: the disk is full, the database gone, or the machine has no time to give."""
LOAD_S = 900.0
StartPool = Callable[[WorkerEvents], WorkerPool]
PATIENCE_RATIO = 30
"""So much longer than a live one may a batch take: who computes with what is left over is not hung."""


@dataclass(frozen=True, slots=True)
class Version:
    """The version that predicts.

    Attributes:
        card: What is known of it.
        package: What a worker loads.
        course_start: How it cuts time into courses; None where it does not remember.
        is_served: Whether who names no version is served what it says, since it is or was active.
    """

    card: ModelCard
    package: ModelPackage
    course_start: CourseStart | None
    is_served: bool = False


class Predictors:
    """Has pieces predicted, by one call after the other.

    Args:
        loop: Runs in a thread of its own.
        pages: For a version that forgets; exactly one of the two is there.
        courses: For one that remembers.
        version: The version.
        tally: What was done.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        pages: Pages | None,
        courses: Courses | None,
        version: Version,
        tally: Tally,
    ) -> None:
        self._loop = loop
        self._pages = pages
        self._courses = courses
        self._version = version
        self.tally = tally

    def predict(self, spans: Sequence[Span], on_tick: Callable[[], None]) -> None:
        """Predicts all that waits in these pieces.

        Args:
            spans: The pieces.
            on_tick: Called about once a second, in the caller's thread.

        Raises:
            TryAgainError: The store cannot be read or written, or the workers were lost for good.
        """
        self._wait(self._predict(list(spans)), on_tick)

    async def _predict(self, spans: list[Span]) -> None:
        try:
            if self._pages is not None:
                await self._pages.predict(spans)
            if self._courses is not None:
                await self._courses.predict(spans)
                moved = self._find_moved(self._courses, spans)
                if moved:
                    await self._courses.predict(moved)
        except* FieldpostError as group:
            raise _first(group) from group

    def _find_moved(self, courses: Courses, spans: Sequence[Span]) -> list[Span]:
        """The courses to which payloads have told that observations belong."""
        course_start, number = self._version.course_start, self._version.card.key.version
        assert course_start is not None  # since it remembers
        by_id = {span.instrument.instrument_id: span.instrument for span in spans}
        found = {}
        for instrument_id, unix_nanos in courses.moved_unix_nanos:
            instrument = by_id[instrument_id]
            course = course_at(instrument, number, course_start, unix_nanos)
            found[(instrument_id, course)] = Span(instrument, course)
        courses.moved_unix_nanos.clear()
        return [found[key] for key in sorted(found)]

    def _wait(self, work: Coroutine[Any, Any, None], on_tick: Callable[[], None]) -> None:
        future: Future[None] = asyncio.run_coroutine_threadsafe(work, self._loop)
        done, since_s = -1, time.monotonic()
        try:
            while True:
                try:
                    future.result(TICK_S)
                    return
                except TimeoutError:
                    if future.done():
                        raise
                if self.tally.done_count != done:
                    done, since_s = self.tally.done_count, time.monotonic()
                elif time.monotonic() - since_s > STALL_S:
                    raise TryAgainError(
                        f"no prediction was made and written for {STALL_S:.0f} s",
                        hint="look at the disk, the database and the load of this machine; then run again, it goes on "
                        "where it was",
                    )
                on_tick()
        finally:
            future.cancel()


def behind_all_others(processes: int, device: str) -> StartPool:
    """Processes on this machine that compute with what nobody else wants; on a GPU, one.

    Args:
        processes: How many, on the CPU.
        device: "cpu", or a GPU as "cuda:0".
    """
    plan = PoolPlan(workers=processes, devices=(device,))
    return lambda events: Pool(LowPriorityEngine(), plan, events)


@contextmanager
def open_predictors(store: Store, version: Version, processes: int, start_pool: StartPool) -> Iterator[Predictors]:
    """Starts the workers and has one of them load the version.

    Args:
        store: Where observations are and predictions go.
        version: Who predicts.
        processes: How many predict at once.
        start_pool: Starts them.

    Raises:
        RejectedError: The version cannot be loaded.
        TryAgainError: The workers do not start.
    """
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="backfill", daemon=True)
    thread.start()
    tally = Tally()

    async def start() -> Batcher:
        batcher = Batcher(start_pool)
        card = version.card
        batcher.add_model(version.package, replace(card, timeout_s=PATIENCE_RATIO * card.timeout_s))
        try:
            async with asyncio.timeout(LOAD_S):
                await batcher.load(card.key)
        except TimeoutError as error:
            batcher.close()
            raise TryAgainError(
                f"{card.key} was not loaded within {LOAD_S:.0f} s",
                hint="look at the log, and at the load of this machine",
            ) from error
        except BaseException:
            batcher.close()
            raise
        return batcher

    async def make(batcher: Batcher) -> tuple[Pages | None, Courses | None]:
        if version.course_start is None:
            return Pages(store, batcher, version.card, tally, processes), None
        return None, Courses(store, batcher, version.card, tally, processes)

    try:
        batcher = asyncio.run_coroutine_threadsafe(start(), loop).result()
        try:
            pages, courses = asyncio.run_coroutine_threadsafe(make(batcher), loop).result()
            yield Predictors(loop, pages, courses, version, tally)
        finally:
            asyncio.run_coroutine_threadsafe(_close(batcher), loop).result()
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _close(batcher: Batcher) -> None:
    batcher.close()
    others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    await asyncio.get_running_loop().shutdown_default_executor()


def _first(group: BaseExceptionGroup[FieldpostError]) -> FieldpostError:
    """The first of some errors; one that forbids to go on before one that may pass."""
    found: list[FieldpostError] = []
    for each in group.exceptions:
        found += [_first(each)] if isinstance(each, BaseExceptionGroup) else [each]
    return next((each for each in found if isinstance(each, RejectedError)), found[0])
