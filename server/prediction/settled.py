"""Keeps the mark below which no observation waits for a model version: it only spares the query what is done.

Somebody may set it back in the database (a retry, a restriction, a new instrument); then whoever finds work is told to
look again from there. Knows not how work is found or done.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

from fieldpost.errors import TryAgainError
from server.models.card import ModelCard
from server.prediction.answers import commit
from server.prediction.pending import move_settled, read_settled
from server.storage.store import Store

SETTLE_EVERY_S = 10.0
SETTLE_AGAIN_S = 0.2
SETTLE_IDS_MAX = 2000
"""Observations over which the mark moves at once: what is moved over is looked at, and others wait to write."""


class SettledMark:
    """The mark of one model version at work.

    Args:
        store: Where it is.
        card: The model version.
        with_provisional: Whether a provisional prediction still waits: for versions that remember.
    """

    def __init__(self, store: Store, card: ModelCard, *, with_provisional: bool = False) -> None:
        self._store = store
        self._card = card
        self._with_provisional = with_provisional
        self._settled_id = 0

    def read(self) -> int:
        """The mark as it stands in the database; from a thread."""
        with self._store.read() as connection:
            return read_settled(connection, self._card.row_id)

    def lower(self, settled_id: int) -> None:
        """Whoever keeps this mark has set it back, and knows why."""
        self._settled_id = min(self._settled_id, settled_id)

    async def keep(self, settled_id: int, find_done: Callable[[], int], look_again: Callable[[int], None]) -> None:
        """Moves the mark up as work is done, until cancelled.

        Args:
            settled_id: Where it stood when work began.
            find_done: Up to which observation nothing waits any more, as far as is known.
            look_again: Told where somebody took predictions away: after this observation.
        """
        self._settled_id = settled_id
        is_behind = False
        while True:
            await asyncio.sleep(SETTLE_AGAIN_S if is_behind else SETTLE_EVERY_S)
            with suppress(TryAgainError):  # only a hint: the next time will do
                is_behind = await self._settle(find_done, look_again)

    async def _settle(self, find_done: Callable[[], int], look_again: Callable[[int], None]) -> bool:
        """Moves the mark in the database, or follows it where somebody has set it back; returns whether it lags."""
        before, there = self._settled_id, await asyncio.to_thread(self.read)
        if there < min(before, self._settled_id):  # it may have been lowered while it was read
            look_again(there)
        self._settled_id = there
        done = find_done()
        if done <= there:
            return False
        settled = min(done, there + SETTLE_IDS_MAX)
        reached = await commit(
            self._store,
            lambda connection: move_settled(
                connection, self._card, expected=there, settled=settled, with_provisional=self._with_provisional
            ),
        )
        if reached is not None:
            self._settled_id = reached
            if reached < min(settled, find_done()):
                look_again(reached)
        return settled < done
