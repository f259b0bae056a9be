"""Tells everyone who listens that something happened, and nothing more: what happened, they look up themselves."""

from __future__ import annotations

import asyncio


class Broadcast:
    """One event that happens again and again. Listeners live in the event loop; anyone may tell."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._next: asyncio.Future[None] = self._loop.create_future()

    def listen(self) -> asyncio.Future[None]:
        """Done at the next event. Shielded: a listener that gives up does not silence the others."""
        return asyncio.shield(self._next)

    def tell(self) -> None:
        """From the event loop: the event happened."""
        if not self._next.done():
            self._next.set_result(None)
        self._next = self._loop.create_future()

    def tell_from_thread(self) -> None:
        """The same, from any thread; after the event loop's end nobody is left to be told."""
        try:
            self._loop.call_soon_threadsafe(self.tell)
        except RuntimeError:
            return
