"""Work is derived: what is stored and not predicted is found, predicted once, and stored, whatever happened before."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from server_support import make_bundle, make_observation, open_store
from sqlalchemy import select, update
from test_server_batcher import InProcessWorker

from fieldpost.v1 import observation_pb2 as pb
from fieldpost.v1 import prediction_pb2
from server.analyses import AnalysisCard
from server.batcher import Batcher
from server.broadcast import Broadcast
from server.dispatcher import Dispatcher
from server.ingest import Ingest
from server.pending import activate_models, find_pending
from server.registry import RegisteredInstrument, RegisteredStation, register
from server.store import Store
from server.tables import model_versions, observations, predictions

CARD = AnalysisCard("tests", "length", 1, frozenset({"cl51"}), max_batch=8)


class Predicting:
    """A store with its ingest, and a dispatcher that can be stopped and started."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.stored = Broadcast()
        self.predicted = Broadcast()
        self.ingest = Ingest(store, payload_bytes_max=1 << 20, on_stored=self.stored.tell_from_thread)
        self.batcher = Batcher([CARD], [InProcessWorker])

    async def send(self, *sequences: int) -> None:
        await asyncio.wrap_future(self.ingest.submit(make_bundle(*sequences)))

    async def start(self) -> asyncio.Task[None]:
        (model,) = await asyncio.wrap_future(self.store.write(lambda connection: activate_models(connection, [CARD])))
        dispatcher = Dispatcher(self.store, self.batcher, model, stored=self.stored, predicted=self.predicted)
        return asyncio.create_task(dispatcher.run())

    def answers(self) -> dict[int, int | str]:
        """By sequence: the predicted length, or the failure."""
        query = select(observations.c.sequence, predictions.c.content).join(
            observations, observations.c.id == predictions.c.observation_id
        )
        found: dict[int, int | str] = {}
        with self.store.read() as connection:
            for sequence, content in connection.execute(query):
                assert sequence not in found
                message = prediction_pb2.Prediction.FromString(content)
                found[sequence] = message.failure or message.sample_unix_nanos[0]
        return found

    async def wait_for(self, count: int) -> dict[int, int | str]:
        while len(self.answers()) < count:
            told = self.predicted.listen()
            if len(self.answers()) < count:
                await asyncio.wait_for(told, 10)
        return self.answers()


def run(folder: Path, scenario: Callable[[Predicting], Awaitable[None]]) -> None:
    async def main() -> None:
        store = open_store(folder)
        predicting = Predicting(store)
        try:
            await asyncio.wait_for(scenario(predicting), 30)
        finally:
            predicting.ingest.close()
            store.close()

    asyncio.run(main())


def length(sequence: int) -> int:
    return len(b"observation %d " % sequence * 20)


async def stop(task: asyncio.Task[None]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_what_was_stored_before_the_start_and_after_it_is_predicted(tmp_path: Path) -> None:
    async def scenario(predicting: Predicting) -> None:
        await predicting.send(1, 2, 3)
        task = await predicting.start()
        await predicting.send(*range(4, 100))
        assert await predicting.wait_for(99) == {i: length(i) for i in range(1, 100)}
        await stop(task)

    run(tmp_path, scenario)


def test_a_restart_finds_what_was_left_and_repeats_nothing(tmp_path: Path) -> None:
    async def scenario(predicting: Predicting) -> None:
        task = await predicting.start()
        await predicting.send(1, 2)
        await predicting.wait_for(2)
        await stop(task)
        await predicting.send(3, 4)
        batches_before = predicting.batcher.counts.observations
        task = await predicting.start()
        assert sorted(await predicting.wait_for(4)) == [1, 2, 3, 4]
        assert predicting.batcher.counts.observations - batches_before == 2
        await stop(task)

    run(tmp_path, scenario)


def test_an_observation_that_cannot_be_predicted_is_named_and_not_tried_for_ever(tmp_path: Path) -> None:
    async def scenario(predicting: Predicting) -> None:
        poisoned = pb.Bundle(observations=[make_observation(1), make_observation(2, b"poison"), make_observation(3)])
        await asyncio.wrap_future(predicting.ingest.submit(poisoned))
        task = await predicting.start()
        answers = await predicting.wait_for(3)
        assert answers == {1: length(1), 2: "poisoned", 3: length(3)}
        asked = predicting.batcher.counts.batches
        await stop(task)
        task = await predicting.start()
        await predicting.send(4)
        await predicting.wait_for(4)
        assert predicting.batcher.counts.batches == asked + 1
        await stop(task)

    run(tmp_path, scenario)


@pytest.mark.parametrize("damage", ["cut", "overwritten"])
def test_a_payload_that_is_lost_on_disk_is_left_pending_and_disturbs_no_other(tmp_path: Path, damage: str) -> None:
    async def scenario(predicting: Predicting) -> None:
        await predicting.send(1, 2)
        with predicting.store.read() as connection:
            query = select(observations.c.segment_offset, observations.c.stored_bytes)
            offset, length_bytes = connection.execute(query.where(observations.c.sequence == 1)).one()
        if damage == "cut":
            await asyncio.wrap_future(
                predicting.store.write(
                    lambda connection: connection.execute(
                        update(observations).where(observations.c.sequence == 1).values(segment_offset=1 << 40)
                    )
                )
            )
        else:
            (segment,) = (tmp_path / "segments").glob("*.seg")
            content = bytearray(segment.read_bytes())
            content[offset : offset + length_bytes] = b"\xff" * length_bytes
            segment.write_bytes(content)
        task = await predicting.start()
        assert sorted(await predicting.wait_for(1)) == [2]
        await predicting.send(3)
        assert sorted(await predicting.wait_for(2)) == [2, 3]
        await stop(task)

    run(tmp_path, scenario)


def test_only_instruments_that_the_analysis_answers_for_are_pending(tmp_path: Path) -> None:
    async def scenario(predicting: Predicting) -> None:
        camera = RegisteredStation(
            name="lindenberg", instruments=[RegisteredInstrument(name="camera", instrument_model="all-sky")]
        )
        store = predicting.store
        await asyncio.wrap_future(store.write(lambda connection: register(connection, [camera])))
        await asyncio.wrap_future(predicting.ingest.submit(make_bundle(1, instrument="camera")))
        await predicting.send(2)
        (model,) = await asyncio.wrap_future(store.write(lambda connection: activate_models(connection, [CARD])))
        with store.read() as connection:
            assert [each.instrument_model for each in find_pending(connection, model, 0, 10)] == ["cl51"]

    run(tmp_path, scenario)


def test_a_time_that_only_the_payload_tells_becomes_that_of_the_observation(tmp_path: Path) -> None:
    async def scenario(predicting: Predicting) -> None:
        told, untold = make_observation(1), make_observation(2)
        untold.header.ClearField("measure_time")
        await asyncio.wrap_future(predicting.ingest.submit(pb.Bundle(observations=[told, untold])))
        task = await predicting.start()
        await predicting.wait_for(2)
        await stop(task)
        with predicting.store.read() as connection:
            query = select(observations.c.measure_unix_nanos).order_by(observations.c.sequence)
            times = connection.scalars(query).all()
        # the analysis of these tests takes the length of the payload for the time of its sample
        assert times == [told.header.measure_time.ToNanoseconds(), length(2)]

    run(tmp_path, scenario)


def test_registering_sets_the_settled_mark_back_since_the_past_may_wait_again(tmp_path: Path) -> None:
    async def scenario(predicting: Predicting) -> None:
        store = predicting.store
        await asyncio.wrap_future(store.write(lambda connection: activate_models(connection, [CARD])))
        await asyncio.wrap_future(
            store.write(lambda connection: connection.execute(update(model_versions).values(settled_observation_id=9)))
        )
        other = RegisteredStation(
            name="payerne", instruments=[RegisteredInstrument(name="cl51", instrument_model="cl51")]
        )
        await asyncio.wrap_future(store.write(lambda connection: register(connection, [other])))
        with store.read() as connection:
            assert connection.scalar(select(model_versions.c.settled_observation_id)) == 0

    run(tmp_path, scenario)
