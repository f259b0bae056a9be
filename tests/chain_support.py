"""A store, and a follower at work in it, with the analysis that chains; and what is to stand there in the end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path

from chain_analysis import CHAIN, COURSE_NANOS, COURSE_START, STEP_NANOS, Chain, course_start
from server_support import make_observation, open_store
from sqlalchemy import Connection, delete, insert, select
from worker_support import InProcessPool, InProcessWorker, make_card

from fieldpost.payload import decode_checked
from fieldpost.v1 import observation_pb2 as pb
from fieldpost.v1 import prediction_pb2
from server.analyses import AnalysisInput, Stretch
from server.archive.bags import InstrumentDay, list_day_observations, read_extent
from server.archive.hot_rows import let_go
from server.batching.batcher import Batcher
from server.broadcast import Broadcast
from server.ingest.core import Ingest
from server.models.card import ModelCard
from server.prediction.following import Follower
from server.prediction.pending import read_settled
from server.queries.predictions import encode_failure, encode_result
from server.storage.store import Store
from server.storage.tables import follow_states, model_versions, observations, predictions
from server.workers.jobs import Job, JobDone, ModelPackage
from server.workers.worker import finish_in_blocks, in_words, prepare_batch


class ChainWorker(InProcessWorker):
    """Computes with it."""

    def _compute(self, job: Job) -> JobDone:
        try:
            return finish_in_blocks(job.job_id, Chain(), prepare_batch(Chain(), job.items, job.stretches))
        except ZeroDivisionError as error:
            return JobDone(job.job_id, failure=str(error))


class ChainPool(InProcessPool):
    """A pool of one such worker for each kind."""

    def need(self, kind) -> None:  # type: ignore[no-untyped-def]
        if not self.workers:
            self.workers.append(ChainWorker(self.events, "chain-1", kind))


def observe(
    sequence: int,
    *,
    said: str = "fine",
    instrument: str = "cl51",
    base_nanos: int = COURSE_START,
    is_untold: bool = False,
    delay_nanos: int = 1,
    measured_at: int | None = None,
) -> pb.Observation:
    """One observation a step; where untold, only its payload tells when it was measured."""
    measured = base_nanos + sequence * STEP_NANOS if measured_at is None else measured_at
    observation = make_observation(sequence, f"{measured} {said}".encode(), instrument=instrument)
    observation.header.measure_time.FromNanoseconds(measured)
    observation.header.capture_clock.wall_time.FromNanoseconds(measured + delay_nanos)
    if is_untold:
        observation.header.ClearField("measure_time")
    return observation


def expect(held: Sequence[pb.Observation]) -> dict[int, bytes]:
    """What is to be stored of these observations in the end, by sequence: a fold in the order of measure time."""
    found: dict[int, bytes] = {}
    states: dict[tuple[str, int | None], bytes] = {}
    for each in sorted(held, key=lambda one: (measured_at(one), one.header.sequence)):
        header = each.header
        capture = header.capture_clock.wall_time.ToNanoseconds()
        given = header.measure_time.ToNanoseconds() if header.HasField("measure_time") else capture
        course = header.instrument, course_start(1, measured_at(each), None)
        state = states.get(course, b"")
        try:
            said = Chain().follow([Stretch(state, [AnalysisInput(payload_of(each), "cl51", given)])])[0]
        except ZeroDivisionError as error:
            found[header.sequence] = encode_failure(str(error))
            continue
        (result,) = said.results
        if isinstance(result, Exception):
            found[header.sequence] = encode_failure(in_words(result))
        else:
            found[header.sequence] = encode_result(result)
        states[course] = said.state
    return found


def course_before_now() -> int:
    """The start of a course that is fresh."""
    return time.time_ns() // COURSE_NANOS * COURSE_NANOS - COURSE_NANOS


def payload_of(observation: pb.Observation) -> bytes:
    return decode_checked(observation)


def measured_at(observation: pb.Observation) -> int:
    """When it was measured, as far as anybody can know."""
    header = observation.header
    instant, _, said = payload_of(observation).partition(b" ")
    if header.HasField("measure_time"):
        return header.measure_time.ToNanoseconds()
    return int(instant) if said == b"fine" else header.capture_clock.wall_time.ToNanoseconds()


class Following:
    """A store with its ingest, and a follower that can be stopped and started."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.stored = Broadcast()
        self.predicted = Broadcast()
        self.ingest = Ingest(store, payload_bytes_max=1 << 24, on_stored=self.stored.tell_from_thread)
        pools: list[ChainPool] = []

        def start(events):  # type: ignore[no-untyped-def]
            pools.append(ChainPool(events))
            return pools[0]

        self.batcher = Batcher(start)
        self.card = make_card(CHAIN)
        self.batcher.add_model(ModelPackage(CHAIN), self.card)
        self.pool = pools[0]

    async def send(self, *sent: pb.Observation) -> None:
        receipt = await asyncio.wrap_future(self.ingest.submit(pb.Bundle(observations=sent)))
        assert not receipt.rejections

    async def write(self, operation: Callable) -> object:  # type: ignore[type-arg]
        return await asyncio.wrap_future(self.store.write(operation))

    async def start(self, **facts: object) -> asyncio.Task[None]:
        def enter(connection):  # type: ignore[no-untyped-def]
            if connection.scalar(select(model_versions.c.id)) is None:
                row = {"analysis": CHAIN.analysis, "version": CHAIN.version, "state": "active", "kind": "built-in"}
                connection.execute(insert(model_versions).values(**row, first_active_unix_nanos=0))

        await self.write(enter)
        card: ModelCard = replace(self.card, **facts)  # type: ignore[arg-type]
        told = {"stored": self.stored, "predicted": self.predicted}
        return asyncio.create_task(Follower(self.store, self.batcher, card, course_start, **told).run())

    def answers(self) -> dict[int, bytes]:
        """Contents by sequence, in the order in which they were stored."""
        return {sequence: content for sequence, content, _, _ in self.rows()}

    def rows(self) -> list[tuple[int, bytes, bool, int]]:
        """Sequence, content, whether it is provisional, and number of each prediction, by number."""
        columns = (observations.c.sequence, predictions.c.content, predictions.c.is_provisional, predictions.c.id)
        query = select(*columns).join(observations, observations.c.id == predictions.c.observation_id)
        with self.store.read() as connection:
            return [tuple(row) for row in connection.execute(query.order_by(predictions.c.id))]

    def state(self) -> dict[str, object] | None:
        with self.store.read() as connection:
            row = connection.execute(select(follow_states)).first()
        return None if row is None else row._asdict()

    @staticmethod
    def forget_states(connection: Connection) -> None:
        """A state is only a cache."""
        connection.execute(delete(follow_states))

    def settled(self) -> int:
        with self.store.read() as connection:
            return read_settled(connection, 1)

    async def until(self, is_so: Callable[[], bool], timeout_s: float = 40.0) -> None:
        deadline_s = time.monotonic() + timeout_s
        while not is_so():
            assert time.monotonic() < deadline_s, self.describe()
            told = self.predicted.listen()
            if is_so():
                return
            try:
                async with asyncio.timeout(0.05):
                    await told
            except TimeoutError:
                continue

    async def until_final(self, count: int) -> dict[int, bytes]:
        """Waits until so many predictions are there, and all of them final."""

        def is_so() -> bool:
            rows = self.rows()
            return len(rows) == count and not any(is_provisional for _, _, is_provisional, _ in rows)

        await self.until(is_so)
        return self.answers()

    def describe(self) -> str:
        found = [(sequence, is_provisional) for sequence, _, is_provisional, _ in self.rows()]
        return f"(sequence, is_provisional): {found}; state: {self.state()}"


def prune_sequences(connection: Connection, sequences: list[int]) -> None:
    """Lets go of observations of the one instrument, as retention does."""
    day = InstrumentDay(1, "lindenberg", "cl51", date(2025, 6, 15), "cl51", None, None, None, None)
    rows = list_day_observations(connection, day, read_extent(connection), None, 100)
    assert rows
    let_go(connection, day, [row for row in rows if row.sequence in sequences])


def to_message(content: bytes) -> prediction_pb2.Prediction:
    return prediction_pb2.Prediction.FromString(content)


async def stop(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()


def run(
    folder: Path,
    scenario: Callable[[Following], Awaitable[None]],
    *,
    instruments: tuple[str, ...] = ("cl51",),
    database_url: str = "",
) -> None:
    async def main() -> None:
        store = open_store(folder, instruments=instruments, database_url=database_url)
        following = Following(store)
        try:
            await asyncio.wait_for(scenario(following), 40)
        finally:
            following.batcher.close()
            following.ingest.close()
            await asyncio.get_running_loop().shutdown_default_executor()  # threads of who was stopped may read still
            store.close()

    asyncio.run(main())
