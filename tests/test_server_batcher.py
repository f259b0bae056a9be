"""The batcher: bisection, deaths, memory, deadlines; with workers inside the process, and with real processes."""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
from worker_support import LENGTH, InProcessPool, InProcessWorker, make_card, make_item, pool_of

from fieldpost.errors import OverloadedError, TryAgainError, UnknownModelError
from fieldpost.simulation import SimulatedCl51
from fieldpost.v1 import observation_pb2 as pb
from fieldpost.v1 import prediction_pb2
from server.analyses import AnalysisResult, AnalysisVariable, find_analyses
from server.batching import policy as policy_module
from server.batching import trace as batching_trace
from server.batching.batcher import DEATHS_MAX, Batcher, ExpiredError, PredictionFailedError
from server.batching.policy import BatchPolicy, Priority
from server.batching.trace import TracedPolicy, replay
from server.models.card import ModelCard, ModelKind, ModelState, Trial
from server.workers.jobs import JobDone, ModelKey, ModelPackage, ResultBlock, WorkItem, pack_results
from server.workers.protocol import Worker, WorkerEvents
from server.workers.worker_pool import PoolPlan, open_pool

OTHER = ModelKey("other", 1)


class Running:
    """A batcher with one model version over workers inside the process."""

    def __init__(self, batcher: Batcher, pool: InProcessPool) -> None:
        self.batcher, self.pool = batcher, pool

    @property
    def worker(self) -> InProcessWorker:
        return self.pool.workers[0]

    def submit(
        self, payload: bytes, *, key: ModelKey = LENGTH, lane: str = "a", priority: Priority = Priority.LIVE
    ) -> asyncio.Future[AnalysisResult]:
        return self.batcher.submit(key, make_item(payload), lane=lane, priority=priority)

    async def ask(self, payloads: list[bytes], **where: object) -> list[int | str]:
        answers = [self.submit(each, **where) for each in payloads]  # type: ignore[arg-type]
        outcomes = await asyncio.wait_for(asyncio.gather(*answers, return_exceptions=True), 10)
        return [
            int(each.sample_unix_nanos[0]) if isinstance(each, AnalysisResult) else type(each).__name__
            for each in outcomes
        ]


def run(
    scenario: Callable[[Running], Awaitable[None]],
    *,
    policy: Callable[[], BatchPolicy[object]] = BatchPolicy,
    max_batch_count: int = 8,
    **pool: object,
) -> None:
    async def main() -> None:
        pools: list[InProcessPool] = []
        batcher = Batcher(pool_of(pools, **pool), policy())  # type: ignore[arg-type]
        batcher.add_model(ModelPackage(LENGTH), make_card(max_batch_count=max_batch_count))
        try:
            await asyncio.wait_for(scenario(Running(batcher, pools[0])), 20)
        finally:
            batcher.close()

    asyncio.run(main())


def test_everyone_gets_their_own_answer() -> None:
    async def scenario(running: Running) -> None:
        assert await running.ask([b"x" * i for i in range(1, 50)]) == list(range(1, 50))
        assert running.batcher.model_counts[LENGTH].predicted == 49

    run(scenario)


def test_the_observation_that_breaks_a_batch_is_found_and_the_others_are_answered() -> None:
    async def scenario(running: Running) -> None:
        payloads = [b"x", b"xx", b"poison", b"xxx", b"xxxx", b"poison", b"xxxxx"]
        assert await running.ask(payloads) == [1, 2, "PredictionFailedError", 3, 4, "PredictionFailedError", 5]
        assert running.batcher.counts.failures == 2
        counts = running.batcher.model_counts[LENGTH]
        assert (counts.predicted, counts.failed) == (5, 2)

    run(scenario)


def test_a_failing_batch_takes_turns_with_what_is_new() -> None:
    async def scenario(running: Running) -> None:
        bad = [running.submit(b"poison") for _ in range(8)]
        await asyncio.sleep(0)
        good = asyncio.gather(*(running.submit(b"x") for _ in range(40)))
        await asyncio.wait_for(good, 5)
        assert sum(each.done() for each in bad) < 4
        assert all(
            isinstance(each, PredictionFailedError) for each in await asyncio.gather(*bad, return_exceptions=True)
        )

    run(scenario)


def test_the_observation_that_kills_workers_is_set_aside_after_three_deaths_and_its_failure_names_the_death() -> None:
    async def scenario(running: Running) -> None:
        answers = [running.submit(each) for each in (b"x", b"xx", b"deadly", b"xxx")]
        outcomes = await asyncio.gather(*answers, return_exceptions=True)
        assert [type(each) for each in outcomes].count(AnalysisResult) == 3
        assert isinstance(outcomes[2], PredictionFailedError)
        assert f"{DEATHS_MAX} workers" in str(outcomes[2]) and "killed by signal 9" in str(outcomes[2])
        assert running.batcher.counts.deaths == DEATHS_MAX

    run(scenario)


def test_a_killer_among_sixty_four_costs_three_deaths() -> None:
    async def scenario(running: Running) -> None:
        outcomes = await running.ask([b"x"] * 40 + [b"deadly"] + [b"x"] * 23)
        assert outcomes.count(1) == 63
        assert running.batcher.counts.deaths == DEATHS_MAX

    run(scenario, max_batch_count=64)


def test_a_batch_that_only_waited_in_a_dead_worker_runs_again_whole_and_is_not_blamed() -> None:
    async def scenario(running: Running) -> None:
        outcomes = await running.ask([b"deadly"] * 2 + [b"x"] * 2)
        assert outcomes == ["PredictionFailedError"] * 2 + [1, 1]
        innocent = [len(job.items) for job in running.worker.jobs if all(item.payload == b"x" for item in job.items)]
        assert set(innocent) == {2}
        assert len(innocent) > 1  # it was lost with the others, and came back

    run(scenario, max_batch_count=2, slots=2)


def test_what_does_not_fit_into_memory_runs_again_in_halves_and_later_batches_are_smaller() -> None:
    async def scenario(running: Running) -> None:
        running.worker.memory_count = 2
        assert await running.ask([b"x"] * 8) == [1] * 8
        assert [len(job.items) for job in running.worker.jobs] == [8, 4, 2, 2, 2, 2]
        assert await running.ask([b"x"] * 4) == [1] * 4
        assert [len(job.items) for job in running.worker.jobs][6:] == [2, 2]
        running.worker.memory_count = 0
        with pytest.raises(PredictionFailedError, match="MemoryError"):
            await running.submit(b"x")

    run(scenario)


def test_a_damaged_payload_is_an_answer_of_its_own() -> None:
    async def scenario(running: Running) -> None:
        good = running.submit(b"abc")
        bad = running.batcher.submit(LENGTH, make_item(b"abc", payload_bytes=4), lane="a")
        assert (await good).sample_unix_nanos[0] == 3
        with pytest.raises(PredictionFailedError, match="expected a payload of 4 bytes"):
            await bad

    run(scenario)


def test_an_answer_that_cannot_be_read_is_a_failure_and_the_loop_lives_on() -> None:
    class Mumbling(InProcessWorker):
        def _compute(self, job):  # type: ignore[no-untyped-def]
            if any(item.payload == b"odd" for item in job.items):
                block = ResultBlock([0, 99], [1], np.zeros(1, np.int64), (), np.zeros((0, 1), np.float32))
                return JobDone(job.job_id, [block])
            return super()._compute(job)

    async def scenario(running: Running) -> None:
        running.pool.workers[:] = [Mumbling(running.batcher)]
        assert await running.ask([b"x", b"odd", b"xx"]) == [1, "PredictionFailedError", 2]

    run(scenario)


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


def test_what_waits_past_its_deadline_is_told_so_while_the_worker_is_busy_and_is_never_computed() -> None:
    async def scenario(running: Running) -> None:
        running.worker.is_away = True
        now_s = asyncio.get_running_loop().time()
        late = running.batcher.submit(LENGTH, make_item(b"late"), lane="a", deadline_s=now_s + 0.05)
        passed = running.batcher.submit(LENGTH, make_item(b"late"), lane="a", deadline_s=now_s - 1)
        for answer in (passed, late):
            with pytest.raises(ExpiredError, match="deadline"):
                await asyncio.wait_for(answer, 5)
        running.worker.is_away = False
        assert await running.ask([b"x"]) == [1]
        assert [len(job.items) for job in running.worker.jobs] == [1]
        assert running.batcher.counts.expired == 2

    run(scenario)


def test_a_cancelled_caller_leaves_the_queue_and_the_batch() -> None:
    async def scenario(running: Running) -> None:
        running.worker.is_away = True
        gone, stays = running.submit(b"gone"), running.submit(b"stays")
        gone.cancel()
        await asyncio.sleep(0)
        assert [queue.live_count for queue in running.batcher.queues()] == [1]
        running.worker.is_away = False
        running.batcher.on_ready()
        assert (await stays).sample_unix_nanos[0] == 5
        assert [len(job.items) for job in running.worker.jobs] == [1]
        assert running.batcher.counts.cancelled == 1

    run(scenario)


def test_a_cancelled_caller_is_not_computed_again_when_its_worker_dies() -> None:
    async def scenario(running: Running) -> None:
        gone, deadly = running.submit(b"gone"), running.submit(b"deadly")
        await asyncio.sleep(0)  # the batch is on its way
        gone.cancel()
        with pytest.raises(PredictionFailedError):
            await deadly
        assert [len(job.items) for job in running.worker.jobs] == [2, 1, 1]

    run(scenario)


def test_a_full_queue_refuses_at_once() -> None:
    async def scenario(running: Running) -> None:
        running.worker.is_away = True
        waiting = [running.submit(b"x") for _ in range(3)]
        with pytest.raises(OverloadedError):
            running.submit(b"x")
        assert running.batcher.counts.refused == 1
        running.worker.is_away = False
        running.batcher.on_ready()
        await asyncio.gather(*waiting)

    run(scenario, policy=lambda: BatchPolicy(queue_count_max=3))


def test_two_workers_share_what_waits_instead_of_one_taking_it_all() -> None:
    async def scenario(running: Running) -> None:
        await running.ask([b"x"] * 4)
        assert [len(worker.jobs) for worker in running.pool.workers] == [1, 1]

    run(scenario, max_batch_count=2, count=2, slots=2)


def test_live_goes_first_also_before_what_runs_again() -> None:
    async def scenario(running: Running) -> None:
        order: list[str] = []
        bad = [running.submit(b"poison", priority=Priority.BACKFILL) for _ in range(8)]
        await asyncio.sleep(0)  # they are on their way
        live = [running.submit(b"x") for _ in range(16)]
        for name, answers in (("bad", bad), ("live", live)):
            for answer in answers:
                answer.add_done_callback(lambda done, name=name: order.append(name))
        await asyncio.gather(*bad, *live, return_exceptions=True)
        assert order == ["live"] * 16 + ["bad"] * 8

    run(scenario)


def test_a_model_version_that_was_not_added_or_was_removed_is_unknown() -> None:
    async def scenario(running: Running) -> None:
        with pytest.raises(UnknownModelError, match="other@1"):
            running.submit(b"x", key=OTHER)
        with pytest.raises(UnknownModelError):
            await running.batcher.load(OTHER)
        running.worker.is_away = True
        left = running.submit(b"x")
        running.batcher.remove_model(LENGTH)
        with pytest.raises(TryAgainError, match="taken out of service"):
            await left
        assert running.worker.unloaded == [LENGTH]
        with pytest.raises(UnknownModelError):
            running.submit(b"x")
        assert running.batcher.queues() == []

    run(scenario)


def test_what_is_being_computed_while_its_model_version_is_removed_is_answered() -> None:
    async def scenario(running: Running) -> None:
        answer, deadly = running.submit(b"x", lane="a"), None
        await asyncio.sleep(0)
        running.batcher.remove_model(LENGTH)
        assert (await answer).sample_unix_nanos[0] == 1
        running.batcher.add_model(ModelPackage(LENGTH), make_card())
        deadly = running.submit(b"deadly")
        await asyncio.sleep(0)
        running.batcher.remove_model(LENGTH)
        with pytest.raises(TryAgainError, match="taken out of service"):
            await deadly

    run(scenario)


def test_loading_goes_ahead_of_all_that_waits_and_tells_why_it_failed() -> None:
    async def scenario(running: Running) -> None:
        running.worker.will_not_load.add(OTHER)
        running.batcher.add_model(ModelPackage(OTHER), make_card(OTHER))
        answers = [running.submit(b"x") for _ in range(100)]
        loaded = running.batcher.load(LENGTH)
        with pytest.raises(PredictionFailedError, match="cannot be loaded"):
            await running.batcher.load(OTHER)
        assert loaded.done()
        assert sum(answer.done() for answer in answers) < 50
        await asyncio.gather(*answers)

    run(scenario)


def test_the_pool_is_told_how_long_the_queues_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.batching.batcher.TICK_S", 0.02)

    async def scenario(running: Running) -> None:
        running.worker.is_away = True
        waiting = [running.submit(b"x") for _ in range(5)]
        while not running.pool.queues or running.pool.queues[-1][2] != 5:
            await asyncio.sleep(0.01)
        kind, oldest_s, count = running.pool.queues[-1]
        assert (kind, count) == (running.worker.kind, 5)
        assert 0 < oldest_s < 5
        running.worker.is_away = False
        running.batcher.on_ready()
        await asyncio.gather(*waiting)
        assert [facts.name for facts in running.batcher.workers()] == [running.worker.name]

    run(scenario)


def test_closing_tells_everyone_who_waits() -> None:
    async def scenario(running: Running) -> None:
        running.worker.delay_s = 60.0
        sent = [running.submit(b"x") for _ in range(8)]
        await asyncio.sleep(0)
        waits, loads = running.submit(b"x"), running.batcher.load(LENGTH)
        running.batcher.close()
        for answer in (*sent, waits, loads):
            with pytest.raises(TryAgainError, match="stopping"):
                await answer
        with pytest.raises(TryAgainError, match="stopping"):
            running.submit(b"x")

    run(scenario)


def test_one_observation_too_large_for_memory_does_not_make_later_batches_small() -> None:
    async def scenario(running: Running) -> None:
        running.worker.memory_bytes = 50
        assert await running.ask([b"x" * 100, *[b"x"] * 7]) == ["PredictionFailedError", *[1] * 7]
        assert await running.ask([b"x"] * 8) == [1] * 8
        assert len(running.worker.jobs[-1].items) == 8

    run(scenario)


def test_a_model_version_that_kills_one_worker_after_the_other_rests_and_leaves_them_to_the_others() -> None:
    async def scenario(running: Running) -> None:
        running.batcher.add_model(ModelPackage(OTHER), make_card(OTHER))
        deadly = [running.submit(b"deadly", key=OTHER) for _ in range(20)]
        assert await running.ask([b"x"] * 64) == [1] * 64
        await asyncio.sleep(0.1)
        assert running.worker.deaths == running.batcher.model_counts[OTHER].deaths_in_a_row == 3
        assert await running.ask([b"x"] * 64) == [1] * 64
        await asyncio.wait(deadly, timeout=5, return_when=asyncio.FIRST_COMPLETED)
        assert running.worker.deaths > 3, "it is tried again"

    run(scenario)


def test_payloads_of_callers_that_are_refused_are_told_from_those_of_instruments() -> None:
    async def scenario(running: Running) -> None:
        damaged = make_item(b"abc", payload_bytes=4)
        asked = running.batcher.submit(LENGTH, damaged, lane="a")
        stored = running.batcher.submit(LENGTH, damaged, lane="a", is_stored=True)
        await asyncio.wait([asked, stored])
        counts = running.batcher.model_counts[LENGTH]
        assert (counts.failed, counts.refused_callers) == (2, 1)

    run(scenario)


def test_a_failure_that_no_message_can_hold_is_made_one_that_can() -> None:
    async def scenario(running: Running) -> None:
        with pytest.raises(PredictionFailedError) as told:
            await running.submit(b"unspeakable")
        prediction_pb2.Prediction(failure=str(told.value))

    run(scenario)


def test_a_recorded_run_replays_identically_and_says_what_if(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policy_module, "REST_MIN_S", 1e-4)
    monkeypatch.setattr("server.batching.batcher.TICK_S", 0.01)
    path = tmp_path / "trace"
    policies: list[TracedPolicy[object]] = []

    def traced() -> TracedPolicy[object]:
        policies.append(TracedPolicy(path, queue_count_max=80))
        return policies[0]

    async def scenario(running: Running) -> None:
        now_s = asyncio.get_running_loop().time
        running.worker.memory_count = 4
        kinds = [b"x", b"poison", b"deadly", b"xx", b"xxx"]
        answers = []
        for i in range(200):
            try:
                answers.append(
                    running.batcher.submit(
                        LENGTH,
                        make_item(kinds[i % 29 % 5]),
                        lane=str(i % 7),
                        priority=Priority(i % 3),
                        deadline_s=now_s() + 0.02 if i % 11 == 0 else None,
                    )
                )
            except OverloadedError:
                await asyncio.sleep(0.001)
            if i % 13 == 0:
                answers[-1].cancel()
            if i % 5 == 0:
                await asyncio.sleep(0)
        await asyncio.gather(*answers, return_exceptions=True)
        running.batcher.remove_model(LENGTH)

    run(scenario, policy=traced)  # type: ignore[arg-type]
    policies[0].close()
    decisions = [(entry, decided) for entry, decided in replay(path)]
    assert len(decisions) > 50
    assert all(entry["numbers"] == decided for entry, decided in decisions)
    assert batching_trace.main([str(path), "--batch-count-max", "1", "--workers", "3"]) == 0
    said = capsys.readouterr().out
    assert "a fresh policy decides the same" in said
    assert "recorded: " in said and "simulated: " in said
    assert "of 1.0 observations (largest 1)" in said.partition("what if: ")[2]
    content = path.read_bytes()
    path.write_bytes(content[: len(content) - 20])  # as a killed server leaves it
    assert batching_trace.main([str(path)]) == 0
    path.write_text(path.read_text().replace('"lane": "3"', '"lane": "4"'))
    assert batching_trace.main([str(path)]) == 1


def test_a_trace_on_a_full_disk_ends_and_the_policy_goes_on() -> None:
    async def scenario(running: Running) -> None:
        assert await running.ask([b"x" * 5] * 400) == [5] * 400

    policies: list[TracedPolicy[object]] = []

    def traced() -> TracedPolicy[object]:
        policies.append(TracedPolicy(Path("/dev/full")))
        return policies[0]

    run(scenario, policy=traced)  # type: ignore[arg-type]
    policies[0].close()


def test_a_worker_process_that_is_killed_is_replaced_and_its_batch_is_run_again() -> None:
    telegrams = [SimulatedCl51(seed=1).telegram(1.75e9 + 15 * i) for i in range(64)]
    built_in = find_analyses()[0]
    key = ModelKey(built_in.name, built_in.version)

    async def scenario() -> None:
        batcher = Batcher(open_pool("local", PoolPlan()))
        trial = Trial(max_batch_count=built_in.max_batch)
        models = built_in.instrument_models
        card = ModelCard(1, key, ModelState.ACTIVE, ModelKind.BUILT_IN, models, trial=trial)
        try:
            batcher.add_model(ModelPackage(key), card)
            items = [WorkItem(t, pb.PAYLOAD_ENCODING_IDENTITY, len(t), "cl51", i) for i, t in enumerate(telegrams)]
            await batcher.load(key)
            (first,) = workers_of_this_process()
            first.send_signal(signal.SIGSTOP)  # so that the batch is certainly being computed when it dies
            answers = [batcher.submit(key, each, lane="a") for each in items]
            await asyncio.sleep(0)
            os.kill(first.pid, signal.SIGKILL)
            results = await asyncio.wait_for(asyncio.gather(*answers), 60)
            assert [int(each.sample_unix_nanos[0]) for each in results] == list(range(64))
            assert [each.pid for each in workers_of_this_process()] != [first.pid]
            assert batcher.counts.deaths == 1
        finally:
            batcher.close()

    asyncio.run(scenario())


def workers_of_this_process() -> list[psutil.Process]:
    return [each for each in psutil.Process().children() if any("server.workers" in part for part in each.cmdline())]


def test_a_batcher_is_what_workers_report_to() -> None:
    async def scenario(running: Running) -> None:
        events: WorkerEvents = running.batcher
        worker: Worker = running.worker
        events.on_done(worker, JobDone(12345))  # of a job that nobody waits for any more
        events.on_ready()
        assert await running.ask([b"x"]) == [1]

    run(scenario)
