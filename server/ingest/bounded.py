"""A queue between threads that is bounded by bytes as well as by number: a few large volumes fill it, too."""

from __future__ import annotations

import threading
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class BoundedQueue(Generic[T]):
    """First in, first out.

    Args:
        count_max: Items that wait at most.
        bytes_max: Bytes that wait at most; an item larger than that waits alone.
    """

    def __init__(self, count_max: int, bytes_max: int) -> None:
        self._count_max = count_max
        self._bytes_max = bytes_max
        self._items: deque[tuple[T, int]] = deque()
        self._bytes = 0
        self._changed = threading.Condition()

    def put(self, item: T, size_bytes: int, timeout_s: float) -> bool:
        """Appends the item; False where there was no room for it within timeout_s."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._has_room(size_bytes), timeout_s):
                return False
            self._items.append((item, size_bytes))
            self._bytes += size_bytes
            self._changed.notify_all()
            return True

    def take(self, *, wait: bool) -> T | None:
        """The first item; where there is none, waits for one, or returns None."""
        with self._changed:
            if wait:
                self._changed.wait_for(lambda: bool(self._items))
            if not self._items:
                return None
            item, size_bytes = self._items.popleft()
            self._bytes -= size_bytes
            self._changed.notify_all()
            return item

    def _has_room(self, size_bytes: int) -> bool:
        if not self._items:
            return True
        return len(self._items) < self._count_max and self._bytes + size_bytes <= self._bytes_max
