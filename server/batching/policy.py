"""Which of the waiting observations go to a free worker next. Pure: time is an argument.

The rules:
- A batch is taken when a worker is free, of what is there then; nobody waits for a batch to fill.
- Live before backfill before shadow, over all model versions. Who waits behind them is not forgotten: after fifteen
  batches that went before it, it has one, no longer than these were on average; and where that was longer all the
  same, since a single observation took so long, the next one comes the later. So it costs what goes before it a
  sixteenth of the time.
- Between model versions of one priority, the one goes next whose batches have used the least time. Who begins to
  wait begins where the others stand: having been idle is no credit.
- Round robin between lanes (instruments): a station that comes back with a week of backlog delays nobody else.
- A batch is bounded by observations, by bytes, by the time that it will take as far as was measured (a quarter of that
  for what is not live: something live may come in meanwhile), and by the earliest deadline in it.
- Observations that belong together go together; more than a batch may have go alone.
- What has passed its deadline, or would pass it even alone, is given back, and costs nothing more. Where only the
  estimate says so, every eighth is tried all the same: a wrong estimate is found out.
- What is to run once more takes turns with what is new, so that a failing observation does not hold up the others.
- A model version whose batches kill workers one after the other rests, ever longer: the workers are for the others too.
- A queue that is full refuses.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Generic, NamedTuple, TypeVar

from fieldpost.errors import OverloadedError
from server.batching.batch_cost import BatchCost, CountCap
from server.batching.batch_queue import ModelQueue, Priority, Waiting
from server.workers.jobs import ModelKey

__all__ = ["Batch", "BatchPolicy", "Priority", "QueueSnapshot", "Waiting"]

T = TypeVar("T")
MIB = 1024 * 1024

TURN_EVERY = 16
"""Of so many batches, one is for the priority that waits behind the others."""
NOT_LIVE_RATIO = 0.25
PROBE_EVERY = 8
REST_AFTER_DEATHS = 3
"""In a row. Fewer are what it takes to find one observation that kills: in a batch, in a part of it, and alone."""
REST_MIN_S = 1.0
REST_MAX_S = 60.0
BATCH_S_MIN = 0.001
"""What a batch counts at least: where nothing was measured yet, turns go by batches."""


@dataclass(frozen=True, slots=True)
class Batch(Generic[T]):
    """What goes to a worker."""

    key: ModelKey
    priority: Priority
    items: list[Waiting[T]]

    @property
    def observation_count(self) -> int:
        """Of all its items."""
        return sum(each.observation_count for each in self.items)


class QueueSnapshot(NamedTuple):
    """What waits for a model version, and what its batches cost.

    Attributes:
        key: The model version.
        live_count: Observations that wait, by priority.
        backfill_count: The same.
        shadow_count: The same.
        oldest_s: Age of the oldest; 0 where nothing waits.
        batch_fixed_s: Time of a batch however small, as measured.
        observation_s: Time that each observation adds, as measured.
        max_batch_count: Observations that a batch may have now.
    """

    key: ModelKey
    live_count: int
    backfill_count: int
    shadow_count: int
    oldest_s: float
    batch_fixed_s: float
    observation_s: float
    max_batch_count: int


class _Model(Generic[T]):
    def __init__(self, key: ModelKey, kind: str, cap: CountCap, bytes_max: int, cost: BatchCost) -> None:
        self.key = key
        self.kind = kind
        self.cap = cap
        self.bytes_max = bytes_max
        self.cost = cost
        self.queues = tuple(ModelQueue[T](key) for _ in Priority)
        self.condemned_count = 0
        """Items that the estimate alone gave up since it was last renewed."""
        self.death_count = 0
        """Workers that its batches have killed since one was computed."""

    def is_hopeless(self, waiting: Waiting[T], now_s: float) -> bool:
        """Whether the item would miss its deadline even in a batch of its own."""
        if waiting.deadline_s is None:
            return False
        if waiting.deadline_s <= now_s:
            return True
        if waiting.is_probe or now_s + self.cost.estimate(waiting.observation_count) <= waiting.deadline_s:
            return False
        self.condemned_count += 1
        waiting.is_probe = self.condemned_count % PROBE_EVERY == 0
        return not waiting.is_probe


@dataclass(slots=True)
class _Rank(Generic[T]):
    """Everything of one priority that waits for workers of one kind."""

    waiting: dict[ModelKey, ModelQueue[T]] = field(default_factory=dict)
    clock_s: float = 0.0
    """Time used by the queue that had the last batch: where who begins to wait begins."""
    passed_count: int = 0
    """Batches of higher priorities since it had one, while it waited."""
    passed_s: float = 0.0
    owed_s: float = 0.0
    """What the batch took that it last had before its turn."""

    @property
    def is_due(self) -> bool:
        """Whether it goes before higher priorities now."""
        before = TURN_EVERY - 1
        return bool(self.waiting) and self.passed_count >= before and self.passed_s >= before * self.owed_s

    def is_passed(self, cost_s: float) -> None:
        """A batch of a higher priority went before it."""
        if self.waiting:
            self.passed_count += 1
            self.passed_s += cost_s

    def goes(self, queue: ModelQueue[T], cost_s: float, turn: int, *, is_out_of_turn: bool) -> None:
        """One of its queues had a batch."""
        self.clock_s = queue.used_s
        queue.used_s += cost_s
        queue.turn = turn
        self.passed_count, self.passed_s = 0, 0.0
        self.owed_s = cost_s if is_out_of_turn else 0.0


class BatchPolicy(Generic[T]):
    """What waits for all model versions, and what of it goes next.

    Args:
        batch_seconds_max: A batch is made so small that it takes no longer, as far as was measured.
        queue_count_max: Observations that wait for one model version in one priority; more are refused.
        queue_bytes_max: Bytes of these.
    """

    def __init__(
        self, *, batch_seconds_max: float = 1.0, queue_count_max: int = 16_384, queue_bytes_max: int = 512 * MIB
    ) -> None:
        self._batch_seconds_max = batch_seconds_max
        self._queue_count_max = queue_count_max
        self._queue_bytes_max = queue_bytes_max
        self._models: dict[ModelKey, _Model[T]] = {}
        self._ranks: dict[str, tuple[_Rank[T], ...]] = {}
        self._numbers = itertools.count(1)
        self._turns = itertools.count(1)
        self._entries = itertools.count(1)
        self._deadlines: list[tuple[float, int, Waiting[T]]] = []
        """A heap by the time after which an item is late even if it goes at once and alone."""
        self._deadline_count = 0
        self._expired: list[Waiting[T]] = []
        self._resting: dict[ModelKey, float] = {}
        """Until when; what waits for these is in no rank."""

    def add_model(
        self, key: ModelKey, kind: str, *, max_batch_count: int, batch_bytes_max: int, cost: tuple[float, float]
    ) -> None:
        """Lets observations wait for a model version from now on.

        Args:
            key: The model version.
            kind: The kind of its workers.
            max_batch_count: Observations in a batch.
            batch_bytes_max: Bytes in a batch; a larger observation goes alone.
            cost: Time of a batch and of each observation in it, in seconds, from its trial; (0, 0) where unknown.
        """
        estimate = BatchCost(*cost, max_batch_count)
        self._models[key] = _Model(key, kind, CountCap(max_batch_count), batch_bytes_max, estimate)
        self._ranks.setdefault(kind, tuple(_Rank[T]() for _ in Priority))

    def remove_model(self, key: ModelKey) -> list[Waiting[T]]:
        """Forgets a model version; returns what waited for it."""
        left = [each for queue in self._models[key].queues for each in queue]
        self._remove(left)
        del self._models[key]
        self._resting.pop(key, None)
        return left

    def add(
        self,
        key: ModelKey,
        value: T,
        *,
        lane: str,
        priority: Priority,
        size_bytes: int,
        now_s: float,
        observation_count: int = 1,
        arrival_s: float | None = None,
        deadline_s: float | None = None,
    ) -> Waiting[T]:
        """Lets an observation wait, or some that go together.

        Args:
            key: A model version that was added.
            value: What is to be computed.
            lane: Whose it is; lanes take turns.
            priority: What it yields to.
            size_bytes: What it adds to a batch.
            now_s: The time.
            observation_count: How many there are in it.
            arrival_s: When it came in, where that was earlier.
            deadline_s: After this time nobody wants the answer.

        Raises:
            OverloadedError: As much waits as may.
        """
        model = self._models[key]
        queue = model.queues[priority]
        if queue.count and (
            queue.count + observation_count > self._queue_count_max
            or queue.size_bytes + size_bytes > self._queue_bytes_max
        ):
            raise OverloadedError(
                f"{queue.count} {priority.name.lower()} observations ({queue.size_bytes / MIB:.1f} MiB) wait for "
                f"{key}, and at most {self._queue_count_max} ({self._queue_bytes_max / MIB:.1f} MiB) may",
                hint="send fewer at a time, or the same again in a moment",
            )
        arrival_s = now_s if arrival_s is None else arrival_s
        waiting = Waiting(
            next(self._numbers), key, value, lane, priority, size_bytes, observation_count, arrival_s, deadline_s
        )
        queue.add(waiting)
        self._enter(model, queue, waiting)
        return waiting

    def put_back(self, items: list[Waiting[T]]) -> None:
        """Lets items of one batch wait once more, to go with each other and nobody else; no limit refuses them."""
        model = self._models[items[0].key]
        queue = model.queues[items[0].priority]
        queue.put_back(items)
        for each in items:
            self._enter(model, queue, each)

    def _enter(self, model: _Model[T], queue: ModelQueue[T], waiting: Waiting[T]) -> None:
        rank = self._ranks[model.kind][waiting.priority]
        if model.key not in rank.waiting and model.key not in self._resting:
            rank.waiting[model.key] = queue
            queue.used_s = max(queue.used_s, rank.clock_s)
        if waiting.deadline_s is not None:
            self._deadline_count += 1
            self._watch(model, waiting)

    def _watch(self, model: _Model[T], waiting: Waiting[T]) -> None:
        """Sees to it that the item is looked at when it can no longer be in time."""
        if waiting.deadline_s is not None:
            alone_s = 0.0 if waiting.is_probe else model.cost.estimate(waiting.observation_count)
            heapq.heappush(self._deadlines, (waiting.deadline_s - alone_s, next(self._entries), waiting))

    def cancel(self, waiting: Waiting[T]) -> None:
        """Nobody wants the answer any more; costs nothing where the item has gone already."""
        if waiting.is_waiting:
            self._remove([waiting])

    def _remove(self, items: Iterable[Waiting[T]]) -> None:
        for each in items:
            model = self._models[each.key]
            queue = model.queues[each.priority]
            queue.remove(each)
            self._left(model, queue, each)

    def _left(self, model: _Model[T], queue: ModelQueue[T], waiting: Waiting[T]) -> None:
        """Keeps the books after an item has left its queue."""
        if not queue.count:
            self._ranks[model.kind][waiting.priority].waiting.pop(model.key, None)
        if waiting.deadline_s is not None:
            self._deadline_count -= 1
            if len(self._deadlines) > 2 * self._deadline_count + 64:  # most have left: each is swept out once
                self._deadlines = [entry for entry in self._deadlines if entry[2].is_waiting]
                heapq.heapify(self._deadlines)

    def take(self, kind: str, now_s: float) -> Batch[T] | None:
        """The next batch for a free worker of this kind; None where nothing waits."""
        self._expire(now_s)
        self._wake(now_s)
        ranks = self._ranks.get(kind, ())
        while (priority := _next_rank(ranks)) is not None:
            rank = ranks[priority]
            queue = min(rank.waiting.values(), key=lambda each: (each.used_s, each.turn))
            model = self._models[queue.key]
            is_out_of_turn = any(higher.waiting for higher in ranks[:priority])
            seconds_max = self._batch_seconds_max * (1.0 if priority == Priority.LIVE else NOT_LIVE_RATIO)
            if is_out_of_turn:
                seconds_max = min(seconds_max, rank.passed_s / rank.passed_count)
            count_max = min(model.cap.count, model.cost.count_within(seconds_max))
            items, expired = queue.take(
                now_s, count_max, model.bytes_max, model.cost, partial(model.is_hopeless, now_s=now_s)
            )
            self._expired += expired
            for each in (*items, *expired):
                self._left(model, queue, each)
            if items:
                batch = Batch(queue.key, Priority(priority), items)
                cost_s = max(model.cost.estimate(batch.observation_count), BATCH_S_MIN)
                rank.goes(queue, cost_s, next(self._turns), is_out_of_turn=is_out_of_turn)
                for lower in ranks[priority + 1 :]:
                    lower.is_passed(cost_s)
                return batch
        return None

    def take_expired(self, now_s: float) -> list[Waiting[T]]:
        """What came too late since the last time that this was asked."""
        self._expire(now_s)
        expired, self._expired = self._expired, []
        return expired

    def next_expiry_s(self) -> float | None:
        """When to ask for what came too late, if nothing else happens before."""
        while self._deadlines and not self._deadlines[0][2].is_waiting:
            heapq.heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else None

    def _expire(self, now_s: float) -> None:
        spared: list[Waiting[T]] = []  # the estimate has become better, or it is tried all the same
        while self._deadlines and self._deadlines[0][0] < now_s:
            waiting = heapq.heappop(self._deadlines)[2]
            if waiting.is_waiting and self._models[waiting.key].is_hopeless(waiting, now_s):
                self._expired.append(waiting)
                self._remove([waiting])
            elif waiting.is_waiting:
                spared.append(waiting)
        for waiting in spared:
            self._watch(self._models[waiting.key], waiting)

    def note_cost(self, key: ModelKey, count: int, duration_s: float) -> None:
        """A batch of so many observations was computed, in this time."""
        if (model := self._models.get(key)) is not None:
            model.cost.note(count, duration_s)
            model.cap.note_success(count)
            model.condemned_count = model.death_count = 0

    def note_lost(self, key: ModelKey, priority: Priority, duration_s: float) -> None:
        """A batch killed its worker after this time, which others of its priority are owed."""
        if (model := self._models.get(key)) is not None:
            model.queues[priority].used_s += duration_s

    def note_death(self, key: ModelKey, now_s: float) -> None:
        """A batch killed its worker: from the third in a row on, the model version has none for a while."""
        if (model := self._models.get(key)) is None:
            return
        model.death_count += 1
        if model.death_count >= REST_AFTER_DEATHS:
            doublings = min(model.death_count - REST_AFTER_DEATHS, 16)
            self._resting[key] = now_s + min(REST_MIN_S * 2**doublings, REST_MAX_S)
            for rank in self._ranks[model.kind]:
                rank.waiting.pop(key, None)

    def _wake(self, now_s: float) -> None:
        if not self._resting:
            return
        for key in [key for key, until_s in self._resting.items() if until_s <= now_s]:
            del self._resting[key]
            model = self._models[key]
            for rank, queue in zip(self._ranks[model.kind], model.queues, strict=True):
                if queue.count:
                    rank.waiting[key] = queue
                    queue.used_s = max(queue.used_s, rank.clock_s)

    def note_too_large(self, key: ModelKey, times: int) -> None:
        """An observation found no memory even alone, after batches with it had found none so many times."""
        if (model := self._models.get(key)) is not None:
            model.cap.take_back(times)

    def note_out_of_memory(self, key: ModelKey, count: int) -> None:
        """A batch of so many did not fit: smaller ones from now on, also of what is put back."""
        if (model := self._models.get(key)) is not None:
            model.cap.note_out_of_memory(count)

    def snapshot(self, now_s: float) -> list[QueueSnapshot]:
        """What waits, by model version."""
        found = []
        for key, model in self._models.items():
            live, backfill, shadow = (queue.count for queue in model.queues)
            oldest_s = min(now_s, *(queue.oldest_arrival_s() for queue in model.queues))
            count_max = min(model.cap.count, model.cost.count_within(self._batch_seconds_max))
            cost = (model.cost.fixed_s, model.cost.each_s)
            found.append(QueueSnapshot(key, live, backfill, shadow, now_s - oldest_s, *cost, count_max))
        return found


def _next_rank(ranks: tuple[_Rank[T], ...]) -> int | None:
    """The highest priority that waits, unless a lower one is due."""
    due = [priority for priority, rank in enumerate(ranks) if rank.is_due]
    return due[-1] if due else next((priority for priority, rank in enumerate(ranks) if rank.waiting), None)
