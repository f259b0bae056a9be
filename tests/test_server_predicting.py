"""Batcher and dispatchers follow the catalogue of models: load, switch, retire, ask by number."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from model_support import PROFILE_MANIFEST, make_profile_model
from server_support import make_bundle, open_store
from sqlalchemy import Connection, func, select
from worker_support import InProcessPool, InProcessWorker, make_item, pool_of

from fieldpost.errors import UnknownModelError
from server.batching.batcher import Batcher, PredictionFailedError
from server.broadcast import Broadcast
from server.ingest.core import Ingest
from server.models import catalogue
from server.models.card import ModelState, Trial
from server.models.files import ModelFiles
from server.prediction import predicting as predicting_module
from server.prediction import streams as streams_module
from server.prediction.predicting import Predicting
from server.storage.store import Store
from server.storage.tables import model_versions, predictions
from server.workers.jobs import ModelKey

NAME = "layer-height"
V1, V2, V3 = (ModelKey(NAME, version) for version in (1, 2, 3))
READY, SHADOW, ACTIVE, RETIRED = ModelState


class Running:
    """A store with submitted models, and what predicts with them over a worker inside the process."""

    def __init__(self, store: Store, folder: Path) -> None:
        self.store, self.files = store, ModelFiles(folder / "models")
        self.stored, self.predicted, self.changed = Broadcast(), Broadcast(), Broadcast()
        self.ingest = Ingest(store, payload_bytes_max=1 << 20, on_stored=self.stored.tell_from_thread)
        pools: list[InProcessPool] = []
        self.batcher = Batcher(pool_of(pools))
        self.pool = pools[0]
        self.predicting = Predicting(
            store,
            self.batcher,
            self.files,
            stored=self.stored,
            predicted=self.predicted,
            models_changed=self.changed,
        )

    @property
    def worker(self) -> InProcessWorker:
        (worker,) = self.pool.workers
        return worker

    async def write(self, operation: Callable[[Connection], object]) -> None:
        await asyncio.wrap_future(self.store.write(operation))
        self.changed.tell()

    async def submit(self, *, analysis: str = NAME) -> None:
        content = make_profile_model()
        new = catalogue.NewModel(
            analysis,
            self.files.keep(content),
            len(content),
            PROFILE_MANIFEST.replace(NAME, analysis),
            "",
            "a test",
            b"",
            Trial(max_batch_count=8),
        )
        await self.write(lambda connection: catalogue.add_version(connection, new, time.time_ns()))

    async def set_state(self, key: ModelKey, state: ModelState) -> None:
        await self.write(
            lambda connection: catalogue.change_state(connection, key, state, "a test", "", time.time_ns())
        )

    async def send(self, *sequences: int) -> None:
        await asyncio.wrap_future(self.ingest.submit(make_bundle(*sequences)))

    def counts(self) -> dict[ModelKey, int]:
        """Predictions by model version."""
        query = select(model_versions.c.analysis, model_versions.c.version, func.count()).join(
            predictions, predictions.c.model_version_id == model_versions.c.id
        )
        with self.store.read() as connection:
            rows = connection.execute(query.group_by(model_versions.c.analysis, model_versions.c.version)).all()
        return {ModelKey(row[0], row[1]): row[2] for row in rows}

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition():
                await asyncio.sleep(0.01)


def run(folder: Path, scenario: Callable[[Running], Awaitable[None]]) -> None:
    async def main() -> None:
        store = open_store(folder)
        running = Running(store, folder)
        task = asyncio.create_task(running.predicting.run())
        try:
            await asyncio.wait_for(scenario(running), 30)
            assert not task.done()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            running.batcher.close()
            running.ingest.close()
            store.close()

    asyncio.run(main())


def test_the_active_version_and_a_shadow_predict_what_is_stored(tmp_path: Path) -> None:
    async def scenario(running: Running) -> None:
        for _ in range(3):
            await running.submit()
        await running.set_state(V1, ACTIVE)
        await running.set_state(V2, SHADOW)
        await running.send(1, 2, 3)
        await running.until(lambda: running.counts() == {V1: 3, V2: 3})

    run(tmp_path, scenario)


def test_the_next_version_is_loaded_before_the_one_before_it_stops_and_nothing_is_left_out(tmp_path: Path) -> None:
    async def scenario(running: Running) -> None:
        for _ in range(2):
            await running.submit()
        await running.set_state(V1, ACTIVE)
        await running.send(1)
        await running.until(lambda: running.counts() == {V1: 1})
        assert (await running.predicting.find(NAME, 0)).key == V1
        asked = len(running.worker.jobs)
        running.worker.is_away = True  # nothing is loaded meanwhile
        await running.set_state(V2, ACTIVE)
        await running.until(lambda: V2 in running.batcher.model_keys())
        assert (await running.predicting.find(NAME, 0)).key == V1  # answered by what is loaded
        await running.send(2)
        running.worker.is_away = False
        running.batcher.on_ready()
        await running.until(lambda: running.counts().get(V2) == 2)
        first = running.worker.jobs[asked]
        assert (first.key, first.items) == (V2, [])
        await running.until(lambda: (running.predicting._active[NAME]) == V2)
        await running.send(3)
        await running.until(lambda: running.counts().get(V2) == 3)
        assert running.counts()[V1] <= 2
        assert (await running.predicting.find(NAME, 0)).key == V2

    run(tmp_path, scenario)


def test_a_retired_version_is_unloaded_and_unknown(tmp_path: Path) -> None:
    async def scenario(running: Running) -> None:
        await running.submit()
        await running.set_state(V1, ACTIVE)
        await running.send(1)
        await running.until(lambda: running.counts() == {V1: 1})
        await running.predicting.find(NAME, 1)
        await running.set_state(V1, RETIRED)
        await running.until(lambda: running.batcher.model_keys() == [])
        assert running.worker.unloaded == [V1]
        for version in (0, 1):
            with pytest.raises(UnknownModelError):
                await running.predicting.find(NAME, version)

    run(tmp_path, scenario)


def test_a_version_that_is_only_ready_is_loaded_when_it_is_asked_by_number_and_unloaded_when_unused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(running: Running) -> None:
        await running.submit()
        assert running.batcher.model_keys() == []
        cards = await asyncio.gather(*(running.predicting.find(NAME, 1) for _ in range(20)))
        assert {card.key for card in cards} == {V1}
        assert [job.items for job in running.worker.jobs] == [[]]  # loaded once, for all who asked
        answer = await running.batcher.submit(V1, make_item(b"abc"), lane="a")
        assert answer.sample_unix_nanos[0] == 3
        running.changed.tell()
        await asyncio.sleep(0.05)
        assert running.batcher.model_keys() == [V1]
        monkeypatch.setattr(predicting_module, "UNUSED_MAX_S", 0.0)
        running.changed.tell()
        await running.until(lambda: running.batcher.model_keys() == [])
        assert running.counts() == {}

    run(tmp_path, scenario)


def test_what_does_not_exist_is_unknown(tmp_path: Path) -> None:
    async def scenario(running: Running) -> None:
        await running.submit()
        for analysis, version in ((NAME, 0), (NAME, 2), ("nothing", 1), ("nothing", 0)):
            with pytest.raises(UnknownModelError, match=analysis):
                await running.predicting.find(analysis, version)

    run(tmp_path, scenario)


def test_a_version_that_cannot_be_loaded_says_so_and_the_next_one_who_asks_tries_again(tmp_path: Path) -> None:
    async def scenario(running: Running) -> None:
        for analysis in (NAME, "other"):
            await running.submit(analysis=analysis)
        await running.predicting.find("other", 1)
        running.worker.will_not_load.add(V1)
        for _ in range(2):
            with pytest.raises(PredictionFailedError, match="cannot be loaded"):
                await running.predicting.find(NAME, 1)
        running.worker.will_not_load.clear()
        assert (await running.predicting.find(NAME, 1)).key == V1

    run(tmp_path, scenario)


def test_nobody_is_told_why_a_version_could_not_be_loaded_when_somebody_else_asked(tmp_path: Path) -> None:
    async def scenario(running: Running) -> None:
        for analysis in (NAME, "other"):
            await running.submit(analysis=analysis)
        await running.predicting.find("other", 1)
        running.worker.will_not_load.add(V1)
        gone = asyncio.create_task(running.predicting.find(NAME, 1))
        asked = running.predicting._asked
        await running.until(lambda: V1 in asked)
        gone.cancel()  # gives up; the loading goes on, and fails
        await running.until(lambda: V1 in asked and asked[V1].loading.done())
        running.worker.will_not_load.clear()
        assert (await running.predicting.find(NAME, 1)).key == V1

    run(tmp_path, scenario)


def test_an_active_version_that_cannot_be_loaded_has_failures_to_show_and_disturbs_no_other(tmp_path: Path) -> None:
    async def scenario(running: Running) -> None:
        other = ModelKey("other", 1)
        for analysis in (NAME, "other"):
            await running.submit(analysis=analysis)
        await running.set_state(other, ACTIVE)
        await running.until(lambda: bool(running.pool.workers))
        running.worker.will_not_load.add(V1)
        await running.set_state(V1, ACTIVE)
        await running.send(1, 2)
        await running.until(lambda: running.counts() == {V1: 2, other: 2})
        assert running.batcher.model_counts[V1].failed == 2
        assert running.batcher.model_counts[other].predicted == 2

    run(tmp_path, scenario)


def test_a_dispatcher_that_fails_is_started_again_and_disturbs_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predicting_module, "RETRY_WAIT_MIN_S", 0.05)
    monkeypatch.setattr(streams_module, "LOOK_AGAIN_S", 0.05)

    async def scenario(running: Running) -> None:
        other = ModelKey("other", 1)
        for key in (V1, other):
            await running.submit(analysis=key.analysis)
            await running.set_state(key, ACTIVE)
        await running.until(lambda: len(running.batcher.model_keys()) == 2)
        running.batcher.remove_model(V1)  # as if something had gone wrong under its feet
        await running.send(1, 2)
        await running.until(lambda: running.counts() == {V1: 2, other: 2})

    run(tmp_path, scenario)


def test_a_model_file_that_is_gone_stops_only_its_own_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predicting_module, "RETRY_WAIT_MIN_S", 0.05)

    async def scenario(running: Running) -> None:
        await running.submit()
        (path,) = (tmp_path / "models").iterdir()
        content = path.read_bytes()
        path.unlink()
        await running.set_state(V1, ACTIVE)
        await running.send(1)
        await asyncio.sleep(0.1)
        assert running.counts() == {}
        path.write_bytes(content)  # restored: it is found without a restart
        await running.until(lambda: running.counts() == {V1: 1})

    run(tmp_path, scenario)
