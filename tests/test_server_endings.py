"""Whoever waits to be told ends when it is cancelled, also where it is told at the same moment."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from server_support import open_store
from sqlalchemy import Connection
from worker_support import LENGTH, make_card, pool_of

from server.analyses import find_analyses
from server.api.reading import Reading
from server.api.watching import watch
from server.batching.batcher import Batcher
from server.broadcast import Broadcast
from server.models import catalogue
from server.models.files import ModelFiles
from server.prediction.dispatcher import Dispatcher
from server.prediction.pending import last_observation_id
from server.prediction.predicting import Predicting
from server.storage.store import Store
from server.workers.jobs import ModelPackage

Begin = Callable[[Store, Batcher, Broadcast, Path], Awaitable[None]]


class Caller:
    """All that a watch needs of a call."""

    async def send_initial_metadata(self, metadata: object) -> None:
        pass


def ends_although_it_is_told(folder: Path, begin: Begin) -> bool:
    """Whether what was begun ends when it is cancelled in the moment in which it is told."""

    async def main() -> bool:
        store, batcher, told = open_store(folder), Batcher(pool_of([])), Broadcast()
        cards = find_analyses()
        await asyncio.wrap_future(store.write(lambda connection: catalogue.register_built_in(connection, cards)))
        task = asyncio.ensure_future(begin(store, batcher, told, folder))
        try:
            await asyncio.sleep(0.3)  # it has found nothing, and waits
            assert not task.done()
            told.tell()
            task.cancel()
            await asyncio.wait([task], timeout=5)
            return task.cancelled()
        finally:
            while not task.done():
                task.cancel()
                await asyncio.sleep(0.05)
            batcher.close()
            store.close()

    return asyncio.run(main())


def test_predicting_ends_while_the_models_change(tmp_path: Path) -> None:
    async def begin(store: Store, batcher: Batcher, told: Broadcast, folder: Path) -> None:
        files = ModelFiles(folder / "models")
        other = (Broadcast(), Broadcast())
        await Predicting(store, batcher, files, stored=other[0], predicted=other[1], models_changed=told).run()

    assert ends_although_it_is_told(tmp_path, begin)


def test_a_dispatcher_ends_while_observations_are_stored(tmp_path: Path) -> None:
    async def begin(store: Store, batcher: Batcher, told: Broadcast, folder: Path) -> None:
        batcher.add_model(ModelPackage(LENGTH), make_card())
        await Dispatcher(store, batcher, make_card(), stored=told, predicted=Broadcast()).run()

    assert ends_although_it_is_told(tmp_path, begin)


def nothing_new(connection: Connection, *, after_id: int, limit: int) -> tuple[list[int], int, bool]:
    return [], after_id, True


def test_a_watch_ends_while_something_happens(tmp_path: Path) -> None:
    async def begin(store: Store, batcher: Batcher, told: Broadcast, folder: Path) -> None:
        reading = Reading(store)
        try:
            async for _ in watch(reading, told, Caller(), nothing_new, last_observation_id, 0):  # type: ignore[arg-type]
                pass
        finally:
            reading.close()

    assert ends_although_it_is_told(tmp_path, begin)
