"""Keeps what is in memory at once within bounds. Knows not what it is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Room:
    """So many at once, and so many bytes of them; what is larger goes alone.

    Args:
        count_max: How many.
        bytes_max: How large, together.
    """

    def __init__(self, count_max: int, bytes_max: int) -> None:
        self._count_max = count_max
        self._bytes_max = bytes_max
        self._count = self._bytes = 0
        self._changed = asyncio.Condition()

    @asynccontextmanager
    async def take(self, size_bytes: int) -> AsyncIterator[None]:
        """Waits until there is room, and has it until the end."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._has_room(size_bytes))
            self._count += 1
            self._bytes += size_bytes
        try:
            yield
        finally:
            self._count -= 1
            self._bytes -= size_bytes
            async with self._changed:
                self._changed.notify_all()

    def _has_room(self, size_bytes: int) -> bool:
        return not self._count or (self._count < self._count_max and self._bytes + size_bytes <= self._bytes_max)
