"""Turns what a model version said of an observation into the prediction that is stored, and has it stored.

What a model says may be anything; here it becomes a row, or a failure in words. Knows not who asked, or in which order.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from sqlalchemy import Connection

from fieldpost.errors import TryAgainError
from server.analyses import AnalysisResult
from server.models.card import ModelCard
from server.prediction.pending import PendingObservation
from server.queries.predictions import NewPrediction, encode_failure, encode_result
from server.storage.store import Store
from server.telemetry.observer import Trip

logger = logging.getLogger(__name__)

T = TypeVar("T")
RETRY_WAIT_S = 1.0


class PredictedObserver(Protocol):
    """Who is told of each prediction that is stored: the server's telemetry, or whoever counts."""

    def note_predicted(self, model: str, trip: Trip, answer_unix_nanos: int, failure: str) -> None:
        """A prediction is on the disk; see server.telemetry.observer."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A prediction that is to be stored, and what is told of it when it is."""

    prediction: NewPrediction
    trip: Trip
    failure: str


def begin_trip(pending: PendingObservation) -> Trip:
    """An observation sets out to its prediction now."""
    return Trip(pending.identity, pending.capture_unix_nanos, pending.is_live, time.time_ns())


def make_answer(
    card: ModelCard,
    pending: PendingObservation,
    trip: Trip,
    said: AnalysisResult | str,
    *,
    is_provisional: bool = False,
) -> Answer:
    """Judges what a model version said: a result, or in words why there is none."""
    measure_unix_nanos, failure = pending.measure_unix_nanos, ""
    if isinstance(said, str):
        failure = said
    else:
        try:
            content = encode_result(said)
            if len(said.sample_unix_nanos):
                measure_unix_nanos = int(said.sample_unix_nanos[0])
        except (TypeError, ValueError, AttributeError) as odd:  # a model may say anything
            failure = f"the prediction cannot be stored: {type(odd).__name__}: {odd}"
    if failure:
        logger.warning("no prediction", extra={"observation_id": pending.observation_id, "reason": failure})
        content = encode_failure(failure)
    prediction = NewPrediction(
        pending.observation_id,
        card.row_id,
        pending.instrument_id,
        measure_unix_nanos,
        time.time_ns(),
        content,
        is_failure=bool(failure),
        is_time_news=not failure and not pending.is_time_known,
        is_provisional=is_provisional,
    )
    return Answer(prediction, trip, failure)


def note_stored(observer: PredictedObserver | None, card: ModelCard, answer: Answer) -> None:
    """Tells whoever looks that a prediction is stored."""
    if observer is not None:
        observer.note_predicted(str(card.key), answer.trip, answer.prediction.predict_unix_nanos, answer.failure)


async def commit(store: Store, operation: Callable[[Connection], T]) -> T:
    """Writes. Whoever is cancelled meanwhile leaves the write alone: it may be half-way through its group."""
    return await asyncio.shield(asyncio.wrap_future(store.write(operation)))


async def commit_at_last(store: Store, operation: Callable[[Connection], T]) -> T:
    """Writes, for as long as it takes: a full disk delays predictions, and loses none."""
    while True:
        try:
            return await commit(store, operation)
        except TryAgainError as error:
            logger.warning("predictions wait for the store", extra={"error": str(error)})
            await asyncio.sleep(RETRY_WAIT_S)
