"""A version that does badly after its activation is rolled back; one that does as well as the one before never is."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from model_support import PROFILE_MANIFEST, make_profile, make_profile_model
from server_support import open_store

from fieldpost.v1 import model_pb2, models_service_pb2
from server.broadcast import Broadcast
from server.models.card import ModelState
from server.models.cost import Timing, choose_batch_max, fit_cost
from server.models.desk import ModelDesk
from server.models.files import ModelFiles
from server.models.rollback import Cost, Counts, Rollback
from server.models.rollout import OBSERVATIONS_MIN, Conduct, decide, share_bounds
from server.models.states import find_previous
from server.models.trial import TrialLimits
from server.workers.jobs import ModelKey

ANALYSIS = "layer-height"
COUNTS = st.integers(0, 5000)


@given(COUNTS, COUNTS)
def test_a_version_that_does_as_the_one_before_stays(predicted: int, failed: int) -> None:
    same = Conduct(predicted, failed, 0.01)
    if same.count:
        assert not decide(same, same, 0.01).is_rollback


@given(COUNTS, COUNTS, COUNTS, COUNTS)
def test_more_failures_never_save_a_version(predicted: int, failed: int, before: int, before_failed: int) -> None:
    earlier = Conduct(before, before_failed)
    if predicted and decide(Conduct(predicted, failed), earlier, 0).is_rollback:
        assert decide(Conduct(predicted - 1, failed + 1), earlier, 0).is_rollback


@given(st.integers(0, OBSERVATIONS_MIN - 1), COUNTS, st.floats(0, 1e6))
def test_a_few_observations_decide_nothing(failed: int, before: int, observation_s: float) -> None:
    assert not decide(Conduct(0, failed, observation_s), Conduct(before, 0, 0.001), 0.001).is_rollback


@given(st.integers(OBSERVATIONS_MIN, 5000), st.integers(100, 5000))
def test_a_version_that_fails_on_everything_goes(failed: int, before: int) -> None:
    decision = decide(Conduct(0, failed), Conduct(before, 0), 0)
    assert decision.is_rollback
    assert decision.reason.startswith(f"failed on {failed} of {failed} observations")


@given(st.integers(1, 5000), st.data())
def test_the_bounds_of_a_share_hold_what_was_seen(count: int, data: st.DataObject) -> None:
    hits = data.draw(st.integers(0, count))
    low, high = share_bounds(hits, count)
    assert 0 <= low <= hits / count + 1e-12 and hits / count - 1e-12 <= high <= 1


def test_a_version_without_history_goes_where_it_fails_on_most() -> None:
    assert decide(Conduct(0, 100), Conduct(0, 0), 0).is_rollback
    assert not decide(Conduct(60, 40), Conduct(0, 0), 0).is_rollback


def test_a_slower_version_stays_unless_it_is_slower_than_its_trial_too() -> None:
    before = Conduct(1000, 0, 0.001)
    assert not decide(Conduct(100, 0, 0.01), before, 0.01).is_rollback
    assert decide(Conduct(100, 0, 0.04), before, 0.01).is_rollback
    assert not decide(Conduct(100, 0, 0.04), Conduct(0, 0, float("nan")), 0.0).is_rollback, "nothing to compare with"
    assert not decide(Conduct(100, 0), before, 0.01).is_rollback, "its own time is not known"


@pytest.mark.parametrize(
    ("activated", "previous"),
    [([], None), ([1], None), ([1, 2], 1), ([1, 2, 3], 2), ([1, 2, 3, 2], 1), ([1, 2, 3, 2, 3], 2), ([1, 2, 1], None)],
)
def test_rolling_back_goes_back_step_by_step(activated: list[int], previous: int | None) -> None:
    states = dict.fromkeys(activated, ModelState.READY)
    if activated:
        states[activated[-1]] = ModelState.ACTIVE
    assert find_previous(activated, states) == previous


def test_rolling_back_leaves_out_what_is_retired() -> None:
    states = {1: ModelState.READY, 2: ModelState.RETIRED, 3: ModelState.ACTIVE}
    assert find_previous([1, 2, 3], states) == 1


@given(st.floats(1e-6, 1), st.floats(1e-6, 1))
def test_what_a_batch_costs_is_found_again(fixed_s: float, observation_s: float) -> None:
    timings = [Timing(count, fixed_s + observation_s * count) for count in (1, 2, 4, 8, 16, 32, 64)]
    found = fit_cost(timings)
    assert found == pytest.approx((fixed_s, observation_s), rel=0.05, abs=1e-6)
    assert choose_batch_max(timings) in (1, 2, 4, 8, 16, 32, 64)


def test_a_quick_model_gets_large_batches_since_each_costs_something_outside_the_model() -> None:
    sizes = (1, 2, 4, 8, 16, 32, 64)
    assert choose_batch_max([Timing(count, 20e-6 * count) for count in sizes]) == 64
    assert choose_batch_max([Timing(count, 10e-3 * count) for count in sizes]) == 1


@given(st.lists(st.floats(1e-7, 10), min_size=1, max_size=7))
def test_whatever_was_measured_a_cost_is_never_negative(durations: list[float]) -> None:
    timings = [Timing(2**power, duration) for power, duration in enumerate(durations)]
    fixed_s, observation_s = fit_cost(timings)
    assert fixed_s >= 0 and observation_s >= 0 and fixed_s + observation_s > 0
    assert choose_batch_max(timings) <= 2 ** (len(durations) - 1)


@dataclass
class SeenCounts:
    predicted: int = 0
    failed: int = 0
    refused_callers: int = 0
    deaths_in_a_row: int = 0


@dataclass
class SeenCost:
    key: ModelKey
    observation_s: float
    batch_fixed_s: float = 0.0
    max_batch_count: int = 64


@dataclass
class Workload:
    """What a batcher would tell, set by hand."""

    counts: dict[ModelKey, SeenCounts] = field(default_factory=dict)
    costs: list[SeenCost] = field(default_factory=list)

    @property
    def model_counts(self) -> Mapping[ModelKey, Counts]:
        return self.counts

    def queues(self) -> Sequence[Cost]:
        return self.costs


def _key(version: int) -> ModelKey:
    return ModelKey(ANALYSIS, version)


async def _two_versions(desk: ModelDesk) -> None:
    for gain in (1.0, 2.0):
        submission = models_service_pb2.ModelSubmission(manifest=PROFILE_MANIFEST, sample_payload=make_profile())
        model, _ = await desk.submit(submission, make_profile_model(gain=gain), actor="anna")
        await desk.set_state(_key(model.model_version), ModelState.ACTIVE, actor="anna")


def test_a_version_that_fails_after_its_activation_is_rolled_back_once(tmp_path: Path) -> None:
    async def play() -> None:
        store = open_store(tmp_path)
        desk = ModelDesk(store, ModelFiles(tmp_path / "models"), changed=Broadcast(), limits=TrialLimits(measure_s=0.0))
        work = Workload({_key(1): SeenCounts(1000, 1), _key(2): SeenCounts(0, 500)})
        rollback = Rollback(store, desk, work)
        await rollback.look()
        await _two_versions(desk)
        assert await rollback.look() == [], "what it failed on before it became active does not count"
        work.counts[_key(2)].predicted += 100
        assert await rollback.look() == []
        work.counts[_key(2)].failed += 60
        assert await rollback.look() == [_key(2)]
        first, second = await desk.list(ANALYSIS)
        assert (first.state, second.state) == (model_pb2.MODEL_STATE_ACTIVE, model_pb2.MODEL_STATE_READY)
        event = (await desk.get(_key(1))).events[-1]
        assert (event.actor, event.reason) == ("server", "failed on 60 of 160 observations; before: 1 of 1001")
        work.counts[_key(1)].failed += 10_000
        assert await rollback.look() == [], "what the server did itself is not undone by it"
        store.close()

    asyncio.run(play())


def test_what_a_version_failed_on_before_anybody_looked_counts(tmp_path: Path) -> None:
    async def play() -> None:
        store = open_store(tmp_path)
        desk = ModelDesk(store, ModelFiles(tmp_path / "models"), changed=Broadcast(), limits=TrialLimits(measure_s=0.0))
        work = Workload({_key(1): SeenCounts(1000, 1)})
        rollback = Rollback(store, desk, work)
        await rollback.look()
        await _two_versions(desk)
        work.counts[_key(2)] = SeenCounts(0, 70)  # a backlog goes by in a second
        assert await rollback.look() == [_key(2)]
        store.close()

    asyncio.run(play())


def test_payloads_of_callers_that_a_version_refuses_do_not_roll_it_back_but_workers_that_it_kills_do(
    tmp_path: Path,
) -> None:
    async def play() -> None:
        store = open_store(tmp_path)
        desk = ModelDesk(store, ModelFiles(tmp_path / "models"), changed=Broadcast(), limits=TrialLimits(measure_s=0.0))
        seen = SeenCounts(deaths_in_a_row=9)  # of when it was a shadow
        rollback = Rollback(store, desk, Workload({_key(1): SeenCounts(1000, 1), _key(2): seen}))
        await rollback.look()
        await _two_versions(desk)
        assert await rollback.look() == []
        seen.predicted, seen.failed, seen.refused_callers = 10, 500, 500
        assert await rollback.look() == []
        seen.deaths_in_a_row = 5
        assert await rollback.look() == []
        seen.deaths_in_a_row = 6
        assert await rollback.look() == [_key(2)]
        assert (await desk.get(_key(1))).events[-1].reason == "6 workers in a row were lost with its batches"
        store.close()

    asyncio.run(play())


def test_an_hour_after_its_activation_a_version_is_left_to_people(tmp_path: Path) -> None:
    async def play() -> None:
        store = open_store(tmp_path)
        desk = ModelDesk(store, ModelFiles(tmp_path / "models"), changed=Broadcast(), limits=TrialLimits(measure_s=0.0))
        await _two_versions(desk)
        work = Workload({_key(1): SeenCounts(1000, 1), _key(2): SeenCounts()}, [SeenCost(_key(2), 1.0)])
        late = Rollback(store, desk, work, now_unix_nanos=lambda: time.time_ns() + 3_700_000_000_000)
        soon = Rollback(store, desk, work)
        assert await late.look() == await soon.look() == []
        work.counts[_key(2)].predicted += 100
        assert await late.look() == []
        assert await soon.look() == [_key(2)], "1 s for an observation, where its trial took far less"
        store.close()

    asyncio.run(play())
