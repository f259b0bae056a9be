"""Keeps batcher and dispatchers as the catalogue of models says, and finds a model version for who asks by name.

The rule at every change: the next version is loaded, then it starts, then the one before it stops and is unloaded. So
nothing waits for a model that is being loaded, but what only that model can answer. Knows no RPC and no worker.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TypedDict

from fieldpost.errors import FieldpostError, RejectedError, TryAgainError, UnknownModelError
from server.analyses import find_course_start
from server.batching.batcher import Batcher
from server.broadcast import Broadcast
from server.models import catalogue
from server.models.card import ModelCard, ModelKind, ModelState
from server.models.files import ModelFiles
from server.prediction.dispatcher import Dispatcher
from server.prediction.following import Follower
from server.storage.store import Store
from server.telemetry.observer import Observer
from server.workers.jobs import ModelKey, ModelPackage

logger = logging.getLogger(__name__)

LOOK_AGAIN_S = 10.0
LOAD_TIMEOUT_S = 300.0
LOADS_MAX = 3
"""Where workers were lost this often while they loaded a version, it cannot be loaded."""
UNUSED_MAX_S = 600.0
"""A version that was only asked by number is unloaded after this time without a question."""
RETRY_WAIT_MIN_S = 1.0
RETRY_WAIT_MAX_S = 60.0


class _Told(TypedDict):
    """Who is told of what, and tells."""

    stored: Broadcast
    predicted: Broadcast
    observer: Observer | None


@dataclass(slots=True)
class _AtWork:
    """A version that predicts what is stored.

    Attributes:
        card: As the catalogue had it when the version was put to work.
        is_proved: Whether a worker has loaded it, or has shown that it cannot.
        failed_loads: Times that it was not loaded.
        task: Loads it, and runs its dispatcher.
    """

    card: ModelCard
    is_proved: bool = False
    failed_loads: int = 0
    task: asyncio.Task[None] | None = None

    def is_still(self, card: ModelCard) -> bool:
        """Whether nothing changed that the dispatcher must know of."""
        mine = self.card
        return (mine.state, mine.restriction, mine.instrument_models) == (
            card.state,
            card.restriction,
            card.instrument_models,
        )


@dataclass(slots=True)
class _Asked:
    """A version that somebody asked for by name or number.

    Attributes:
        card: As the catalogue had it.
        loading: Done when it is loaded.
        last_asked_s: When it was asked for last.
    """

    card: ModelCard
    loading: asyncio.Task[None]
    last_asked_s: float = field(default=0.0)

    @property
    def has_failed(self) -> bool:
        """Whether it could not be loaded; the next one who asks tries again."""
        return self.loading.done() and not self.loading.cancelled() and self.loading.exception() is not None


class Predicting:
    """All predicting of one server process.

    Args:
        store: Where observations are and predictions go.
        batcher: Who predicts.
        files: Where users' models lie.
        stored: Told when observations were stored.
        predicted: Told when predictions were stored.
        models_changed: Told when the catalogue changed.
        observer: Told of each prediction that is stored; None where nobody looks.
    """

    def __init__(
        self,
        store: Store,
        batcher: Batcher,
        files: ModelFiles,
        *,
        stored: Broadcast,
        predicted: Broadcast,
        models_changed: Broadcast,
        observer: Observer | None = None,
    ) -> None:
        self._observer = observer
        self._store = store
        self._batcher = batcher
        self._files = files
        self._stored = stored
        self._predicted = predicted
        self._models_changed = models_changed
        self._loop = asyncio.get_running_loop()
        self._at_work: dict[ModelKey, _AtWork] = {}
        self._asked: dict[ModelKey, _Asked] = {}
        self._active: dict[str, ModelKey] = {}

    async def run(self) -> None:
        """Runs until cancelled."""
        try:
            while True:
                told = self._models_changed.listen()  # before looking: a change while we look is told again
                try:
                    await self._reconcile()
                except FieldpostError as error:  # what runs goes on
                    logger.error("models not looked up", extra={"error": str(error)})
                with suppress(TimeoutError):
                    # wait_for would forget a cancellation that comes together with the news
                    async with asyncio.timeout(LOOK_AGAIN_S):
                        await told
        finally:
            tasks = [each.task for each in self._at_work.values()] + [each.loading for each in self._asked.values()]
            await _end(*tasks)

    async def find(self, analysis: str, version: int) -> ModelCard:
        """A version that is loaded and can be asked.

        Args:
            analysis: Name of the analysis.
            version: Model version; 0 for the active one.

        Raises:
            UnknownModelError: There is none.
            PredictionFailedError: It cannot be loaded.
            TryAgainError: It could not be loaded now.
        """
        key = ModelKey(analysis, version) if version else self._active.get(analysis)
        asked = self._asked.get(key) if key is not None else None
        if asked is None or asked.has_failed:
            card = await asyncio.to_thread(self._find_card, analysis, version)
            if not version:
                self._active[analysis] = card.key
            asked = self._asked.get(card.key)
            if asked is None or asked.has_failed:  # perhaps long ago, when whoever asked had given up
                loading = asyncio.create_task(self._load(card), name="load-model")
                loading.add_done_callback(_retrieve)  # whoever asked may have given up
                asked = self._asked[card.key] = _Asked(card, loading)
        asked.last_asked_s = self._loop.time()
        if not asked.loading.done():
            await asyncio.shield(asked.loading)  # who gives up does not stop it for the others
        return asked.card

    def _find_card(self, analysis: str, version: int) -> ModelCard:
        with self._store.read() as connection:
            card = catalogue.find_card(connection, analysis, version)
        if card is None or card.state == ModelState.RETIRED:
            wanted = f"{analysis}@{version}" if version else f"an active version of {analysis!r}"
            what = "there is none" if card is None else "it is retired"
            raise UnknownModelError(f"expected {wanted}, but {what}", hint="fieldpost models list shows what there is")
        return card

    async def _load(self, card: ModelCard) -> None:
        """Brings a version to the batcher, and has a worker load it."""
        package = await asyncio.to_thread(self._make_package, card.key)
        self._batcher.add_model(package, card)
        try:
            async with asyncio.timeout(LOAD_TIMEOUT_S):
                await self._batcher.load(card.key)
        except TimeoutError as error:
            raise TryAgainError(f"{card.key} was not loaded within {LOAD_TIMEOUT_S:.0f} s") from error

    def _make_package(self, key: ModelKey) -> ModelPackage:
        with self._store.read() as connection:
            return catalogue.make_package(connection, self._files, key)

    async def _reconcile(self) -> None:
        """Brings what runs to what the catalogue says."""
        wanted, asked = await asyncio.to_thread(self._look_up)
        active = {card.key.analysis: card.key for card in wanted.values() if card.state == ModelState.ACTIVE}
        for key, card in wanted.items():
            running = self._at_work.get(key)
            if running is not None and running.is_still(card):
                continue
            if running is not None:
                await _end(running.task)
            self._at_work[key] = after = _AtWork(card, is_proved=running is not None and running.is_proved)
            after.task = asyncio.create_task(self._work(after), name=f"predict-{key}")
        for key in [key for key in self._at_work if key not in wanted]:
            if not self._waits_for(active.get(key.analysis), key):
                running = self._at_work.pop(key)
                await _end(running.task)
                logger.info("model stopped", extra={"model": str(key)})
        # Who asks for the active version has the one before it until the next one is loaded.
        self._active = {
            analysis: self._active[analysis] if self._waits_for(key, self._active.get(analysis, key)) else key
            for analysis, key in active.items()
        }
        self._forget_unasked(asked)
        for key in list(self._batcher.model_keys()):
            if key not in self._at_work and key not in self._asked:
                self._batcher.remove_model(key)
                logger.info("model unloaded", extra={"model": str(key)})

    def _look_up(self) -> tuple[dict[ModelKey, ModelCard], dict[ModelKey, ModelCard | None]]:
        with self._store.read() as connection:
            wanted = {card.key: card for card in catalogue.find_at_work(connection)}
            asked = {key: wanted.get(key) or catalogue.find_card(connection, *key) for key in list(self._asked)}
        return wanted, asked

    def _waits_for(self, successor: ModelKey | None, key: ModelKey) -> bool:
        """Whether a version that is not at work any more goes on, since the one after it is still being loaded."""
        after = self._at_work.get(successor) if successor is not None else None
        return after is not None and successor != key and not after.is_proved

    def _forget_unasked(self, found: dict[ModelKey, ModelCard | None]) -> None:
        for key, card in found.items():
            asked = self._asked[key]
            is_gone = card is None or card.state == ModelState.RETIRED
            if not asked.loading.done():
                continue
            if is_gone or asked.has_failed or self._loop.time() - asked.last_asked_s > UNUSED_MAX_S:
                del self._asked[key]
            elif card is not None:
                asked.card = card

    async def _work(self, running: _AtWork) -> None:
        """Loads a version and keeps its dispatcher going, whatever becomes of it; others are not disturbed."""
        card = running.card
        facts = {"model": str(card.key), "state": card.state}
        wait_s = RETRY_WAIT_MIN_S
        while True:
            began_s = self._loop.time()
            try:
                await self._prove(running)
                logger.info("model at work", extra=facts)
                await self._make_dispatcher(card).run()
            except Exception:
                logger.exception("dispatcher failed", extra=facts)
            if self._loop.time() - began_s > RETRY_WAIT_MAX_S:
                wait_s = RETRY_WAIT_MIN_S
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, RETRY_WAIT_MAX_S)

    def _make_dispatcher(self, card: ModelCard) -> Dispatcher | Follower:
        told: _Told = {"stored": self._stored, "predicted": self._predicted, "observer": self._observer}
        course_start = None if card.kind is ModelKind.ONNX else find_course_start(card.key.analysis)
        if course_start is None or course_start(card.key.version, time.time_ns(), None) is None:
            return Dispatcher(self._store, self._batcher, card, **told)
        return Follower(self._store, self._batcher, card, course_start, **told)

    async def _prove(self, running: _AtWork) -> None:
        """Has a worker load it. One that cannot be loaded works all the same: its failures are to be seen."""
        try:
            await self._load(running.card)
        except (RejectedError, TryAgainError) as error:
            facts = {"model": str(running.card.key), "error": str(error)}
            running.failed_loads += 1
            if isinstance(error, TryAgainError) and running.failed_loads < LOADS_MAX:
                raise
            logger.error("model cannot be loaded", extra=facts)
        if not running.is_proved:
            running.is_proved = True
            self._models_changed.tell()  # the version before it may stop now


def _retrieve(task: asyncio.Task[None]) -> None:
    if not task.cancelled():
        task.exception()


async def _end(*tasks: asyncio.Task[None] | None) -> None:
    """Cancels tasks, and waits until they are gone."""
    for task in tasks:
        if task is not None:
            task.cancel()
    await asyncio.gather(*(task for task in tasks if task is not None), return_exceptions=True)
