"""Work is derived: what is stored and not predicted is found, predicted once, and stored, whatever happened before."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from server_support import make_bundle, make_observation, open_store
from sqlalchemy import delete, insert, select, update
from worker_support import LENGTH, InProcessPool, make_card, pool_of

from fieldpost.errors import TryAgainError
from fieldpost.v1 import observation_pb2 as pb
from fieldpost.v1 import prediction_pb2
from server.batching.batcher import Batcher
from server.batching.policy import BatchPolicy, Priority
from server.broadcast import Broadcast
from server.ingest.core import Ingest
from server.ingest.registry import RegisteredInstrument, RegisteredStation, register
from server.models.card import ModelCard, ModelState, Restriction
from server.prediction import dispatcher as dispatcher_module
from server.prediction import settled as settled_module
from server.prediction import streams as streams_module
from server.prediction.answer_order import AnswerOrder
from server.prediction.dispatcher import Dispatcher
from server.prediction.pending import Span, find_pending, move_settled, read_settled
from server.queries.predictions import PredictionFilter, retry_failures
from server.storage.store import Store
from server.storage.tables import model_versions, observations, predictions
from server.workers.jobs import ModelPackage

ALL = Span(is_live=False, mark_id=1 << 40, after_id=0)


class Predicting:
    """A store with its ingest, and a dispatcher that can be stopped and started."""

    def __init__(self, store: Store, worker_count: int, queue_count_max: int) -> None:
        self.store = store
        self.stored = Broadcast()
        self.predicted = Broadcast()
        self.ingest = Ingest(store, payload_bytes_max=1 << 24, on_stored=self.stored.tell_from_thread)
        pools: list[InProcessPool] = []
        self.batcher = Batcher(pool_of(pools, worker_count), BatchPolicy(queue_count_max=queue_count_max))
        self.card = make_card()
        self.batcher.add_model(ModelPackage(LENGTH), self.card)
        self.pool = pools[0]

    async def send(self, *sequences: int, instrument: str = "cl51") -> None:
        await self.send_all([make_observation(each, instrument=instrument) for each in sequences])

    async def send_fresh(self, *sequences: int) -> None:
        """Observations that were captured just now."""
        fresh = [make_observation(each) for each in sequences]
        for each in fresh:
            each.header.capture_clock.wall_time.FromNanoseconds(time.time_ns())
        await self.send_all(fresh)

    async def send_all(self, sent: list[pb.Observation]) -> None:
        receipt = await asyncio.wrap_future(self.ingest.submit(pb.Bundle(observations=sent)))
        assert not receipt.rejections

    async def enter_model(self, **facts: object) -> ModelCard:
        """Makes the model version's row, where it is missing; returns its card."""

        def write(connection):  # type: ignore[no-untyped-def]
            if connection.scalar(select(model_versions.c.id)) is None:
                row = {"analysis": LENGTH.analysis, "version": LENGTH.version, "state": "active", "kind": "built-in"}
                connection.execute(insert(model_versions).values(**row))

        await asyncio.wrap_future(self.store.write(write))
        return replace(self.card, **facts)  # type: ignore[arg-type]

    async def start(self, **facts: object) -> asyncio.Task[None]:
        card = await self.enter_model(**facts)
        dispatcher = Dispatcher(self.store, self.batcher, card, stored=self.stored, predicted=self.predicted)
        return asyncio.create_task(dispatcher.run())

    def answers(self) -> dict[int, int | str]:
        """By sequence, in the order in which they were stored: the predicted length, or the failure."""
        query = (
            select(observations.c.sequence, predictions.c.content)
            .join(observations, observations.c.id == predictions.c.observation_id)
            .order_by(predictions.c.id)
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

    def settled(self) -> int:
        with self.store.read() as connection:
            return read_settled(connection, 1)


def run(
    folder: Path,
    scenario: Callable[[Predicting], Awaitable[None]],
    *,
    instruments: tuple[str, ...] = ("cl51",),
    worker_count: int = 1,
    queue_count_max: int = 10_000,
    database_url: str = "",
) -> None:
    async def main() -> None:
        store = open_store(folder, instruments=instruments, database_url=database_url)
        predicting = Predicting(store, worker_count, queue_count_max)
        try:
            await asyncio.wait_for(scenario(predicting), 30)
        finally:
            predicting.batcher.close()
            predicting.ingest.close()
            store.close()

    asyncio.run(main())


def length(sequence: int) -> int:
    return len(b"observation %d " % sequence * 20)


async def stop(task: asyncio.Task[None]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_what_was_stored_before_the_start_and_after_it_is_predicted(tmp_path: Path, database_url: str) -> None:
    async def scenario(predicting: Predicting) -> None:
        await predicting.send(1, 2, 3)
        task = await predicting.start()
        await predicting.send(*range(4, 100))
        assert await predicting.wait_for(99) == {i: length(i) for i in range(1, 100)}
        await stop(task)

    run(tmp_path, scenario, database_url=database_url)


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
        card = await predicting.enter_model()
        with store.read() as connection:
            found, until_id = find_pending(connection, card, ALL, 10)
        assert [each.instrument_model for each in found] == ["cl51"]
        assert until_id == 2

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
        await predicting.enter_model()
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


def test_what_is_fresh_does_not_wait_behind_the_backlog(tmp_path: Path, database_url: str) -> None:
    async def scenario(predicting: Predicting) -> None:
        await predicting.send(*range(1, 401))
        predicting.pool.workers[0].delay_s = 0.02
        task = await predicting.start()
        await predicting.wait_for(8)
        await predicting.send_fresh(1000, 1001)
        while 1001 not in (answers := predicting.answers()):
            await asyncio.wait_for(predicting.predicted.listen(), 10)
        assert len(answers) < 200
        queue = predicting.batcher.queues()[0]
        assert queue.live_count == 0 and queue.backfill_count > 0
        predicting.pool.workers[0].delay_s = 0.0
        assert len(await predicting.wait_for(402)) == 402
        await stop(task)

    run(tmp_path, scenario, database_url=database_url)


@pytest.mark.parametrize(
    ("state", "fresh", "expected"),
    [
        (ModelState.ACTIVE, True, Priority.LIVE),
        (ModelState.ACTIVE, False, Priority.BACKFILL),
        (ModelState.SHADOW, True, Priority.SHADOW),
        (ModelState.SHADOW, False, Priority.SHADOW),
    ],
)
def test_what_goes_first_depends_on_the_state_and_on_how_fresh_it_is(
    tmp_path: Path, state: ModelState, fresh: bool, expected: Priority
) -> None:
    async def scenario(predicting: Predicting) -> None:
        predicting.pool.workers[0].is_away = True
        task = await predicting.start(state=state)
        await asyncio.sleep(0.05)  # the mark is set: what comes now is after it
        await (predicting.send_fresh if fresh else predicting.send)(1)
        while not any(counts := predicting.batcher.queues()[0][1:4]):
            await asyncio.sleep(0.01)
        assert counts == tuple(int(each == expected) for each in Priority)
        await stop(task)
        await asyncio.sleep(0)
        assert predicting.batcher.queues()[0][1:4] == (0, 0, 0)  # what nobody would store leaves the queue

    run(tmp_path, scenario)


def test_predictions_of_an_instrument_are_stored_in_order_whichever_worker_was_faster(tmp_path: Path) -> None:
    async def scenario(predicting: Predicting) -> None:
        slow, fast = predicting.pool.workers
        slow.delay_s, fast.delay_s = 0.05, 0.001
        await predicting.send(*range(1, 101))
        task = await predicting.start()
        await asyncio.sleep(0.05)
        await predicting.send_fresh(*range(101, 151))
        stored = list(await predicting.wait_for(150))
        assert [each for each in stored if each <= 100] == list(range(1, 101))
        assert [each for each in stored if each > 100] == list(range(101, 151))
        assert slow.jobs and len(fast.jobs) > len(slow.jobs)
        await stop(task)

    run(tmp_path, scenario, worker_count=2)


@given(st.permutations(range(12)))
def test_answers_come_out_in_the_order_of_the_questions_and_nobody_waits_for_another_instrument(
    arrivals: list[int],
) -> None:
    order: AnswerOrder[int] = AnswerOrder()
    for each in range(12):
        order.ask(each % 3, each)
    out: list[int] = []
    for count, each in enumerate(arrivals, 1):
        out += order.answer(each % 3, each, each)
        for instrument in range(3):
            answered = {arrived for arrived in arrivals[:count] if arrived % 3 == instrument}
            mine = list(range(instrument, 12, 3))
            due = next((i for i, one in enumerate(mine) if one not in answered), len(mine))
            assert [one for one in out if one % 3 == instrument] == mine[:due]


def test_only_so_many_bytes_are_in_memory_and_a_larger_payload_goes_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher_module, "IN_FLIGHT_BYTES_MAX", 1 << 20)

    async def scenario(predicting: Predicting) -> None:
        content = [
            random.Random(i).randbytes(size) for i, size in enumerate((400_000,) * 3 + (3_000_000, 300_000, 300_000))
        ]
        await predicting.send_all([make_observation(i, each) for i, each in enumerate(content, 1)])
        waiting: list[int] = []
        submit = predicting.batcher.submit

        def watch(key, item, **where):  # type: ignore[no-untyped-def]
            answer = submit(key, item, **where)
            waiting.append(len(item.payload))
            answer.add_done_callback(lambda done: waiting.remove(len(item.payload)))
            assert len(waiting) == 1 or sum(waiting) <= dispatcher_module.IN_FLIGHT_BYTES_MAX
            return answer

        monkeypatch.setattr(predicting.batcher, "submit", watch)
        predicting.pool.workers[0].delay_s = 0.01
        task = await predicting.start()
        assert list(await predicting.wait_for(6)) == [1, 2, 3, 4, 5, 6]
        await stop(task)

    run(tmp_path, scenario)


def test_a_restriction_leaves_out_what_is_not_meant(tmp_path: Path, database_url: str) -> None:
    async def scenario(predicting: Predicting) -> None:
        both = [RegisteredInstrument(name=name, instrument_model="cl51") for name in ("cl51", "second")]
        others = [
            RegisteredStation(name="payerne", instruments=both),
            RegisteredStation(name="lindenberg", instruments=both),
        ]
        store = predicting.store
        await asyncio.wrap_future(store.write(lambda connection: register(connection, others)))
        for number, (station, instrument) in enumerate(
            [("lindenberg", "cl51"), ("lindenberg", "second"), ("payerne", "cl51"), ("payerne", "second")], 1
        ):
            epoch = f"{number:032x}"
            await predicting.send_all([make_observation(number, station=station, instrument=instrument, epoch=epoch)])
        card = await predicting.enter_model()

        def pending(restriction: Restriction) -> list[int]:
            with store.read() as connection:
                found, until_id = find_pending(connection, replace(card, restriction=restriction), ALL, 10)
            assert until_id == 4
            return [each.observation_id for each in found]

        assert pending(Restriction()) == [1, 2, 3, 4]
        assert pending(Restriction(stations=("payerne",))) == [3, 4]
        assert pending(Restriction(instruments=("lindenberg/second",))) == [2]
        assert pending(Restriction(stations=("payerne",), instruments=("lindenberg/second",))) == [2, 3, 4]
        assert pending(Restriction(instruments=("second",))) == []

    run(tmp_path, scenario, database_url=database_url)


def test_a_look_is_short_however_many_others_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.prediction.pending.SCAN_IDS_MAX", 5)

    async def scenario(predicting: Predicting) -> None:
        await predicting.send(*range(1, 21), instrument="camera")
        await predicting.send(21)
        card = await predicting.enter_model()
        with predicting.store.read() as connection:
            assert find_pending(connection, card, ALL, 10) == ([], 5)
        task = await predicting.start()
        assert await predicting.wait_for(1) == {21: length(21)}
        await stop(task)

    run(tmp_path, scenario, instruments=("cl51", "camera"))


def test_a_mark_that_is_set_back_is_noticed_also_for_what_came_fresh(
    tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settled_module, "SETTLE_EVERY_S", 0.05)
    monkeypatch.setattr(streams_module, "LOOK_AGAIN_S", 0.05)

    async def scenario(predicting: Predicting) -> None:
        await predicting.send(1, 2)
        task = await predicting.start()
        await predicting.wait_for(2)
        await predicting.send_fresh(3, 4)
        await predicting.wait_for(4)
        while predicting.settled() < 4:
            await asyncio.sleep(0.01)

        def retry(connection):  # type: ignore[no-untyped-def]
            connection.execute(delete(predictions).where(predictions.c.observation_id.in_([2, 3])))
            connection.execute(update(model_versions).values(settled_observation_id=0))

        await asyncio.wrap_future(predicting.store.write(retry))
        assert sorted(predicting.answers()) == [1, 4]
        assert sorted(await predicting.wait_for(4)) == [1, 2, 3, 4]
        while predicting.settled() < 4:
            await asyncio.sleep(0.01)
        assert predicting.batcher.counts.observations == 6
        await stop(task)

    run(tmp_path, scenario, database_url=database_url)


def test_a_failure_that_is_to_be_tried_again_before_the_mark_has_passed_it_is_noticed(
    tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settled_module, "SETTLE_EVERY_S", 0.3)
    monkeypatch.setattr(streams_module, "LOOK_AGAIN_S", 0.05)

    async def scenario(predicting: Predicting) -> None:
        await predicting.send_all([make_observation(1), make_observation(2, b"poison"), make_observation(3)])
        task = await predicting.start()
        await predicting.wait_for(3)
        retry = retry_failures, PredictionFilter(analysis=LENGTH.analysis)
        assert await asyncio.wrap_future(predicting.store.write(lambda connection: retry[0](connection, retry[1]))) == 1
        assert predicting.settled() == 0, "there was no mark yet to be set back"
        assert sorted(await predicting.wait_for(3)) == [1, 2, 3]
        while predicting.settled() < 3:
            await asyncio.sleep(0.01)
        await stop(task)

    run(tmp_path, scenario, database_url=database_url)


def test_who_was_restricted_meanwhile_moves_no_mark(tmp_path: Path) -> None:
    async def scenario(predicting: Predicting) -> None:
        await predicting.send(1, 2, 3)
        card = await predicting.enter_model()
        task = await predicting.start()
        await predicting.wait_for(3)
        await stop(task)
        wider = Restriction(stations=("lindenberg",)).to_json()

        def restrict_and_move(connection):  # type: ignore[no-untyped-def]
            connection.execute(update(model_versions).values(restriction=wider))
            return move_settled(connection, card, expected=0, settled=3)

        assert await asyncio.wrap_future(predicting.store.write(restrict_and_move)) is None
        assert predicting.settled() == 0

    run(tmp_path, scenario)


def test_the_mark_stays_behind_what_is_not_stored_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settled_module, "SETTLE_EVERY_S", 0.03)

    async def scenario(predicting: Predicting) -> None:
        await predicting.send(1, 2, 3)
        task = await predicting.start()
        await predicting.wait_for(3)
        predicting.pool.workers[0].is_away = True
        await predicting.send_fresh(4)
        while predicting.settled() < 3:
            await asyncio.sleep(0.01)
        await predicting.send(5)
        await asyncio.sleep(0.2)
        assert predicting.settled() == 3
        predicting.pool.workers[0].is_away = False
        predicting.batcher.on_ready()
        await predicting.wait_for(5)
        while predicting.settled() < 5:
            await asyncio.sleep(0.01)
        await stop(task)

    run(tmp_path, scenario)


def test_however_often_it_is_stopped_each_observation_is_predicted_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settled_module, "SETTLE_EVERY_S", 0.01)
    monkeypatch.setattr(streams_module, "BACKLOG_WAIT_S", 0.001)

    async def scenario(predicting: Predicting) -> None:
        predicting.pool.workers[0].delay_s = 0.002
        await predicting.send(*range(1, 101))
        for stopped_after_ms in range(0, 60, 3):
            task = await predicting.start()
            await predicting.send_fresh(1000 + stopped_after_ms)
            await asyncio.sleep(stopped_after_ms / 1000)
            await stop(task)
        task = await predicting.start()
        answers = await predicting.wait_for(120)  # which sees to it that none is there twice
        assert sorted(answers) == [*range(1, 101), *range(1000, 1060, 3)]
        assert all(answers[each] == length(each) for each in answers)
        await stop(task)

    run(tmp_path, scenario)


def test_a_full_queue_makes_the_dispatcher_wait_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher_module, "OVERLOAD_WAIT_S", 0.005)

    async def scenario(predicting: Predicting) -> None:
        await predicting.send(*range(1, 51))
        task = await predicting.start()
        assert list(await predicting.wait_for(50)) == list(range(1, 51))
        assert predicting.batcher.counts.refused > 0
        await stop(task)

    run(tmp_path, scenario, queue_count_max=4)


def test_a_model_version_that_is_taken_out_of_service_ends_its_dispatcher(tmp_path: Path) -> None:
    async def scenario(predicting: Predicting) -> None:
        predicting.pool.workers[0].is_away = True
        await predicting.send(1)
        task = await predicting.start()
        while not predicting.batcher.queues()[0].backfill_count:
            await asyncio.sleep(0.01)
        predicting.batcher.remove_model(LENGTH)
        with pytest.raises(TryAgainError, match="taken out of service"):
            await asyncio.wait_for(task, 5)

    run(tmp_path, scenario)
