"""Which of the waiting observations go into the next batch. Pure: time is an argument.

The rules:
- A batch is taken when a worker is free, of what is there then; nobody waits for a batch to fill.
- Round robin between instruments: a station that comes back with a week of backlog delays nobody else.
- A batch is bounded by a count and by bytes; an item larger than the bound goes alone.
- What has passed its deadline is given back, and costs nothing more.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Waiting(Generic[T]):
    """One item that waits.

    Attributes:
        value: What is to be computed.
        lane: Whose it is; lanes take turns.
        size_bytes: What it adds to a batch.
        deadline_s: After this time nobody wants the answer; None for never.
    """

    value: T
    lane: str
    size_bytes: int
    deadline_s: float | None = None


@dataclass(slots=True)
class Batch(Generic[T]):
    """What goes to a worker, and what came too late."""

    items: list[Waiting[T]] = field(default_factory=list)
    expired: list[Waiting[T]] = field(default_factory=list)


class BatchQueue(Generic[T]):
    """The items that wait for one model version.

    Args:
        batch_count_max: Items in a batch.
        batch_bytes_max: Bytes in a batch.
    """

    def __init__(self, batch_count_max: int, batch_bytes_max: int) -> None:
        self._count_max = batch_count_max
        self._bytes_max = batch_bytes_max
        self._lanes: OrderedDict[str, deque[Waiting[T]]] = OrderedDict()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, item: Waiting[T]) -> None:
        """Lets an item wait, behind the others of its lane."""
        self._lanes.setdefault(item.lane, deque()).append(item)
        self._count += 1

    def take(self, now_s: float) -> Batch[T]:
        """The next batch; empty where nothing waits."""
        batch: Batch[T] = Batch()
        batch_bytes = 0
        while self._lanes and len(batch.items) < self._count_max:
            lane, items = next(iter(self._lanes.items()))
            item = items[0]
            is_expired = item.deadline_s is not None and item.deadline_s <= now_s
            if not is_expired and batch.items and batch_bytes + item.size_bytes > self._bytes_max:
                break
            items.popleft()
            self._count -= 1
            if items:
                self._lanes.move_to_end(lane)
            else:
                del self._lanes[lane]
            if is_expired:
                batch.expired.append(item)
            else:
                batch.items.append(item)
                batch_bytes += item.size_bytes
        return batch
