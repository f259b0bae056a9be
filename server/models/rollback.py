"""Watches versions that have just become active, and rolls back those that do badly. Decides nothing: rollout does.

What it counts is what this server process has seen; each of several processes watches for itself, and whichever sees
enough first rolls back.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from sqlalchemy import Connection

from fieldpost.errors import FieldpostError
from server.models import catalogue
from server.models.card import ModelCard
from server.models.catalogue import FreshVersion
from server.models.desk import ModelDesk
from server.models.rollout import OBSERVATIONS_MIN, Conduct, decide
from server.storage.store import Store
from server.workers.jobs import ModelKey

logger = logging.getLogger(__name__)

T = TypeVar("T")
LOOK_AGAIN_S = 10.0
WATCHED_S = 3600.0
NOTHING = (0, 0, 0)


class Counts(Protocol):
    """What became of the observations that a version was given; server.batcher.ModelCounts is one."""

    @property
    def predicted(self) -> int:
        """It answered."""

    @property
    def failed(self) -> int:
        """It did not."""

    @property
    def refused_callers(self) -> int:
        """Of these, payloads of callers who ask at once and that it refused: whoever may ask must not decide here."""

    @property
    def deaths_in_a_row(self) -> int:
        """Workers that its batches have killed since one was computed."""


class Cost(Protocol):
    """What a version's batches cost; server.batching.QueueSnapshot is one."""

    @property
    def key(self) -> ModelKey:
        """Which version."""

    @property
    def batch_fixed_s(self) -> float:
        """Time of a batch however small."""

    @property
    def observation_s(self) -> float:
        """Time that each observation adds."""

    @property
    def max_batch_count(self) -> int:
        """Observations of the largest batch."""


class Work(Protocol):
    """Who knows both; server.batcher.Batcher is one."""

    @property
    def model_counts(self) -> Mapping[ModelKey, Counts]:
        """Of each version, since this process began."""

    def queues(self) -> Sequence[Cost]:
        """Of each version at work."""


@dataclass(frozen=True, slots=True)
class _Start:
    """What a version had done already at the last look before it became active."""

    event_id: int
    predicted: int
    failed: int
    deaths_in_a_row: int


class Rollback:
    """Looks every few seconds, for an hour after each activation."""

    def __init__(
        self, store: Store, desk: ModelDesk, work: Work, *, now_unix_nanos: Callable[[], int] = time.time_ns
    ) -> None:
        self._store, self._desk, self._work, self._now = store, desk, work, now_unix_nanos
        self._starts: dict[ModelKey, _Start] = {}
        self._costs: dict[ModelKey, float] = {}
        self._seen: dict[ModelKey, tuple[int, int, int]] = {}
        """What each version had done at the last look; before the first look nobody had done anything."""

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            try:
                await self.look()
            except FieldpostError as error:  # the database is away, or somebody was faster; the next look will tell
                logger.warning("look at fresh models failed", extra={"error": str(error)})
            await asyncio.sleep(LOOK_AGAIN_S)

    async def look(self) -> list[ModelKey]:
        """Looks once; returns the versions that it rolled back."""
        for cost in self._work.queues():  # remembered, since a version that is not at work any more has no queue
            self._costs[cost.key] = cost.observation_s + cost.batch_fixed_s / max(1, cost.max_batch_count)
        since = self._now() - round(WATCHED_S * 1e9)
        fresh_versions = await self._read(lambda connection: catalogue.find_fresh(connection, since))
        watched = {each.card.key for each in fresh_versions}
        self._starts = {key: start for key, start in self._starts.items() if key in watched}
        gone = []
        seen = {key: _done(counts) for key, counts in self._work.model_counts.items()}
        conducts = [(fresh, self._conduct_since_active(fresh, seen)) for fresh in fresh_versions]
        self._seen = seen
        for fresh, conduct in conducts:
            decision = decide(conduct, await self._conduct_before(fresh.before), _promised(fresh.card))
            if decision.is_rollback:
                logger.warning("model does badly", extra={"model": str(fresh.card.key), "reason": decision.reason})
                analysis, version = key = fresh.card.key
                await self._desk.roll_back(analysis, actor=catalogue.SERVER, reason=decision.reason, only_from=version)
                gone.append(key)
        return gone

    def _conduct_since_active(self, fresh: FreshVersion, seen: Mapping[ModelKey, tuple[int, int, int]]) -> Conduct:
        key = fresh.card.key
        predicted, failed, deaths = seen.get(key, NOTHING)
        start = self._starts.get(key)
        if start is None or start.event_id != fresh.event_id:
            start = self._starts[key] = _Start(fresh.event_id, *self._seen.get(key, NOTHING))
        return Conduct(
            predicted - start.predicted,
            failed - start.failed,
            self._costs.get(key, float("nan")),
            deaths - start.deaths_in_a_row if deaths >= start.deaths_in_a_row else deaths,
        )

    async def _conduct_before(self, before: ModelCard) -> Conduct:
        """What this process saw it do; else what the store holds of it, which other processes may have written."""
        observation_s = self._costs.get(before.key, _promised(before))
        counts = self._work.model_counts.get(before.key)
        if counts is not None and counts.predicted + _faults(counts) >= OBSERVATIONS_MIN:
            return Conduct(counts.predicted, _faults(counts), observation_s)
        count, failed = await self._read(lambda connection: catalogue.count_failures(connection, before.row_id))
        return Conduct(count - failed, failed, observation_s)

    async def _read(self, query: Callable[[Connection], T]) -> T:
        def read() -> T:
            with self._store.read() as connection:
                return query(connection)

        return await asyncio.to_thread(read)


def _faults(counts: Counts) -> int:
    return counts.failed - counts.refused_callers


def _done(counts: Counts) -> tuple[int, int, int]:
    return counts.predicted, _faults(counts), counts.deaths_in_a_row


def _promised(card: ModelCard) -> float:
    """The time for an observation in a full batch that its trial measured; 0 where it was never tried."""
    return card.trial.observation_s + card.trial.batch_fixed_s / card.trial.max_batch_count
