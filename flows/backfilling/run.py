"""Carries out a plan: batch after batch, what only the archive keeps is brought back, predicted and sent home again.

Each step may be the last one of a run: the next run derives from the store and the bags what is left. Knows no Prefect.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial

from fieldpost.errors import TryAgainError
from flows.archiving.archivist import ArchivedDay, Archivist
from flows.backfilling.archived_days import ArchivedDays
from flows.backfilling.parameters import BackfillParams
from flows.backfilling.plan import Plan
from flows.backfilling.predictors import StartPool, behind_all_others, open_predictors
from flows.backfilling.rate import MovingRate
from flows.backfilling.span import Batch, Span
from flows.backfilling.tally import Tally
from flows.restoring.restorer import Restorer
from flows.site import Site
from server.queries.predictions import PredictionFilter, retry_failures
from server.storage.store import Store

WRITE_WAIT_S = 120.0


class Step(StrEnum):
    """What a run has just done; a test ends runs there."""

    BROUGHT = "brought"
    FORGOT_FAILURES = "forgot-failures"
    PREDICTED = "predicted"
    SENT_HOME = "sent-home"


OnStep = Callable[[Step], None]


@dataclass(slots=True)
class Standing:
    """How far a run is.

    Attributes:
        waiting_count: Observations that waited when it began.
        tally: What was done.
        rate: How fast.
        archived: Days that were brought back, and archived again.
    """

    waiting_count: int
    tally: Tally = field(default_factory=Tally)
    rate: MovingRate = field(default_factory=MovingRate)
    archived: list[ArchivedDay] = field(default_factory=list)

    @property
    def share(self) -> float:
        """Of the work that is done, 0 to 1."""
        return min(1.0, self.tally.done_count / self.waiting_count) if self.waiting_count else 1.0

    @property
    def left_s(self) -> float | None:
        """How long the rest takes; None where that cannot be said yet."""
        return self.rate.left_s(self.waiting_count - self.tally.done_count)


def ignore_step(step: Step) -> None:
    """Who does not listen."""


def ignore_spans(spans: Sequence[Span]) -> None:
    """Likewise."""


def carry_out(
    site: Site,
    params: BackfillParams,
    plan: Plan,
    on_progress: Callable[[Standing], None],
    *,
    on_predicted: Callable[[Sequence[Span]], None] = ignore_spans,
    start_pool: StartPool | None = None,
    turn: Callable[[], AbstractContextManager[None]] = nullcontext,
    on_step: OnStep = ignore_step,
) -> Standing:
    """Does all that is to be done.

    Args:
        site: The server's.
        params: What a person chose.
        plan: From make_plan.
        on_progress: Told about once a second, in this thread.
        on_predicted: Told of pieces that were predicted, while all their days are in the hot store.
        start_pool: Starts the workers; by default behind all others on this machine.
        turn: Taken for each day that goes to the archive.
        on_step: Told of each step.

    Raises:
        FieldpostError: Something is in the way; what was done is done, and the next run goes on from there.
    """
    standing = Standing(plan.waiting_count)
    if not plan.batches:
        return standing
    archived_days = ArchivedDays(site, Restorer(site), Archivist(site), plan.bagged)
    processes = params.processes or max(1, (os.cpu_count() or 1) - 1)
    start_pool = start_pool or behind_all_others(processes, params.device)
    with open_predictors(site.store, plan.version, processes, start_pool) as predictors:
        standing.tally = predictors.tally

        def on_tick() -> None:
            standing.rate.note(time.monotonic(), standing.tally.done_count)
            on_progress(standing)

        on_tick()
        for batch in plan.batches:
            archived_days.check_room(batch.restored)
            for key in batch.restored:
                archived_days.bring(key)
                on_step(Step.BROUGHT)
            if params.retry_failures:
                _forget_failures(site.store, plan, batch)
                on_step(Step.FORGOT_FAILURES)
            predictors.predict(batch.spans, on_tick)
            on_step(Step.PREDICTED)
            on_predicted(batch.spans)
            for key in batch.released:
                with turn():
                    standing.archived.append(archived_days.send_home(key))
                on_step(Step.SENT_HOME)
        on_tick()
    return standing


def _forget_failures(store: Store, plan: Plan, batch: Batch) -> None:
    """Takes the failures of a batch away before it is predicted: where the run is ended then, they simply wait."""
    key = plan.version.card.key
    for span in batch.spans:
        wanted = PredictionFilter(
            span.instrument.station,
            span.instrument.instrument,
            *key,
            span.course.start_unix_nanos,
            span.course.end_unix_nanos,
        )
        written = store.write(partial(retry_failures, wanted=wanted))
        try:
            written.result(WRITE_WAIT_S)
        except TimeoutError as error:
            raise TryAgainError(
                f"the database did not forget the failures within {WRITE_WAIT_S:g} s", hint="run again"
            ) from error
