"""The two streams in which a model version at work meets its observations, and how far each was looked through.

*Live* is what came fresh since the version was put to work, *backlog* is everything else; neither waits for the other.
Knows nobody who predicts.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from dataclasses import dataclass

from server.batching.policy import Priority
from server.models.card import ModelState
from server.prediction.pending import Span, find_live_mark
from server.storage.store import Store

LOOK_AGAIN_S = 10.0
"""How often to look without being told: for what another process stored or registered."""
BACKLOG_WAIT_S = 0.1
"""The backlog is in no hurry: it lets what is stored come together, and leaves the database to the live stream."""


@dataclass(slots=True)
class Stream:
    """One of the two streams.

    Attributes:
        is_live: Which.
        mark_id: The last observation that is no live one, however fresh it was.
        cursor: Everything of this stream up to this observation was looked at.
    """

    is_live: bool
    mark_id: int
    cursor: int

    def span(self) -> Span:
        """What is to be looked at next."""
        return Span(self.is_live, self.mark_id, self.cursor)

    async def wait(self, told: asyncio.Future[None]) -> None:
        """Waits for news, or until it is time to look without any."""
        with suppress(TimeoutError):
            # wait_for would forget a cancellation that comes together with the news
            async with asyncio.timeout(LOOK_AGAIN_S):
                await told
        if not self.is_live:
            await asyncio.sleep(BACKLOG_WAIT_S)


def read_live_mark(store: Store) -> int:
    """The last observation that is no live one for a version that is put to work now; from a thread."""
    with store.read() as connection:
        return find_live_mark(connection, time.time_ns())


def go_back(live: Stream, backlog: Stream, after_id: int) -> None:
    """What is live and behind us may wait again too, and is backlog like all the rest from here on."""
    live.mark_id = backlog.mark_id = live.cursor
    backlog.cursor = min(backlog.cursor, after_id)


def choose_priority(state: ModelState, *, is_live: bool) -> Priority:
    """What a version's observations yield to."""
    if state == ModelState.SHADOW:
        return Priority.SHADOW
    return Priority.LIVE if is_live else Priority.BACKFILL
