"""Bounds between threads, by bytes as well as by number: a few large volumes fill them, too."""

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


class BoundedRoom:
    """Room for so much at once; who comes to a full one waits until enough has left.

    Args:
        count_max: Things inside at most.
        bytes_max: Their bytes at most; a thing larger than that is inside alone.
    """

    def __init__(self, count_max: int, bytes_max: int) -> None:
        self._count_max = count_max
        self._bytes_max = bytes_max
        self._count = self._bytes = 0
        self._is_open = False
        self._changed = threading.Condition()

    def enter(self, size_bytes: int) -> None:
        """Returns once there is room for so much, which it then takes."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_open or self._has_room(size_bytes))
            self._count += 1
            self._bytes += size_bytes

    def leave(self, size_bytes: int) -> None:
        """Gives so much back."""
        with self._changed:
            self._count -= 1
            self._bytes -= size_bytes
            self._changed.notify_all()

    def open(self) -> None:
        """Lets everyone in from now on: it is the end."""
        with self._changed:
            self._is_open = True
            self._changed.notify_all()

    def _has_room(self, size_bytes: int) -> bool:
        if not self._count:
            return True
        return self._count < self._count_max and self._bytes + size_bytes <= self._bytes_max
