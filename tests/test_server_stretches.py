"""Stretches of observations for model versions that remember: through the batcher, over the wire, in real workers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np
import pytest
from following_support import DIGITS, Digits, add_package
from worker_support import LENGTH, InProcessPool, InProcessWorker, make_card, make_item, pool_of

import server.analyses
from fieldpost.errors import BrokenStateError, InvalidRequestError, OverloadedError, TryAgainError, UnknownModelError
from server.analyses import AnalysisInput, AnalysisResult, load_analysis
from server.batching import policy as policy_module
from server.batching import trace as batching_trace
from server.batching.batcher import DEATHS_MAX, Batcher, PredictionFailedError
from server.batching.policy import BatchPolicy, Priority
from server.batching.trace import TracedPolicy
from server.workers.jobs import (
    STATE_BYTES_MAX,
    Job,
    JobDone,
    ModelKey,
    ModelPackage,
    PlacedStretch,
    StretchAnswer,
    WorkItem,
    WorkStretch,
    pack_results,
)
from server.workers.worker import finish_in_blocks, prepare_batch
from server.workers.worker_pool import PoolPlan, open_pool
from server.workers.worker_wire import (
    Frame,
    Load,
    answers_all,
    decode_answer,
    decode_message,
    encode_answer,
    encode_message,
)

TRAINED = ModelKey("digits", 1001)
Outcome = tuple[list[int | str], bytes] | str


def stretch_of(*payloads: bytes | WorkItem, state: bytes = b"") -> WorkStretch:
    return WorkStretch(state, tuple(each if isinstance(each, WorkItem) else make_item(each) for each in payloads))


def lengths(*counts: int, state: bytes = b"") -> WorkStretch:
    """A stretch of payloads of these lengths."""
    return stretch_of(*(b"x" * count for count in counts), state=state)


def told(results: list[AnalysisResult | str]) -> list[int | str]:
    return [each if isinstance(each, str) else int(each.sample_unix_nanos[0]) for each in results]


class Running:
    """A batcher with a model version that remembers and one that does not."""

    def __init__(self, batcher: Batcher, pool: InProcessPool | None = None) -> None:
        self.batcher, self._pool = batcher, pool

    @property
    def worker(self) -> InProcessWorker:
        assert self._pool is not None
        return self._pool.workers[0]

    @property
    def job_sizes(self) -> list[int]:
        return [len(job.items) for job in self.worker.jobs]

    def follow(
        self,
        stretch: WorkStretch,
        *,
        key: ModelKey = DIGITS,
        lane: str = "a",
        priority: Priority = Priority.LIVE,
    ) -> asyncio.Future[StretchAnswer]:
        return self.batcher.follow(key, stretch, lane=lane, priority=priority)

    async def ask(self, *stretches: WorkStretch, key: ModelKey = DIGITS) -> list[Outcome]:
        """What becomes of stretches that are asked for at once; of one that fails, the name of its error."""
        answers = [self.follow(each, key=key, lane=str(lane)) for lane, each in enumerate(stretches)]
        outcomes = await asyncio.wait_for(asyncio.gather(*answers, return_exceptions=True), 60)
        return [
            (told(each.results), each.state) if isinstance(each, StretchAnswer) else type(each).__name__
            for each in outcomes
        ]


def run(
    scenario: Callable[[Running], Awaitable[None]],
    *,
    policy: Callable[[], BatchPolicy[object]] = BatchPolicy,
    max_batch_count: int = 8,
    batch_bytes_max: int = 2**20,
) -> None:
    async def main() -> None:
        pools: list[InProcessPool] = []
        batcher = Batcher(pool_of(pools), policy(), batch_bytes_max=batch_bytes_max)  # type: ignore[arg-type]
        for key in (DIGITS, LENGTH):
            batcher.add_model(ModelPackage(key), make_card(key, max_batch_count=max_batch_count))
        try:
            await asyncio.wait_for(scenario(Running(batcher, pools[0])), 20)
        finally:
            batcher.close()

    asyncio.run(main())


# ---- what comes back ----


def test_a_stretch_is_answered_in_order_and_what_is_known_then_goes_into_the_next() -> None:
    async def scenario(running: Running) -> None:
        assert await running.ask(lengths(1, 2)) == [([1, 12], b"12")]
        assert await running.ask(lengths(3, 4, state=b"12")) == [([123, 1234], b"1234")]

    run(scenario)


@pytest.mark.parametrize("cuts", [(), (1,), (4,), (1, 2, 3, 4), (2, 3)])
def test_however_a_course_is_cut_the_answers_are_the_same(cuts: tuple[int, ...]) -> None:
    async def scenario(running: Running) -> None:
        payload_bytes, state, results = [3, 1, 4, 1, 5], b"", []
        for start, stop in zip((0, *cuts), (*cuts, 5), strict=True):
            answer = await running.follow(lengths(*payload_bytes[start:stop], state=state))
            results += told(answer.results)
            state = answer.state
        assert (results, state) == ([3, 31, 314, 3141, 31415], b"31415")

    run(scenario)


def test_instruments_and_single_observations_share_a_batch_and_each_has_its_own_memory() -> None:
    async def scenario(running: Running) -> None:
        single = running.batcher.submit(DIGITS, make_item(b"xxxxx"), lane="c")
        assert await running.ask(lengths(1, 2), lengths(3, 4, state=b"9")) == [
            ([1, 12], b"12"),
            ([93, 934], b"934"),
        ]
        assert told([await single]) == [5]
        assert running.job_sizes == [5]
        assert running.batcher.model_counts[DIGITS].predicted == 5
        assert running.batcher.counts.observations == 5

    run(scenario)


def test_what_cannot_be_read_is_refused_in_its_place_and_the_others_follow_on() -> None:
    async def scenario(running: Running) -> None:
        damaged = make_item(b"abc", payload_bytes=4)
        ((results, state),) = await running.ask(stretch_of(b"x", damaged, b"xx", b"unreadable", b"xxx", state=b"7"))
        assert (results[0], results[2], results[4], state) == (71, 712, 7123, b"7123")
        assert "expected a payload of 4 bytes" in str(results[1])
        assert results[3] == "InvalidObservationError: expected digits"
        assert await running.ask(stretch_of(damaged, state=b"7")) == [([results[1]], b"7")]
        counts = running.batcher.model_counts[DIGITS]
        assert (counts.predicted, counts.failed, counts.refused_callers) == (3, 3, 0)

    run(scenario)


def test_where_an_instrument_stands_reaches_the_analysis() -> None:
    item = make_item(b"x")._replace(calibration=2.0, latitude_deg=52.5, longitude_deg=-13.25)
    message = decode_message(frame_of(encode_message(Job(1, DIGITS, [item, make_item(b"y")], 1.0))))
    assert isinstance(message, Job)
    here, unknown = (each.decode() for each in message.items)
    assert here == AnalysisInput(b"x", "any", 0, 2.0, 52.5, -13.25)
    assert unknown == AnalysisInput(b"y", "any", 0, None, None, None)


# ---- what goes wrong ----


def test_a_stretch_that_breaks_the_model_fails_alone_and_uncut() -> None:
    async def scenario(running: Running) -> None:
        bad = stretch_of(b"x", b"poison", b"x")
        outcomes = await running.ask(lengths(1, 2), bad, lengths(3))
        assert outcomes == [([1, 12], b"12"), "PredictionFailedError", ([3], b"3")]
        assert running.job_sizes == [6, 5, 1, 2, 3]
        with pytest.raises(PredictionFailedError, match="poisoned"):
            await running.follow(bad)

    run(scenario)


def test_only_an_observation_that_is_alone_counts_as_failed() -> None:
    async def scenario(running: Running) -> None:
        counts = running.batcher.model_counts[DIGITS]
        assert await running.ask(stretch_of(b"x", b"poison")) == ["PredictionFailedError"]
        assert (counts.predicted, counts.failed) == (0, 0)
        assert await running.ask(stretch_of(b"poison"), stretch_of(b"x")) == ["PredictionFailedError", ([1], b"1")]
        assert (counts.predicted, counts.failed) == (1, 1)

    run(scenario)


def test_a_stretch_that_kills_its_worker_fails_at_once_and_a_lone_observation_after_three_deaths() -> None:
    async def scenario(running: Running) -> None:
        with pytest.raises(PredictionFailedError, match=r"a worker was lost .*killed by signal 9"):
            await running.follow(stretch_of(b"x", b"deadly"))
        assert running.worker.deaths == 1
        with pytest.raises(PredictionFailedError, match=f"{DEATHS_MAX} workers were lost"):
            await running.follow(stretch_of(b"deadly"))
        assert running.worker.deaths == 1 + DEATHS_MAX

    run(scenario)


def test_the_deaths_that_cutting_takes_are_not_held_against_the_model_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy_module, "REST_MIN_S", 1e-4)

    async def scenario(running: Running) -> None:
        state, payloads, in_a_row = b"", [b"deadly", *[b"x"] * 31], []
        while len(payloads) > 1:  # as whoever asked cuts it
            assert await running.ask(stretch_of(*payloads, state=state)) == ["PredictionFailedError"]
            in_a_row.append(running.batcher.model_counts[DIGITS].deaths_in_a_row)
            payloads = payloads[: len(payloads) // 2]
        assert await running.ask(stretch_of(*payloads)) == ["PredictionFailedError"]
        assert in_a_row == [0] * 5
        assert running.batcher.model_counts[DIGITS].deaths_in_a_row == DEATHS_MAX
        assert running.worker.deaths == 5 + DEATHS_MAX

    run(scenario, max_batch_count=64)


def test_the_others_of_a_batch_that_killed_its_worker_are_answered() -> None:
    async def scenario(running: Running) -> None:
        outcomes = await running.ask(lengths(1, 2), stretch_of(b"deadly", b"x"), lengths(3))
        assert outcomes == [([1, 12], b"12"), "PredictionFailedError", ([3], b"3")]

    run(scenario)


def test_stretches_for_which_memory_is_not_enough_go_apart_and_one_alone_fails() -> None:
    async def scenario(running: Running) -> None:
        running.worker.memory_count = 3
        assert await running.ask(lengths(1, 1, 1), lengths(2, 2, 2)) == [([1, 11, 111], b"111"), ([2, 22, 222], b"222")]
        assert running.job_sizes == [6, 3, 3]
        with pytest.raises(PredictionFailedError, match="MemoryError"):
            await running.follow(lengths(1, 1, 1, 1))
        assert await running.ask(lengths(1, 1), lengths(1, 1)) == [([1, 11], b"11")] * 2
        assert running.job_sizes[3:] == [4, 2, 2], "and later batches are smaller"

    run(scenario)


def test_one_observation_too_large_for_memory_found_by_cutting_does_not_make_later_batches_small() -> None:
    async def scenario(running: Running) -> None:
        for bad in (stretch_of(b"x", b"x", b"x", b"hungry"), stretch_of(b"x", b"hungry"), stretch_of(b"hungry")):
            assert await running.ask(bad) == ["PredictionFailedError"]
        running.worker.jobs.clear()
        await running.ask(*[lengths(1, 1)] * 4)
        assert running.job_sizes == [8]

    run(scenario)


def test_a_model_version_that_does_not_remember_cannot_be_asked_to_follow() -> None:
    async def scenario(running: Running) -> None:
        with pytest.raises(PredictionFailedError, match=r"expected a model version that remembers.*length@1"):
            await running.follow(lengths(1), key=LENGTH)
        assert told([await running.batcher.submit(LENGTH, make_item(b"xx"), lane="a")]) == [2]

    run(scenario)


def test_a_state_that_is_too_large_is_a_failure_of_its_stretch() -> None:
    async def scenario(running: Running) -> None:
        with pytest.raises(PredictionFailedError, match=f"expected a state of at most {STATE_BYTES_MAX} bytes"):
            await running.follow(stretch_of(b"x", b"swollen"))

    run(scenario)


def test_a_model_that_answers_for_another_number_of_observations_or_stretches_fails() -> None:
    class Short(Digits):
        def follow(self, stretches):  # type: ignore[no-untyped-def]
            return [each._replace(results=each.results[1:]) for each in super().follow(stretches)]

    class Few(Digits):
        def follow(self, stretches):  # type: ignore[no-untyped-def]
            return super().follow(stretches)[1:]

    items = [make_item(b"x"), make_item(b"xx")]
    for analysis in (Short(), Few()):
        with pytest.raises(ValueError, match="shorter"):
            finish_in_blocks(1, analysis, prepare_batch(analysis, items, [PlacedStretch(0, 2, b"")]))


# ---- what goes when ----


def test_a_stretch_goes_whole_and_a_batch_is_bounded_by_its_observations() -> None:
    async def scenario(running: Running) -> None:
        running.worker.is_away = True
        answers = [running.follow(lengths(*[1] * count), lane=str(count)) for count in (3, 4, 2, 12, 1)]
        assert [queue.live_count for queue in running.batcher.queues() if queue.key == DIGITS] == [22]
        running.worker.is_away = False
        running.batcher.on_ready()
        assert [len((await each).results) for each in answers] == [3, 4, 2, 12, 1]
        assert running.job_sizes == [7, 2, 12, 1]

    run(scenario)


def test_a_batch_is_bounded_by_the_bytes_of_payloads_and_states() -> None:
    async def scenario(running: Running) -> None:
        await running.ask(lengths(5, 5), lengths(5, 5), lengths(1, state=b"1" * 12), lengths(5, 5))
        assert running.job_sizes == [4, 1, 2]

    run(scenario, batch_bytes_max=20)


def test_what_a_stretch_costs_is_learnt_by_its_observations() -> None:
    async def scenario(running: Running) -> None:
        for _ in range(5):
            await running.follow(lengths(*[1] * 8))
        (queue,) = (each for each in running.batcher.queues() if each.key == DIGITS)
        assert queue.batch_fixed_s + 8 * queue.observation_s == pytest.approx(8e-4, rel=0.01)

    run(scenario)


def test_live_stretches_go_before_those_of_a_shadow() -> None:
    async def scenario(running: Running) -> None:
        order: list[str] = []
        running.worker.is_away = True
        for priority in (Priority.SHADOW, Priority.BACKFILL, Priority.LIVE):
            for number in range(3):
                answer = running.follow(lengths(*[1] * 8), lane=str(number), priority=priority)
                answer.add_done_callback(lambda done, name=priority.name: order.append(name))
        running.worker.is_away = False
        running.batcher.on_ready()
        while len(order) < 9:
            await asyncio.sleep(0)
        assert order == ["LIVE"] * 3 + ["BACKFILL"] * 3 + ["SHADOW"] * 3

    run(scenario)


def test_a_full_queue_counts_observations() -> None:
    async def scenario(running: Running) -> None:
        running.worker.is_away = True
        waits = running.follow(lengths(1, 2))
        with pytest.raises(OverloadedError, match="2 live observations"):
            running.follow(lengths(1, 2))
        assert running.batcher.counts.refused == 2
        fits = running.follow(lengths(3))
        running.worker.is_away = False
        running.batcher.on_ready()
        assert told((await waits).results) == [1, 12] and told((await fits).results) == [3]

    run(scenario, policy=lambda: BatchPolicy(queue_count_max=3))


def test_who_wants_no_answer_any_more_leaves_the_queue_and_the_batch() -> None:
    async def scenario(running: Running) -> None:
        running.worker.is_away = True
        gone, stays = running.follow(lengths(1, 2, 3)), running.follow(lengths(4, 5), lane="b")
        gone.cancel()
        await asyncio.sleep(0)
        assert running.batcher.counts.cancelled == 3
        running.worker.is_away = False
        running.batcher.on_ready()
        assert (await stays).state == b"45"
        assert running.job_sizes == [2]
        late, other = running.follow(lengths(1)), running.follow(lengths(2), lane="b")
        await asyncio.sleep(0)  # the batch is on its way
        late.cancel()
        assert (await other).state == b"2"

    run(scenario)


def test_a_stretch_needs_an_observation_and_a_model_version_at_work() -> None:
    async def scenario(running: Running) -> None:
        with pytest.raises(InvalidRequestError, match="expected a stretch of at least one observation"):
            running.follow(WorkStretch(b"7", ()))
        with pytest.raises(UnknownModelError, match="digits@1001"):
            running.follow(lengths(1), key=TRAINED)
        running.worker.is_away = True
        removed = running.follow(lengths(1))
        running.batcher.remove_model(DIGITS)
        with pytest.raises(TryAgainError, match="taken out of service"):
            await removed

    run(scenario)


def test_closing_tells_who_waits_for_a_stretch() -> None:
    async def scenario(running: Running) -> None:
        running.worker.delay_s = 60.0
        sent = running.follow(lengths(*[1] * 8))
        await asyncio.sleep(0)
        waits = running.follow(lengths(1))
        running.batcher.close()
        for answer in (sent, waits):
            with pytest.raises(TryAgainError, match="stopping"):
                await answer

    run(scenario)


def test_a_recorded_run_counts_observations_and_replays_identically(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policies: list[TracedPolicy[object]] = []

    def traced() -> TracedPolicy[object]:
        policies.append(TracedPolicy(tmp_path / "trace", queue_count_max=16))
        return policies[0]

    async def scenario(running: Running) -> None:
        running.worker.is_away = True
        answers = [running.follow(lengths(*[1] * count), lane=str(count)) for count in (3, 4, 5, 1)]
        with pytest.raises(OverloadedError):
            running.follow(lengths(1, 2, 3, 4))
        running.worker.is_away = False
        running.batcher.on_ready()
        await asyncio.gather(*answers)

    run(scenario, policy=traced)  # type: ignore[arg-type]
    policies[0].close()
    assert batching_trace.main([str(tmp_path / "trace"), "--batch-count-max", "4"]) == 0
    said = capsys.readouterr().out
    assert "a fresh policy decides the same" in said
    for title, largest in (("recorded", "2 batches of 6.5 observations (largest 7)"), ("what if", "(largest 5)")):
        assert largest in said.partition(f"{title}: ")[2].partition("\n")[0]
    assert "0 expired, 4 refused" in said and "(13)" in said


# ---- the wire ----


def frame_of(parts: list[bytes | bytearray | memoryview]) -> Frame:
    return Frame(parts[1], memoryview(b"".join(parts[2:])))


def test_stretches_states_and_trained_versions_cross_as_they_are() -> None:
    stretches = [PlacedStretch(1, 2, b"\0state\xff"), PlacedStretch(3, 1, b"")]
    job = Job(7, DIGITS, [make_item(each) for each in (b"single", b"", b"second", b"third")], 60.0, stretches)
    for message in (job, Load(ModelPackage(TRAINED, content=b"weights", is_trained=True))):
        assert decode_message(frame_of(encode_message(message))) == message
    done = pack_results(7, [AnalysisResult(np.arange(3), ()), "no"], 0.5, [b"\0\xff" * 50, b""])
    there = decode_answer(frame_of(encode_answer(done)))
    assert isinstance(there, JobDone)
    assert there.states == [b"\0\xff" * 50, b""]
    assert told(there.results()) == told(done.results())


@pytest.mark.parametrize(
    ("states", "body_bytes"),
    [
        ([5], 4),
        ([4], 5),
        ([], 1),
        ([-1], 0),
        ([2.0], 2),
        ([True], 1),
        (["2"], 2),
        (2, 2),
        ([STATE_BYTES_MAX + 1], STATE_BYTES_MAX + 1),
    ],
)
def test_an_answer_whose_states_are_none_is_refused(states: object, body_bytes: int) -> None:
    answer = {"done": 1, "blocks": [], "refusals": {}, "failure": "", "is_out_of_memory": False, "duration_s": 1.0}
    with pytest.raises(BrokenStateError, match="expected an answer of a worker"):
        decode_answer(Frame(json.dumps({**answer, "states": states}).encode(), memoryview(bytes(body_bytes))))
    sound = decode_answer(Frame(json.dumps({**answer, "states": [2, 0]}).encode(), memoryview(b"ab")))
    assert isinstance(sound, JobDone) and sound.states == [b"ab", b""]


def test_an_answer_must_have_a_state_for_each_stretch() -> None:
    done = pack_results(1, ["no", "no"], states=[b"a"])
    assert answers_all(done, 2, 1)
    assert not answers_all(done, 2, 2)
    assert not answers_all(done, 2)
    assert answers_all(JobDone(1, failure="broke"), 2, 1)


# ---- models and processes ----


def test_a_worker_process_follows_fails_dies_and_follows_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_package(tmp_path, monkeypatch)

    async def scenario() -> None:
        batcher = Batcher(open_pool("local", PoolPlan()))
        running = Running(batcher)
        try:
            batcher.add_model(ModelPackage(DIGITS), make_card(DIGITS))
            batcher.add_model(ModelPackage(TRAINED, content=b"8", is_trained=True), make_card(TRAINED))
            damaged = make_item(b"abc", payload_bytes=4)
            first, second = await running.ask(stretch_of(b"x", damaged, b"xx"), lengths(3, 4, state=b"9"))
            assert second == ([93, 934], b"934")
            (results, state) = first
            assert (results[0], results[2], state) == (1, 12, b"12") and "expected a payload" in str(results[1])
            assert await running.ask(lengths(1, 2), key=TRAINED) == [([81, 812], b"812")]
            for bad, why in ((b"poison", "ZeroDivisionError: poisoned"), (b"hungry", "MemoryError")):
                with pytest.raises(PredictionFailedError, match=why):
                    await running.follow(stretch_of(b"x", bad))
            with pytest.raises(PredictionFailedError, match=r"a worker was lost.*SIGKILL"):
                await running.follow(stretch_of(b"x", b"deadly"))
            assert await running.ask(lengths(5, 6, state=b"934"), lengths(7, state=b"12")) == [
                ([9345, 93456], b"93456"),
                ([127], b"127"),
            ]
            assert batcher.counts.deaths == batcher.counts.out_of_memory == 1
        finally:
            batcher.close()

    asyncio.run(scenario())


def test_weights_are_for_an_analysis_that_can_be_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "fixed"
    package.mkdir()
    facts = "NAME, VERSIONS, INSTRUMENT_MODELS, MAX_BATCH = 'fixed', (1,), frozenset(), 1\n"
    (package / "__init__.py").write_text(facts)
    monkeypatch.setattr(server.analyses, "__path__", [str(tmp_path)])
    for name, why in (("fixed", "expected an analysis that can be trained"), ("absent", "expected one of fixed@1")):
        with pytest.raises(InvalidRequestError, match=why):
            load_analysis(name, 1001, b"weights")
