"""Runs queries beside the event loop, and stops those whose caller has gone."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

from sqlalchemy import Connection

from server.storage.store import Store

T = TypeVar("T")
THREADS = 8
"""Fewer than the connections that the store keeps: a query that waits for a thread can still be taken back."""


class Reading:
    """The store, for callers in the event loop.

    Args:
        store: What is read.
        threads: So many queries run at a time; the others wait their turn.
    """

    def __init__(self, store: Store, *, threads: int = THREADS) -> None:
        self.store = store
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="read")

    async def query(self, ask: Callable[[Connection], T]) -> T:
        """What a query finds. Where the caller is cancelled, its statement is interrupted in the database."""
        running = _Running()
        try:
            return await self.call(running.run, self.store, ask)
        except asyncio.CancelledError:
            # In a thread, since PostgreSQL is told over a connection of its own; ours may all be busy.
            asyncio.get_running_loop().run_in_executor(None, running.interrupt)
            raise

    async def call(self, function: Callable[..., T], *arguments: object) -> T:
        """What a function returns that may wait for the disk; one that has not begun is not begun for who has gone."""
        return await asyncio.wrap_future(self._pool.submit(function, *arguments))

    def close(self) -> None:
        """Ends the threads; what runs is waited for."""
        self._pool.shutdown(cancel_futures=True)


class _Running:
    """One query while it runs."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._connection: Connection | None = None

    def run(self, store: Store, ask: Callable[[Connection], T]) -> T:
        with store.read() as connection:
            with self._lock:
                self._connection = connection
            try:
                return ask(connection)
            finally:
                with self._lock:  # from here on the connection is somebody else's
                    self._connection = None

    def interrupt(self) -> None:
        with self._lock:
            if self._connection is not None:
                driver = self._connection.connection.driver_connection
                assert driver is not None
                with suppress(Exception):  # whatever it says: the query ends by itself, later
                    driver.interrupt() if self._connection.dialect.name == "sqlite" else driver.cancel_safe(timeout=5)
