"""The batcher: bisection, deaths, fairness; with a worker inside the process, and with real processes."""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import time
from collections.abc import Sequence

import numpy as np
import pytest

from fieldpost.errors import TryAgainError
from fieldpost.simulation import SimulatedCl51
from fieldpost.v1 import observation_pb2 as pb
from server.analyses import AnalysisCard, AnalysisInput, AnalysisResult, AnalysisVariable, find_analyses
from server.batcher import Batcher, PredictionFailedError
from server.jobs import Job, JobDone, WorkItem, pack_results
from server.worker import predict_items
from server.workers import LocalWorker, WorkerEvents

CARD = AnalysisCard("tests", "length", 1, frozenset({"any"}), max_batch=8)


class LengthAnalysis:
    """Answers with the payload's length; breaks on `poison`, and kills its worker on `deadly`."""

    name, version, instrument_models, max_batch = "length", 1, frozenset({"any"}), 8

    def predict(self, batch: Sequence[AnalysisInput]) -> list[AnalysisResult | Exception]:
        if any(each.payload == b"poison" for each in batch):
            raise ZeroDivisionError("poisoned")
        return [AnalysisResult(np.array([len(each.payload)], np.int64), ()) for each in batch]


class InProcessWorker:
    """A worker that answers in the next turn of the loop, and dies with a deadly payload."""

    def __init__(self, events: WorkerEvents) -> None:
        self.events = events
        self.jobs: list[Job] = []
        self.is_busy = False
        self.deaths = 0

    @property
    def free_slots(self) -> int:
        return 0 if self.is_busy else 1

    def send(self, job: Job) -> None:
        self.jobs.append(job)
        self.is_busy = True
        asyncio.get_running_loop().call_soon(self._work, job)

    def _work(self, job: Job) -> None:
        self.is_busy = False
        if any(item.payload == b"deadly" for item in job.items):
            self.deaths += 1
            self.events.on_lost([job])
            return
        try:
            self.events.on_done(pack_results(job.job_id, predict_items(LengthAnalysis(), job.items)))
        except ZeroDivisionError as error:
            self.events.on_done(JobDone(job.job_id, failure=str(error)))

    def close(self) -> None:
        self.is_busy = True


def item(payload: bytes, payload_bytes: int | None = None) -> WorkItem:
    size = len(payload) if payload_bytes is None else payload_bytes
    return WorkItem(payload, pb.PAYLOAD_ENCODING_IDENTITY, size, "any", 0)


async def ask(batcher: Batcher, payloads: list[bytes]) -> list[int | str]:
    answers = [batcher.submit("length", 1, item(each), lane="a") for each in payloads]
    outcomes = await asyncio.wait_for(asyncio.gather(*answers, return_exceptions=True), 10)
    return [
        int(each.sample_unix_nanos[0]) if isinstance(each, AnalysisResult) else type(each).__name__ for each in outcomes
    ]


def test_everyone_gets_their_own_answer() -> None:
    async def scenario() -> None:
        batcher = Batcher([CARD], [InProcessWorker])
        payloads = [b"x" * i for i in range(1, 50)]
        assert await ask(batcher, payloads) == list(range(1, 50))

    asyncio.run(scenario())


def test_the_observation_that_breaks_a_batch_is_found_and_the_others_are_answered() -> None:
    async def scenario() -> None:
        batcher = Batcher([CARD], [InProcessWorker])
        payloads = [b"x", b"xx", b"poison", b"xxx", b"xxxx", b"poison", b"xxxxx"]
        assert await ask(batcher, payloads) == [1, 2, "PredictionFailedError", 3, 4, "PredictionFailedError", 5]
        assert batcher.counts.failures == 2

    asyncio.run(scenario())


def test_the_observation_that_kills_workers_is_set_aside_after_three_deaths() -> None:
    async def scenario() -> None:
        batcher = Batcher([CARD], [InProcessWorker])
        outcomes = await ask(batcher, [b"x", b"xx", b"deadly", b"xxx"])
        assert outcomes == [1, 2, "PredictionFailedError", 3]
        assert batcher.counts.deaths < 12

    asyncio.run(scenario())


def test_a_damaged_payload_is_an_answer_of_its_own() -> None:
    async def scenario() -> None:
        batcher = Batcher([CARD], [InProcessWorker])
        good = batcher.submit("length", 1, item(b"abc"), lane="a")
        bad = batcher.submit("length", 1, item(b"abc", payload_bytes=4), lane="a")
        assert (await good).sample_unix_nanos[0] == 3
        with pytest.raises(PredictionFailedError, match="expected a payload of 4 bytes"):
            await bad

    asyncio.run(scenario())


def test_results_of_different_shapes_and_refusals_survive_the_packing_in_order() -> None:
    def result(count: int, *names: str) -> AnalysisResult:
        variables = (AnalysisVariable(name, "m", np.arange(count, dtype=np.float32) + len(name)) for name in names)
        return AnalysisResult(np.arange(count, dtype=np.int64) * 7, tuple(variables))

    results = [result(1, "a", "bb"), "no", result(3, "a", "bb"), result(2), result(0, "a", "bb"), result(2, "ccc")]
    unpacked = pickle.loads(pickle.dumps(pack_results(5, results))).results()
    assert len(unpacked) == len(results)
    for before, after in zip(results, unpacked, strict=True):
        if isinstance(before, str):
            assert after == before
            continue
        assert after.sample_unix_nanos.tolist() == before.sample_unix_nanos.tolist()
        assert [(v.name, v.unit, v.values.tolist()) for v in after.variables] == [
            (v.name, v.unit, v.values.tolist()) for v in before.variables
        ]


def test_what_waits_past_its_deadline_is_told_so_and_never_computed() -> None:
    async def scenario() -> None:
        workers: list[InProcessWorker] = []

        def start(events: WorkerEvents) -> InProcessWorker:
            workers.append(InProcessWorker(events))
            return workers[0]

        batcher = Batcher([CARD], [start])
        late = batcher.submit("length", 1, item(b"late"), lane="a", deadline_s=asyncio.get_running_loop().time() - 1)
        with pytest.raises(TryAgainError, match="deadline"):
            await asyncio.wait_for(late, 5)
        assert workers[0].jobs == []

    asyncio.run(scenario())


def test_a_cancelled_caller_is_taken_out_of_the_batch() -> None:
    async def scenario() -> None:
        workers: list[InProcessWorker] = []

        def start(events: WorkerEvents) -> InProcessWorker:
            workers.append(InProcessWorker(events))
            return workers[0]

        batcher = Batcher([CARD], [start])
        gone = batcher.submit("length", 1, item(b"gone"), lane="a")
        stays = batcher.submit("length", 1, item(b"stays"), lane="a")
        gone.cancel()
        assert (await stays).sample_unix_nanos[0] == 5
        assert [len(job.items) for job in workers[0].jobs] == [1]

    asyncio.run(scenario())


def test_a_worker_process_that_is_killed_is_replaced_and_its_batch_is_run_again() -> None:
    telegrams = [SimulatedCl51(seed=1).telegram(1.75e9 + 15 * i) for i in range(64)]

    async def scenario() -> None:
        workers: list[LocalWorker] = []

        def start(events: WorkerEvents) -> LocalWorker:
            workers.append(LocalWorker(1, events))
            return workers[0]

        cards = find_analyses()
        batcher = Batcher(cards, [start])
        try:
            items = [WorkItem(t, pb.PAYLOAD_ENCODING_IDENTITY, len(t), "cl51", i) for i, t in enumerate(telegrams)]
            name, version = cards[0].name, cards[0].version
            answers = [batcher.submit(name, version, each, lane="a") for each in items]
            await asyncio.sleep(0)  # they are on their way
            first = workers[0].process_id
            os.kill(first, signal.SIGKILL)
            results = await asyncio.wait_for(asyncio.gather(*answers), 60)
            assert [int(each.sample_unix_nanos[0]) for each in results] == list(range(64))
            assert workers[0].process_id != first
            assert batcher.counts.deaths == 1
        finally:
            batcher.close()

    started = time.monotonic()
    asyncio.run(scenario())
    assert time.monotonic() - started < 60
