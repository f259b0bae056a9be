"""Finds what is still to be predicted, has it predicted, and stores the answers: one loop for each model version.

Nothing here is remembered that matters: after a crash the same query finds the same work. The cursor and the settled
mark only spare the query what is known to be done.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from dataclasses import dataclass, field

from fieldpost.errors import BrokenStateError, TryAgainError
from server.analyses import AnalysisResult
from server.batcher import Batcher, PredictionFailedError
from server.broadcast import Broadcast
from server.jobs import WorkItem
from server.pending import (
    ActiveModel,
    PendingObservation,
    find_pending,
    load_items,
    read_settled,
    write_settled,
)
from server.predictions import NewPrediction, encode_failure, encode_result, write_predictions
from server.store import Store

logger = logging.getLogger(__name__)

IN_FLIGHT_MAX = 1024
"""Observations of one model version in memory; enough to keep workers busy, little enough to lose."""
LOOK_AGAIN_S = 10.0
"""How often to look without being told: for what another process stored or registered."""
SETTLE_EVERY_S = 10.0
RETRY_WAIT_S = 1.0
WRITE_MAX = 256


@dataclass(slots=True)
class _Progress:
    """How far one model version has come."""

    cursor: int
    """Everything up to this observation was dispatched."""
    settled: int
    """The mark that stands in the database."""
    in_flight: set[int] = field(default_factory=set)
    broken: set[int] = field(default_factory=set)
    """Observations whose payload could not be read: not settled, so that a repair and a restart find them again."""

    def newly_settled(self) -> int:
        """Where the mark may stand now."""
        return min((*self.in_flight, *self.broken, self.cursor + 1), default=self.cursor + 1) - 1


class Dispatcher:
    """Keeps one active model version up to date.

    Args:
        store: Where observations are and predictions go.
        batcher: Who predicts.
        model: The model version.
        stored: Told when observations were stored.
        predicted: Told when predictions were stored.
    """

    def __init__(
        self, store: Store, batcher: Batcher, model: ActiveModel, *, stored: Broadcast, predicted: Broadcast
    ) -> None:
        self._store = store
        self._batcher = batcher
        self._model = model
        self._stored = stored
        self._predicted = predicted
        self._progress = _Progress(model.settled_observation_id, model.settled_observation_id)
        self._room = asyncio.Event()
        self._answers: asyncio.Queue[NewPrediction] = asyncio.Queue()

    async def run(self) -> None:
        """Runs until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._write_answers(), name="write-answers")
            tasks.create_task(self._dispatch(), name="dispatch")

    async def _dispatch(self) -> None:
        progress = self._progress
        settle_time_s = asyncio.get_running_loop().time() + SETTLE_EVERY_S
        while True:
            told = self._stored.listen()  # before looking: what is stored while we look is told again
            room = IN_FLIGHT_MAX - len(progress.in_flight)
            found = await asyncio.to_thread(self._find, progress.cursor, room)
            for pending, item in found:
                progress.cursor = max(progress.cursor, pending.observation_id)
                if isinstance(item, BrokenStateError):
                    progress.broken.add(pending.observation_id)
                    logger.error("payload lost", extra={"observation_id": pending.observation_id, "error": str(item)})
                else:
                    self._submit(pending, item)
            if asyncio.get_running_loop().time() >= settle_time_s:
                settle_time_s += SETTLE_EVERY_S
                await self._settle()
            elif len(progress.in_flight) > IN_FLIGHT_MAX // 2:
                self._room.clear()
                await self._room.wait()
            elif len(found) < room:
                with suppress(TimeoutError):
                    await asyncio.wait_for(told, LOOK_AGAIN_S)

    def _find(self, cursor: int, room: int) -> list[tuple[PendingObservation, WorkItem | BrokenStateError]]:
        with self._store.read() as connection:
            pending = find_pending(connection, self._model, cursor, room)
        return load_items(pending, self._store.read_segment)

    def _submit(self, pending: PendingObservation, item: WorkItem) -> None:
        card = self._model.card
        self._progress.in_flight.add(pending.observation_id)
        answer = self._batcher.submit(card.name, card.version, item, lane=str(pending.instrument_id))
        answer.add_done_callback(lambda done: self._take_answer(pending, done))

    def _take_answer(self, pending: PendingObservation, answer: asyncio.Future[AnalysisResult]) -> None:
        if answer.cancelled():
            return
        error = answer.exception()
        measure_unix_nanos = pending.measure_unix_nanos
        if error is None:
            samples = answer.result().sample_unix_nanos
            if len(samples):
                measure_unix_nanos = int(samples[0])
            content = encode_result(answer.result())
        elif isinstance(error, PredictionFailedError):
            logger.warning("no prediction", extra={"observation_id": pending.observation_id, "reason": str(error)})
            content = encode_failure(str(error))
        else:
            return  # the server is stopping: the next one finds it again
        self._answers.put_nowait(
            NewPrediction(
                pending.observation_id,
                self._model.row_id,
                pending.instrument_id,
                measure_unix_nanos,
                time.time_ns(),
                content,
                is_failure=error is not None,
                is_time_news=error is None and not pending.is_time_known,
            )
        )

    async def _write_answers(self) -> None:
        while True:
            answers = [await self._answers.get()]
            while len(answers) < WRITE_MAX and not self._answers.empty():
                answers.append(self._answers.get_nowait())
            await self._write(answers)
            self._progress.in_flight.difference_update(each.observation_id for each in answers)
            self._predicted.tell()
            if len(self._progress.in_flight) <= IN_FLIGHT_MAX // 2:
                self._room.set()

    async def _write(self, answers: list[NewPrediction]) -> None:
        """Writes, for as long as it takes: a full disk delays predictions, and loses none."""
        while True:
            try:
                await asyncio.wrap_future(self._store.write(lambda connection: write_predictions(connection, answers)))
                return
            except TryAgainError:
                await asyncio.sleep(RETRY_WAIT_S)

    async def _settle(self) -> None:
        """Moves the mark in the database, or follows it where registering has set it back."""
        progress, row_id = self._progress, self._model.row_id
        settled = progress.newly_settled()
        try:
            has_moved = await asyncio.wrap_future(
                self._store.write(lambda connection: write_settled(connection, row_id, progress.settled, settled))
            )
        except TryAgainError:
            return  # only a hint: the next time will do
        if has_moved:
            progress.settled = settled
        else:
            with self._store.read() as connection:
                progress.settled = progress.cursor = read_settled(connection, row_id)
