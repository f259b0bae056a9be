"""Tells a watcher what is stored, in the order of its number, each once: observations and predictions alike."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Protocol, TypeVar

from sqlalchemy import Connection

from server.api.credentials import Context
from server.api.reading import Reading
from server.broadcast import Broadcast

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
PAGE_SIZE = 1000
LOOK_AGAIN_S = 10.0
"""Another process may have stored something and nobody was told."""


class Look(Protocol[T_co]):
    """Finds what is new: that, up to which number everything was looked at, and whether that is all."""

    def __call__(  # noqa: D102
        self, connection: Connection, *, after_id: int, limit: int
    ) -> tuple[Sequence[T_co], int, bool]: ...


async def watch(
    reading: Reading,
    happened: Broadcast,
    context: Context,
    look: Look[T],
    last_id: Callable[[Connection], int],
    after_id: int | None,
) -> AsyncIterator[tuple[Sequence[T], int]]:
    """Yields what is new, and up to which number the caller has been told of everything.

    Args:
        reading: The store.
        happened: Tells when it is worth looking.
        context: The call's.
        look: Finds what is new.
        last_id: The highest number there is.
        after_id: The last number that the caller has seen; None: only what comes from now on.
    """
    seen_id = await reading.query(last_id) if after_id is None else after_id
    await context.send_initial_metadata(())  # tells the caller that from here on it misses nothing
    yield [], seen_id
    while True:
        told = happened.listen()  # before looking: what comes while we look is told again
        page, seen_id, is_all = await reading.query(partial(look, after_id=seen_id, limit=PAGE_SIZE))
        if page or not is_all:
            yield page, seen_id
        if is_all:
            with suppress(TimeoutError):
                # wait_for would forget a cancellation that comes together with the news
                async with asyncio.timeout(LOOK_AGAIN_S):
                    await told
