"""Hears from PostgreSQL what other processes have committed, at once, and passes it on within this one.

Triggers of the database do the telling (migration 0003). SQLite tells nobody: there, and whenever the connection is
gone, those who wait look again by themselves every few seconds. Knows nothing of what was written.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

import psycopg

from server.broadcast import Broadcast
from server.storage.database import PATIENCE, libpq_url

logger = logging.getLogger(__name__)

CHANNEL = "fieldpost"
OBSERVATIONS, PREDICTIONS, MODELS = "observation", "prediction", "modelversion"
RETRY_WAIT_S = 5.0


async def listen(database_url: str, broadcasts: Mapping[str, Broadcast]) -> None:
    """Tells each broadcast what it is about to hear, until cancelled; on SQLite returns at once.

    Args:
        database_url: As the store has it.
        broadcasts: By OBSERVATIONS, PREDICTIONS or MODELS. A commit of this process is told, too.
    """
    url = libpq_url(database_url)
    while url is not None:
        try:
            await _listen(url, broadcasts)
        except psycopg.OperationalError as error:
            logger.warning("database tells nothing", extra={"error": str(error)})
        await asyncio.sleep(RETRY_WAIT_S)


async def _listen(url: str, broadcasts: Mapping[str, Broadcast]) -> None:
    async with await psycopg.AsyncConnection.connect(url, autocommit=True, **PATIENCE) as connection:
        await connection.execute(f"LISTEN {CHANNEL}")
        for broadcast in broadcasts.values():
            broadcast.tell()  # what was committed while nobody listened
        async for notice in connection.notifies():
            if notice.payload in broadcasts:
                broadcasts[notice.payload].tell()
