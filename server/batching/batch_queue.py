"""What waits for one model version in one priority: lanes that take turns, and batches that are to run once more.

Pure. Knows neither other model versions nor workers.
"""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from math import inf
from typing import Generic, TypeVar

from server.batching.batch_cost import BatchCost
from server.workers.jobs import ModelKey

T = TypeVar("T")


class Priority(IntEnum):
    """What goes first."""

    LIVE = 0
    BACKFILL = 1
    SHADOW = 2


@dataclass(slots=True, eq=False)
class Waiting(Generic[T]):
    """One item that waits: an observation, or some that are computed one after the other.

    Attributes:
        number: Counts up over all that ever waited.
        key: The model version that it waits for.
        value: What is to be computed.
        lane: Whose it is; lanes take turns.
        priority: What it yields to.
        size_bytes: What it adds to a batch.
        observation_count: The same, in observations.
        arrival_s: When it came in.
        deadline_s: After this time nobody wants the answer; None for never.
        is_waiting: Whether it is still to go into a batch.
        is_probe: Whether it is tried although it is expected to miss its deadline.
    """

    number: int
    key: ModelKey
    value: T
    lane: str
    priority: Priority
    size_bytes: int
    observation_count: int
    arrival_s: float
    deadline_s: float | None
    is_waiting: bool = False
    is_probe: bool = False


class ModelQueue(Generic[T]):
    """The items that wait for one model version in one priority.

    Attributes:
        count: Observations that wait.
        size_bytes: Of these.
        used_s: Time of workers that its batches have used; who used least goes next.
        turn: When it had its last batch, to decide between equals.
    """

    def __init__(self, key: ModelKey) -> None:
        self.key = key
        self.count = 0
        self.size_bytes = 0
        self.used_s = 0.0
        self.turn = 0
        # Ordered by a linked list: taking from the front and removing from the middle cost the same, and little.
        self._lanes: OrderedDict[str, OrderedDict[int, Waiting[T]]] = OrderedDict()
        self._again: deque[list[Waiting[T]]] = deque()
        self._is_turn_of_again = False

    def __iter__(self) -> Iterator[Waiting[T]]:
        """All that wait."""
        for group in self._again:
            yield from (each for each in group if each.is_waiting)
        for lane in self._lanes.values():
            yield from lane.values()

    def add(self, waiting: Waiting[T]) -> None:
        """Lets an item wait, behind the others of its lane."""
        lane = self._lanes.get(waiting.lane)
        if lane is None:
            lane = self._lanes[waiting.lane] = OrderedDict()
        lane[waiting.number] = waiting
        self._enter(waiting)

    def put_back(self, group: list[Waiting[T]]) -> None:
        """Lets items wait that are to run once more, with each other and nobody else."""
        self._again.append(group)
        for each in group:
            self._enter(each)

    def _enter(self, waiting: Waiting[T]) -> None:
        waiting.is_waiting = True
        self.count += waiting.observation_count
        self.size_bytes += waiting.size_bytes

    def remove(self, waiting: Waiting[T]) -> None:
        """Takes an item out, wherever it stands; one that is to run once more is skipped when its turn comes."""
        waiting.is_waiting = False
        self.count -= waiting.observation_count
        self.size_bytes -= waiting.size_bytes
        lane = self._lanes.get(waiting.lane)
        if lane is not None and lane.pop(waiting.number, None) is not None and not lane:
            del self._lanes[waiting.lane]

    def oldest_arrival_s(self) -> float:
        """When the oldest that waits came in; infinity where nothing waits."""
        heads = (next(iter(lane.values())).arrival_s for lane in self._lanes.values())
        again = (each.arrival_s for group in self._again for each in group if each.is_waiting)
        return min(min(heads, default=inf), min(again, default=inf))

    def take(
        self, now_s: float, count_max: int, bytes_max: int, cost: BatchCost, is_hopeless: Callable[[Waiting[T]], bool]
    ) -> tuple[list[Waiting[T]], list[Waiting[T]]]:
        """The next batch, and what came too late; what runs once more takes turns with what is new.

        Args:
            now_s: The time.
            count_max: Observations in the batch.
            bytes_max: Bytes in it; an item that is larger than either goes alone.
            cost: No item's deadline passes because others go with it.
            is_hopeless: Whether an item would miss its deadline even alone.
        """
        if self._again and (self._is_turn_of_again or not self._lanes):
            self._is_turn_of_again = False
            return self._take_again(count_max, is_hopeless)
        self._is_turn_of_again = True
        items: list[Waiting[T]] = []
        expired: list[Waiting[T]] = []
        batch_count, batch_bytes, earliest_s = 0, 0, inf
        while self._lanes and batch_count < count_max:
            lane, members = next(iter(self._lanes.items()))
            each = next(iter(members.values()))
            if each.deadline_s is not None:
                if is_hopeless(each):
                    self.remove(each)
                    expired.append(each)
                    continue
                earliest_s = min(earliest_s, each.deadline_s)
            batch_count += each.observation_count
            batch_bytes += each.size_bytes
            is_late = earliest_s < inf and now_s + cost.estimate(batch_count) > earliest_s
            if items and (batch_count > count_max or batch_bytes > bytes_max or is_late):
                break
            items.append(each)
            self.remove(each)
            if members:
                self._lanes.move_to_end(lane)
        return items, expired

    def _take_again(
        self, count_max: int, is_hopeless: Callable[[Waiting[T]], bool]
    ) -> tuple[list[Waiting[T]], list[Waiting[T]]]:
        group = [each for each in self._again.popleft() if each.is_waiting]
        expired = [each for each in group if each.deadline_s is not None and is_hopeless(each)]
        for each in expired:
            self.remove(each)
        group = [each for each in group if each.is_waiting]
        counts = list(itertools.accumulate(each.observation_count for each in group))
        size = max(1, bisect_right(counts, count_max))
        items, rest = group[:size], group[size:]
        if rest:
            self._again.appendleft(rest)
        for each in items:
            self.remove(each)
        return items, expired
