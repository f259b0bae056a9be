"""Finds what is still to be predicted, has it predicted, and stores the answers, for one model version at work.

Two streams: *live*, what came fresh since the version was put to work, and *backlog*, everything else. Neither waits
for the other. Within each, the predictions of an instrument are stored in the order of its observations.

Nothing here is remembered that matters: after a crash the same query finds the same work. The cursors and the settled
mark only spare the query what is known to be done.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TypeVar

from sqlalchemy import Connection

from fieldpost.errors import BrokenStateError, OverloadedError, TryAgainError
from server.analyses import AnalysisResult
from server.batching.batcher import Batcher, PredictionFailedError
from server.batching.policy import MIB, Priority
from server.broadcast import Broadcast
from server.models.card import ModelCard, ModelState
from server.prediction.answer_order import AnswerOrder
from server.prediction.pending import (
    PendingObservation,
    Span,
    find_live_mark,
    find_pending,
    last_observation_id,
    load_item,
    move_settled,
    read_settled,
)
from server.queries.predictions import NewPrediction, encode_failure, encode_result, write_predictions
from server.storage.store import Store
from server.telemetry.observer import Observer, Trip
from server.workers.jobs import WorkItem

logger = logging.getLogger(__name__)

T = TypeVar("T")
IN_FLIGHT_MAX = 1024
"""Observations of one stream in memory; enough to keep workers busy, little enough to lose."""
IN_FLIGHT_BYTES_MAX = 128 * MIB
"""Of their payloads; a larger one goes alone."""
LOOK_AGAIN_S = 10.0
"""How often to look without being told: for what another process stored or registered."""
BACKLOG_WAIT_S = 0.1
"""The backlog is in no hurry: it lets what is stored come together, and leaves the database to the live stream."""
SETTLE_EVERY_S = 10.0
SETTLE_AGAIN_S = 0.2
SETTLE_IDS_MAX = 2000
"""Observations over which the mark moves at once: what is moved over is looked at, and others wait to write."""
RETRY_WAIT_S = 1.0
OVERLOAD_WAIT_S = 0.1
WRITE_MAX = 256


@dataclass(frozen=True, slots=True)
class _Answer:
    """A prediction that is to be stored, and what is told of it when it is."""

    prediction: NewPrediction
    trip: Trip
    failure: str


@dataclass(slots=True)
class _Stream:
    """One of the two streams.

    Attributes:
        is_live: Which.
        priority: What its observations yield to.
        mark_id: The last observation that is no live one, however fresh it was.
        cursor: Everything of this stream up to this observation was dispatched.
        in_flight: Bytes by observation of what is not stored yet.
        order: Of their answers.
        has_room: Whether at most half of what may be in flight is.
    """

    is_live: bool
    priority: Priority
    mark_id: int
    cursor: int
    in_flight: dict[int, int] = field(default_factory=dict)
    in_flight_bytes: int = 0
    order: AnswerOrder[_Answer | TryAgainError] = field(default_factory=AnswerOrder)
    has_room: asyncio.Event = field(default_factory=asyncio.Event)

    def span(self) -> Span:
        """What is to be looked at next."""
        return Span(self.is_live, self.mark_id, self.cursor)

    def enter(self, pending: PendingObservation) -> None:
        """An observation is on its way."""
        self.in_flight[pending.observation_id] = pending.place.length
        self.in_flight_bytes += pending.place.length
        self.order.ask(pending.instrument_id, pending.observation_id)

    def leave(self, observation_id: int) -> None:
        """Its prediction is stored."""
        self.in_flight_bytes -= self.in_flight.pop(observation_id)
        if len(self.in_flight) <= IN_FLIGHT_MAX // 2 and self.in_flight_bytes <= IN_FLIGHT_BYTES_MAX // 2:
            self.has_room.set()

    @property
    def is_full(self) -> bool:
        """Whether to wait before anything more is looked for."""
        return len(self.in_flight) > IN_FLIGHT_MAX // 2 or self.in_flight_bytes > IN_FLIGHT_BYTES_MAX // 2


@dataclass(slots=True)
class _Found:
    """What a look has found."""

    span: Span
    until_id: int
    is_all: bool
    """Whether nothing more is there now."""
    is_cut: bool = False
    """Whether there was no room for the bytes of the next one."""
    loaded: list[tuple[PendingObservation, WorkItem]] = field(default_factory=list)
    broken_ids: list[int] = field(default_factory=list)


class Dispatcher:
    """Keeps one model version up to date.

    Args:
        store: Where observations are and predictions go.
        batcher: Who predicts; the model version was added to it.
        card: The model version.
        stored: Told when observations were stored.
        predicted: Told when predictions were stored.
        observer: Told of each prediction that is stored; None where nobody looks.
    """

    def __init__(
        self,
        store: Store,
        batcher: Batcher,
        card: ModelCard,
        *,
        stored: Broadcast,
        predicted: Broadcast,
        observer: Observer | None = None,
    ) -> None:
        self._observer = observer
        self._store = store
        self._batcher = batcher
        self._card = card
        self._stored = stored
        self._predicted = predicted
        self._broken_ids: set[int] = set()
        """Observations whose payload could not be read: not settled, so that a repair and a restart find them again."""
        self._answers: asyncio.Queue[tuple[_Stream, _Answer | TryAgainError]] = asyncio.Queue()
        self._asked: set[asyncio.Future[AnalysisResult]] = set()

    async def run(self) -> None:
        """Runs until cancelled.

        Raises:
            TryAgainError: The store cannot be read, or the model version was taken out of service.
        """
        is_shadow = self._card.state == ModelState.SHADOW
        mark_id, self._settled_id = await asyncio.to_thread(self._read_marks)
        live = _Stream(True, Priority.SHADOW if is_shadow else Priority.LIVE, mark_id, mark_id)
        backlog = _Stream(False, Priority.SHADOW if is_shadow else Priority.BACKFILL, mark_id, self._settled_id)
        self._live, self._backlog = live, backlog
        tasks = [
            asyncio.create_task(self._write_answers(), name="write-answers"),
            asyncio.create_task(self._dispatch(live), name="dispatch-live"),
            asyncio.create_task(self._dispatch(backlog), name="dispatch-backlog"),
            asyncio.create_task(self._keep_settled(), name="settle"),
        ]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for answer in list(self._asked):
                answer.cancel()  # nobody would store it

    def _read_marks(self) -> tuple[int, int]:
        with self._store.read() as connection:
            return find_live_mark(connection, time.time_ns()), read_settled(connection, self._card.row_id)

    def _read_settled(self) -> int:
        with self._store.read() as connection:
            return read_settled(connection, self._card.row_id)

    async def _dispatch(self, stream: _Stream) -> None:
        while True:
            told = self._stored.listen()  # before looking: what is stored while we look is told again
            if stream.is_full:
                stream.has_room.clear()
                await stream.has_room.wait()
            try:
                found = await asyncio.to_thread(
                    self._find, stream.span(), len(stream.in_flight), stream.in_flight_bytes
                )
            except TryAgainError as error:
                logger.warning("nothing to be found", extra={"model": str(self._card.key), "error": str(error)})
                await asyncio.sleep(RETRY_WAIT_S)
                continue
            self._broken_ids.update(found.broken_ids)
            for pending, item in found.loaded:
                if not any(pending.observation_id in each.in_flight for each in (self._live, self._backlog)):
                    await self._submit(stream, pending, item)
            if stream.span() == found.span:  # otherwise it was set back meanwhile, and looks again from there
                stream.cursor = found.until_id
                if found.is_cut and stream.in_flight:
                    stream.has_room.clear()
                    await stream.has_room.wait()
                if found.is_all:
                    with suppress(TimeoutError):
                        # wait_for would forget a cancellation that comes together with the news
                        async with asyncio.timeout(LOOK_AGAIN_S):
                            await told
                    if not stream.is_live:
                        await asyncio.sleep(BACKLOG_WAIT_S)

    def _find(self, span: Span, in_flight_count: int, in_flight_bytes: int) -> _Found:
        """Runs in a thread: looks, and reads as many payloads as there is room for; one too large only if alone."""
        with self._store.read() as connection:
            pending, until_id = find_pending(connection, self._card, span, IN_FLIGHT_MAX - in_flight_count)
            last_id = last_observation_id(connection)
        found = _Found(span, until_id, is_all=until_id >= last_id)
        for each in pending:
            in_flight_bytes += each.place.length
            if in_flight_bytes > IN_FLIGHT_BYTES_MAX and (found.loaded or in_flight_count):
                found.until_id, found.is_all, found.is_cut = each.observation_id - 1, False, True
                break
            try:
                found.loaded.append(load_item(each, self._store.read_segment))
            except BrokenStateError as error:
                found.broken_ids.append(each.observation_id)
                logger.error("payload lost", extra={"observation_id": each.observation_id, "error": str(error)})
        return found

    async def _submit(self, stream: _Stream, pending: PendingObservation, item: WorkItem) -> None:
        while True:
            try:
                answer = self._batcher.submit(
                    self._card.key, item, lane=str(pending.instrument_id), priority=stream.priority, is_stored=True
                )
                break
            except OverloadedError:  # others ask for the same version; what is stored can wait
                await asyncio.sleep(OVERLOAD_WAIT_S)
        stream.enter(pending)
        self._asked.add(answer)
        trip = Trip(pending.identity, pending.capture_unix_nanos, pending.is_live, time.time_ns())
        answer.add_done_callback(lambda done: self._take_answer(stream, pending, trip, done))

    def _take_answer(
        self, stream: _Stream, pending: PendingObservation, trip: Trip, answer: asyncio.Future[AnalysisResult]
    ) -> None:
        self._asked.discard(answer)
        if answer.cancelled():
            return
        judged = self._judge(pending, trip, answer)
        for due in stream.order.answer(pending.instrument_id, pending.observation_id, judged):
            self._answers.put_nowait((stream, due))

    def _judge(
        self, pending: PendingObservation, trip: Trip, answer: asyncio.Future[AnalysisResult]
    ) -> _Answer | TryAgainError:
        error = answer.exception()
        measure_unix_nanos, failure = pending.measure_unix_nanos, ""
        if error is None:
            result = answer.result()
            try:
                content = encode_result(result)
                if len(result.sample_unix_nanos):
                    measure_unix_nanos = int(result.sample_unix_nanos[0])
            except (TypeError, ValueError, AttributeError) as odd:  # a model may say anything
                failure = f"the prediction cannot be stored: {type(odd).__name__}: {odd}"
        elif isinstance(error, PredictionFailedError):
            failure = str(error)
        else:
            return error if isinstance(error, TryAgainError) else TryAgainError(str(error))
        if failure:
            logger.warning("no prediction", extra={"observation_id": pending.observation_id, "reason": failure})
            content = encode_failure(failure)
        prediction = NewPrediction(
            pending.observation_id,
            self._card.row_id,
            pending.instrument_id,
            measure_unix_nanos,
            time.time_ns(),
            content,
            is_failure=bool(failure),
            is_time_news=not failure and not pending.is_time_known,
        )
        return _Answer(prediction, trip, failure)

    async def _write_answers(self) -> None:
        while True:
            group = [await self._answers.get()]
            while len(group) < WRITE_MAX and not self._answers.empty():
                group.append(self._answers.get_nowait())
            answers: list[_Answer] = []
            for _, answer in group:
                if isinstance(answer, TryAgainError):
                    raise answer  # taken out of service: whoever runs this finds the same work again
                answers.append(answer)
            await self._write([each.prediction for each in answers])
            for (stream, _), answer in zip(group, answers, strict=True):
                stream.leave(answer.prediction.observation_id)
                if self._observer is not None:
                    made_unix_nanos = answer.prediction.predict_unix_nanos
                    self._observer.note_predicted(str(self._card.key), answer.trip, made_unix_nanos, answer.failure)
            self._predicted.tell()

    async def _write(self, predictions: list[NewPrediction]) -> None:
        """Writes, for as long as it takes: a full disk delays predictions, and loses none."""
        while True:
            try:
                await self._commit(lambda connection: write_predictions(connection, predictions))
                return
            except TryAgainError as error:
                logger.warning("predictions wait for the store", extra={"error": str(error)})
                await asyncio.sleep(RETRY_WAIT_S)

    async def _commit(self, operation: Callable[[Connection], T]) -> T:
        """Writes. Whoever is cancelled meanwhile leaves the write alone: it may be half-way through its group."""
        return await asyncio.shield(asyncio.wrap_future(self._store.write(operation)))

    async def _keep_settled(self) -> None:
        is_behind = False
        while True:
            await asyncio.sleep(SETTLE_AGAIN_S if is_behind else SETTLE_EVERY_S)
            with suppress(TryAgainError):  # only a hint: the next time will do
                is_behind = await self._settle()

    async def _settle(self) -> bool:
        """Moves the mark in the database, or follows it where somebody has set it back; returns whether it lags."""
        live, backlog, card = self._live, self._backlog, self._card
        before, there = self._settled_id, await asyncio.to_thread(self._read_settled)
        if there < before:
            self._look_again(there)
        self._settled_id = there
        done = min(backlog.cursor, live.cursor)
        done = min((done, *(each - 1 for each in (*live.in_flight, *backlog.in_flight, *self._broken_ids))))
        if done <= there:
            return False
        settled = min(done, there + SETTLE_IDS_MAX)
        reached = await self._commit(lambda connection: move_settled(connection, card, expected=there, settled=settled))
        if reached is not None:
            self._settled_id = reached
            if reached < settled:
                self._look_again(reached)
        return settled < done

    def _look_again(self, after_id: int) -> None:
        """Goes back: what is live and behind us may wait again too, and is backlog like all the rest from here on."""
        self._live.mark_id = self._backlog.mark_id = self._live.cursor
        self._backlog.cursor = min(self._backlog.cursor, after_id)
        self._broken_ids.clear()
