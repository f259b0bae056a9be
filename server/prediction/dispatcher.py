"""Finds what is still to be predicted, has it predicted, and stores the answers, for one model version at work.

Two streams: *live*, what came fresh since the version was put to work, and *backlog*, everything else. Neither waits
for the other. Within each, the predictions of an instrument are stored in the order of its observations.

Nothing here is remembered that matters: after a crash the same query finds the same work. The cursors and the settled
mark only spare the query what is known to be done.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field

from fieldpost.errors import BrokenStateError, OverloadedError, TryAgainError
from server.analyses import AnalysisResult
from server.batching.batcher import Batcher, PredictionFailedError
from server.batching.policy import MIB
from server.broadcast import Broadcast
from server.models.card import ModelCard
from server.prediction.answer_order import AnswerOrder
from server.prediction.answers import Answer, begin_trip, commit_at_last, make_answer, note_stored
from server.prediction.pending import PendingObservation, Span, find_pending, last_observation_id, load_item
from server.prediction.settled import SettledMark
from server.prediction.streams import Stream, choose_priority, go_back, read_live_mark
from server.queries.predictions import write_predictions
from server.storage.store import Store
from server.telemetry.observer import Observer, Trip
from server.workers.jobs import WorkItem

logger = logging.getLogger(__name__)

IN_FLIGHT_MAX = 1024
"""Observations of one stream in memory; enough to keep workers busy, little enough to lose."""
IN_FLIGHT_BYTES_MAX = 128 * MIB
"""Of their payloads; a larger one goes alone."""
RETRY_WAIT_S = 1.0
OVERLOAD_WAIT_S = 0.1
WRITE_MAX = 256


@dataclass(slots=True)
class _Stream(Stream):
    """One of the two streams, with what is on its way.

    Attributes:
        in_flight: Bytes by observation of what is not stored yet.
        order: Of their answers.
        has_room: Whether at most half of what may be in flight is.
    """

    in_flight: dict[int, int] = field(default_factory=dict)
    in_flight_bytes: int = 0
    order: AnswerOrder[Answer | TryAgainError] = field(default_factory=AnswerOrder)
    has_room: asyncio.Event = field(default_factory=asyncio.Event)

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
        self._answers: asyncio.Queue[tuple[_Stream, Answer | TryAgainError]] = asyncio.Queue()
        self._asked: set[asyncio.Future[AnalysisResult]] = set()

    async def run(self) -> None:
        """Runs until cancelled.

        Raises:
            TryAgainError: The store cannot be read, or the model version was taken out of service.
        """
        mark = SettledMark(self._store, self._card)
        settled_id = await asyncio.to_thread(mark.read)
        mark_id = await asyncio.to_thread(read_live_mark, self._store)
        live, backlog = _Stream(True, mark_id, mark_id), _Stream(False, mark_id, settled_id)
        self._live, self._backlog = live, backlog
        tasks = [
            asyncio.create_task(self._write_answers(), name="write-answers"),
            asyncio.create_task(self._dispatch(live), name="dispatch-live"),
            asyncio.create_task(self._dispatch(backlog), name="dispatch-backlog"),
            asyncio.create_task(mark.keep(settled_id, self._find_done, self._look_again), name="settle"),
        ]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for answer in list(self._asked):
                answer.cancel()  # nobody would store it

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
                    await stream.wait(told)

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
        priority = choose_priority(self._card.state, is_live=stream.is_live)
        while True:
            try:
                answer = self._batcher.submit(
                    self._card.key, item, lane=str(pending.instrument_id), priority=priority, is_stored=True
                )
                break
            except OverloadedError:  # others ask for the same version; what is stored can wait
                await asyncio.sleep(OVERLOAD_WAIT_S)
        stream.enter(pending)
        self._asked.add(answer)
        trip = begin_trip(pending)
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
    ) -> Answer | TryAgainError:
        error = answer.exception()
        if error is None:
            return make_answer(self._card, pending, trip, answer.result())
        if isinstance(error, PredictionFailedError):
            return make_answer(self._card, pending, trip, str(error))
        return error if isinstance(error, TryAgainError) else TryAgainError(str(error))

    async def _write_answers(self) -> None:
        while True:
            group = [await self._answers.get()]
            while len(group) < WRITE_MAX and not self._answers.empty():
                group.append(self._answers.get_nowait())
            answers: list[Answer] = []
            for _, answer in group:
                if isinstance(answer, TryAgainError):
                    raise answer  # taken out of service: whoever runs this finds the same work again
                answers.append(answer)
            predictions = [each.prediction for each in answers]
            await commit_at_last(self._store, lambda connection, new=predictions: write_predictions(connection, new))  # type: ignore[misc]
            for (stream, _), answer in zip(group, answers, strict=True):
                stream.leave(answer.prediction.observation_id)
                note_stored(self._observer, self._card, answer)
            self._predicted.tell()

    def _find_done(self) -> int:
        live, backlog = self._live, self._backlog
        waiting = (*live.in_flight, *backlog.in_flight, *self._broken_ids)
        return min((backlog.cursor, live.cursor, *(each - 1 for each in waiting)))

    def _look_again(self, after_id: int) -> None:
        go_back(self._live, self._backlog, after_id)
        self._broken_ids.clear()
