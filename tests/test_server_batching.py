"""Which waiting observations go into a batch: pure, time is an argument."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fieldpost.errors import OverloadedError
from server.batching.batch_cost import BatchCost, CountCap
from server.batching.policy import BATCH_S_MIN, NOT_LIVE_RATIO, TURN_EVERY, Batch, BatchPolicy, Priority, Waiting
from server.workers.jobs import ModelKey

A, B = ModelKey("a", 1), ModelKey("b", 1)
LIVE, BACKFILL, SHADOW = Priority


def make_policy(
    *keys: ModelKey,
    count_max: int = 64,
    bytes_max: int = 1_000_000,
    cost: tuple[float, float] = (0.0, 0.0),
    **limits: float,
) -> BatchPolicy[int]:
    policy: BatchPolicy[int] = BatchPolicy(**limits)  # type: ignore[arg-type]
    for key in keys or (A,):
        policy.add_model(key, "cpu", max_batch_count=count_max, batch_bytes_max=bytes_max, cost=cost)
    return policy


def add(
    policy: BatchPolicy[int],
    *values: int,
    key: ModelKey = A,
    lane: str = "a",
    priority: Priority = LIVE,
    size_bytes: int = 1,
    now_s: float = 0.0,
    observation_count: int = 1,
    arrival_s: float | None = None,
    deadline_s: float | None = None,
) -> list[Waiting[int]]:
    return [
        policy.add(
            key,
            each,
            lane=lane,
            priority=priority,
            size_bytes=size_bytes,
            now_s=now_s,
            observation_count=observation_count,
            arrival_s=arrival_s,
            deadline_s=deadline_s,
        )
        for each in values
    ]


def values(items: Iterable[Waiting[int]]) -> list[int]:
    return [item.value for item in items]


def take(policy: BatchPolicy[int], now_s: float = 0.0) -> list[int]:
    batch = policy.take("cpu", now_s)
    return values(batch.items) if batch else []


def take_all(policy: BatchPolicy[int], now_s: float = 0.0) -> list[Batch[int]]:
    batches = []
    while batch := policy.take("cpu", now_s):
        batches.append(batch)
    return batches


def test_a_lone_item_does_not_wait_for_company() -> None:
    policy = make_policy()
    add(policy, 1)
    assert take(policy) == [1]
    assert take(policy) == []


def test_lanes_take_turns_so_that_a_backlog_delays_nobody() -> None:
    policy = make_policy(count_max=4)
    add(policy, *range(100), lane="returned")
    add(policy, 1000, lane="other")
    assert 1000 in take(policy)


def test_order_within_a_lane_is_kept() -> None:
    policy = make_policy(count_max=10)
    for i in range(10):
        add(policy, i, lane="ab"[i % 2])
    assert [i for i in take(policy) if i % 2 == 0] == [0, 2, 4, 6, 8]


def test_a_batch_is_bounded_by_bytes_but_a_larger_item_goes_alone() -> None:
    policy = make_policy(count_max=10, bytes_max=100)
    for value, size_bytes in ((1, 60), (2, 60), (3, 500)):
        add(policy, value, size_bytes=size_bytes)
    assert [take(policy) for _ in range(3)] == [[1], [2], [3]]


def test_a_batch_is_bounded_by_observations_and_what_goes_together_is_not_parted() -> None:
    policy = make_policy(count_max=4)
    for value, count in enumerate([2, 2, 3, 1, 9, 1]):
        add(policy, value, lane=str(value), observation_count=count)
    assert [values(batch.items) for batch in take_all(policy)] == [[0, 1], [2, 3], [4], [5]]


def test_what_goes_together_counts_for_its_deadline_with_all_its_observations() -> None:
    policy = make_policy(cost=(0.0, 0.1))
    add(policy, 1, observation_count=3, deadline_s=0.25)
    add(policy, 2, observation_count=2, deadline_s=0.25)
    assert take(policy) == [2]
    assert values(policy.take_expired(0.0)) == [1]
    add(policy, 3, lane="a", observation_count=2, deadline_s=0.55)
    add(policy, 4, lane="b", observation_count=4)
    assert take(policy) == [3], "with the others it would be late"


def test_a_batch_takes_no_longer_than_its_bound_as_far_as_was_measured() -> None:
    policy = make_policy(cost=(0.1, 0.01), batch_seconds_max=0.5)
    add(policy, *range(100))
    assert len(take(policy)) == 40


def test_a_batch_that_is_not_live_is_shorter_since_something_live_may_come_in() -> None:
    policy = make_policy(cost=(0.0, 0.01), batch_seconds_max=0.4)
    add(policy, *range(100), priority=BACKFILL)
    assert len(take(policy)) == int(40 * NOT_LIVE_RATIO)


def test_what_is_past_its_deadline_is_given_back_and_takes_no_room() -> None:
    policy = make_policy(count_max=2)
    add(policy, 1, deadline_s=5)
    add(policy, 2, 3)
    assert take(policy, 5.0) == [2, 3]
    assert values(policy.take_expired(5.0)) == [1]
    assert policy.take_expired(5.0) == []


def test_what_is_late_is_known_although_no_worker_is_free_and_wherever_it_stands() -> None:
    policy = make_policy()
    add(policy, *range(50))
    add(policy, 100, deadline_s=3.0)
    add(policy, 101, deadline_s=2.0)
    assert policy.next_expiry_s() == 2.0
    assert values(policy.take_expired(2.5)) == [101]
    assert policy.next_expiry_s() == 3.0


def test_what_cannot_make_its_deadline_even_alone_is_given_back_at_once() -> None:
    policy = make_policy(cost=(0.5, 0.5))
    add(policy, 1, deadline_s=0.9)
    add(policy, 2, deadline_s=1.1)
    assert values(policy.take_expired(0.0)) == [1]
    assert take(policy) == [2]


def test_nobody_is_dragged_past_a_deadline_by_the_others_of_its_batch() -> None:
    policy = make_policy(cost=(0.0, 0.1), batch_seconds_max=10)
    add(policy, 1, deadline_s=0.35)
    add(policy, *range(2, 10))
    assert take(policy) == [1, 2, 3]


def test_a_wrong_estimate_does_not_refuse_for_ever() -> None:
    policy = make_policy(cost=(60.0, 0.0))
    for i in range(100):
        add(policy, i, lane=str(i), deadline_s=5.0)
    tried = take(policy)
    assert len(tried) == 1
    for _ in range(12):
        policy.note_cost(A, 1, 0.01)
    add(policy, 1000, deadline_s=5.0)
    assert 1000 in take(policy)


def test_live_goes_before_backfill_and_backfill_before_shadow_over_all_models() -> None:
    policy = make_policy(A, B)
    add(policy, 3, priority=SHADOW)
    add(policy, 2, priority=BACKFILL)
    add(policy, 1, key=B)
    assert [take(policy) for _ in range(3)] == [[1], [2], [3]]


def test_what_waits_behind_something_live_has_every_sixteenth_batch() -> None:
    policy = make_policy(count_max=1)
    add(policy, *range(200))
    add(policy, *range(1000, 1010), priority=BACKFILL)
    order = [take(policy)[0] for _ in range(5 * TURN_EVERY)]
    assert [i for i, each in enumerate(order, 1) if each >= 1000] == [TURN_EVERY * i for i in range(1, 6)]


def test_what_goes_out_of_turn_takes_a_sixteenth_of_the_time_however_long_each_of_it_takes() -> None:
    policy = make_policy(count_max=1, cost=(0.0, 0.005))
    policy.add_model(B, "cpu", max_batch_count=8, batch_bytes_max=1000, cost=(0.0, 0.1))
    add(policy, *range(5000))
    add(policy, *range(100), key=B, priority=BACKFILL)
    used_s = {A: 0.0, B: 0.0}
    for _ in range(3000):
        batch = policy.take("cpu", 0.0)
        assert batch is not None
        used_s[batch.key] += len(batch.items) * (0.005 if batch.key == A else 0.1)
    assert used_s[B] == pytest.approx(used_s[A] / (TURN_EVERY - 1), rel=0.1)


def test_model_versions_share_the_time_and_not_the_batches() -> None:
    policy = make_policy(A, count_max=1, cost=(0.0, 0.01))
    policy.add_model(B, "cpu", max_batch_count=1, batch_bytes_max=1000, cost=(0.0, 0.03))
    add(policy, *range(100))
    add(policy, *range(100), key=B)
    taken = [batch.key for batch in (policy.take("cpu", 0.0) for _ in range(80)) if batch]
    assert taken.count(A) == pytest.approx(60, abs=2)


def test_having_been_idle_is_no_credit() -> None:
    policy = make_policy(A, B, count_max=1, cost=(0.0, 0.01))
    add(policy, *range(200))
    for _ in range(100):
        take(policy)
    add(policy, *range(100), key=B)
    taken = [batch.key for batch in (policy.take("cpu", 0.0) for _ in range(20)) if batch]
    assert taken.count(A) == pytest.approx(10, abs=1)


def test_a_batch_that_kills_its_worker_is_charged_for_the_time() -> None:
    policy = make_policy(A, B, count_max=1, cost=(0.0, 0.01))
    add(policy, *range(50))
    add(policy, *range(50), key=B)
    policy.note_lost(A, LIVE, 0.2)
    taken = [batch.key for batch in (policy.take("cpu", 0.0) for _ in range(20)) if batch]
    assert taken == [B] * 20


def test_each_kind_of_worker_gets_its_own() -> None:
    policy = make_policy(A)
    policy.add_model(B, "onnx", max_batch_count=4, batch_bytes_max=1000, cost=(0, 0))
    add(policy, 1)
    add(policy, 2, key=B)
    batch = policy.take("onnx", 0.0)
    assert batch is not None and (batch.key, values(batch.items)) == (B, [2])
    assert policy.take("onnx", 0.0) is None
    assert policy.take("unknown", 0.0) is None


def test_a_full_queue_refuses_and_says_how_much_waits() -> None:
    policy = make_policy(A, B, queue_count_max=3, queue_bytes_max=100)
    add(policy, 1, 2, 3)
    with pytest.raises(OverloadedError, match=r"3 live observations .* wait for a@1, and at most 3"):
        add(policy, 4)
    add(policy, 5, priority=BACKFILL)
    add(policy, 6, key=B, size_bytes=1000)  # larger than the limit, but nothing else waits
    with pytest.raises(OverloadedError):
        add(policy, 7, key=B)
    take(policy)
    add(policy, 8)


def test_what_is_cancelled_leaves_the_queue_at_once() -> None:
    policy = make_policy(queue_count_max=2)
    first, second = add(policy, 1, 2)
    policy.cancel(first)
    add(policy, 3)
    assert take(policy) == [2, 3]
    policy.cancel(second)  # gone already
    assert take(policy) == []


def test_age_counts_from_arrival() -> None:
    policy = make_policy()
    add(policy, 1, now_s=100.0, arrival_s=90.0)
    add(policy, 2, now_s=100.0, lane="b")
    (queue,) = policy.snapshot(105.0)
    assert (queue.live_count, queue.oldest_s) == (2, 15.0)
    take(policy, 105.0)
    assert policy.snapshot(106.0)[0].oldest_s == 0.0


def test_what_runs_again_goes_with_its_own_and_takes_turns_with_what_is_new() -> None:
    policy = make_policy(count_max=4)
    add(policy, *range(4))
    batch = policy.take("cpu", 0.0)
    assert batch is not None
    add(policy, *range(10, 22))
    policy.put_back(batch.items[:2])
    policy.put_back(batch.items[2:])
    assert [take(policy) for _ in range(5)] == [[0, 1], [10, 11, 12, 13], [2, 3], [14, 15, 16, 17], [18, 19, 20, 21]]


def test_what_runs_again_can_be_cancelled_and_can_expire() -> None:
    policy = make_policy()
    add(policy, 1, 2, deadline_s=10.0)
    add(policy, 3, deadline_s=5.0)
    batch = policy.take("cpu", 0.0)
    assert batch is not None
    policy.put_back(batch.items)
    policy.put_back(add(make_policy(), 4))  # another that has the same number as the first
    policy.cancel(batch.items[0])
    assert take(policy, 6.0) == [2]
    assert values(policy.take_expired(6.0)) == [3]
    assert take(policy, 6.0) == [4]


def test_what_runs_again_is_bounded_by_observations() -> None:
    policy = make_policy(count_max=4)
    for value in range(3):
        add(policy, value, lane=str(value), observation_count=2)
    policy.put_back([*policy.take("cpu", 0.0).items, *policy.take("cpu", 0.0).items])  # type: ignore[union-attr]
    assert [values(batch.items) for batch in take_all(policy)] == [[0, 1], [2]]
    policy.note_out_of_memory(A, 4)
    add(policy, 3, observation_count=3)
    policy.put_back(policy.take("cpu", 0.0).items)  # type: ignore[union-attr]
    assert take(policy) == [3], "also where it is more than a batch may have"


def test_after_running_out_of_memory_batches_are_half_as_large_also_what_runs_again() -> None:
    policy = make_policy(count_max=64)
    add(policy, *range(64))
    batch = policy.take("cpu", 0.0)
    assert batch is not None
    policy.note_out_of_memory(A, 64)
    policy.put_back(batch.items)
    assert policy.snapshot(0.0)[0].max_batch_count == 32
    assert [take(policy) for _ in range(2)] == [list(range(32)), list(range(32, 64))]


def test_a_cap_grows_back_slowly_and_the_more_slowly_the_oftener_it_was_too_much() -> None:
    cap = CountCap(64)

    def successes_until_it_grows() -> int:
        before, count = cap.count, 0
        while cap.count == before:
            cap.note_success(cap.count)
            count += 1
        return count

    cap.note_out_of_memory(64)
    assert cap.count == 32
    cap.note_success(5)  # a small batch says nothing
    first = successes_until_it_grows()
    cap.note_out_of_memory(cap.count)
    assert cap.count == 18
    assert successes_until_it_grows() > first
    for _ in range(10**5):
        cap.note_success(cap.count)
    assert cap.count == 64
    for _ in range(10):
        cap.note_out_of_memory(cap.count)
    assert cap.count == 1


def test_a_version_that_kills_worker_after_worker_rests_ever_longer_and_one_batch_that_is_computed_ends_that() -> None:
    policy = make_policy(A, B)
    rests = []
    add(policy, *range(100))
    now_s = 0.0
    for _ in range(12):
        while (batch := policy.take("cpu", now_s)) is None:
            now_s += 0.5
        policy.note_death(A, now_s)
        policy.put_back(batch.items)
        rests.append(now_s)
    assert rests == [0, 0, 0, 1, 3, 7, 15, 31, 63, 123, 183, 243]
    add(policy, 200, key=B, now_s=now_s)
    assert take(policy, now_s) == [200], "others are not disturbed"
    add(policy, 300, now_s=now_s)
    assert take(policy, now_s + 59) == []
    assert take(policy, now_s + 60)
    policy.note_cost(A, 64, 0.01)
    policy.note_death(A, now_s + 60)
    assert take(policy, now_s + 60)


def test_a_removed_model_version_gives_back_what_waits() -> None:
    policy = make_policy(A, B)
    add(policy, 1, deadline_s=5.0)
    add(policy, 2, priority=SHADOW)
    add(policy, 3, key=B)
    assert sorted(values(policy.remove_model(A))) == [1, 2]
    assert take(policy) == [3]
    policy.note_cost(A, 1, 1.0)  # of a batch that was on its way
    assert policy.take_expired(10.0) == []


@given(
    fixed_s=st.floats(1e-4, 1.0),
    each_s=st.floats(1e-5, 0.1),
    counts=st.lists(st.integers(1, 64), min_size=30, max_size=60),
)
def test_the_cost_of_batches_is_learnt_from_any_start(fixed_s: float, each_s: float, counts: list[int]) -> None:
    for start in (BatchCost(), BatchCost(10 * fixed_s, each_s / 7), BatchCost(0.0, each_s * 20)):
        for count in (*counts, *[1, 64] * 20):
            start.note(count, fixed_s + each_s * count)
        for count in (1, 32, 64):
            assert start.estimate(count) == pytest.approx(fixed_s + each_s * count, rel=0.5)


@given(outlier=st.floats(0.0, 1e6), count=st.integers(1, 64))
def test_one_outlier_does_not_spoil_the_estimate(outlier: float, count: int) -> None:
    cost = BatchCost(0.01, 0.001)
    for each in [1, 64, 32] * 10:
        cost.note(each, 0.01 + 0.001 * each)
    cost.note(count, outlier)
    for each in (1, 32, 64):
        assert 0.4 * (0.01 + 0.001 * each) < cost.estimate(each) < 2.5 * (0.01 + 0.001 * each)


@given(st.lists(st.tuples(st.integers(1, 64), st.floats(0.0, 1e3)), max_size=50), st.floats(1e-3, 10.0))
def test_an_estimate_is_never_negative_and_its_inverse_keeps_to_the_bound(
    measured: list[tuple[int, float]], seconds: float
) -> None:
    cost = BatchCost()
    for count, duration_s in measured:
        cost.note(count, duration_s)
    assert cost.fixed_s >= 0 and cost.each_s >= 0
    count = cost.count_within(seconds)
    assert count == 1 or cost.estimate(count) <= seconds * 1.001


STEPS = st.one_of(
    st.tuples(
        st.just("add"),
        st.sampled_from([A, B]),
        st.sampled_from("abc"),
        st.sampled_from(list(Priority)),
        st.integers(1, 40),
        st.integers(1, 4),
        st.none() | st.floats(0.0, 30.0),
    ),
    st.tuples(st.just("take")),
    st.tuples(st.just("cancel"), st.integers(0, 400)),
    st.tuples(st.just("again"), st.integers(1, 4)),
    st.tuples(st.just("wait"), st.floats(0.0, 2.0)),
    st.tuples(st.just("cost"), st.sampled_from([A, B]), st.integers(1, 8), st.floats(0.0, 3.0)),
    st.tuples(st.just("memory"), st.sampled_from([A, B]), st.integers(1, 8)),
)


@settings(max_examples=150, deadline=None)
@given(steps=st.lists(STEPS, max_size=150), count_max=st.integers(1, 8), bytes_max=st.integers(1, 100))
def test_whatever_happens_nothing_is_lost_or_taken_twice_and_every_bound_holds(
    steps: list[tuple[object, ...]], count_max: int, bytes_max: int
) -> None:
    policy = make_policy(A, B, count_max=count_max, bytes_max=bytes_max, queue_count_max=30, queue_bytes_max=600)
    now_s, added, gone, refused = 0.0, [], [], 0
    is_waiting: set[int] = set()
    last_fresh: dict[object, int] = {}
    taken_before: set[int] = set()
    last_batch: list[Waiting[int]] = []

    def check_out(items: list[Waiting[int]]) -> None:
        for each in items:
            assert each.number in is_waiting
            is_waiting.discard(each.number)
        gone.extend(items)

    def look() -> Batch[int] | None:
        highest = min((added[n].priority for n in is_waiting), default=None)
        batch = policy.take("cpu", now_s)
        expired = policy.take_expired(now_s)
        check_out(expired)
        assert all(each.deadline_s is not None for each in expired)
        if batch is None:
            assert not is_waiting
            return None
        check_out(batch.items)
        assert len(batch.items) == 1 or batch.observation_count <= count_max
        assert all(each.deadline_s is None or each.deadline_s > now_s for each in batch.items)
        assert {each.key for each in batch.items} == {batch.key}
        fresh = [each for each in batch.items if each.number not in taken_before]
        if fresh:
            assert len(batch.items) == 1 or sum(each.size_bytes for each in fresh) <= bytes_max
        for each in fresh:  # order within a lane
            lane = (each.key, each.priority, each.lane)
            assert last_fresh.get(lane, -1) < each.number
            last_fresh[lane] = each.number
        taken_before.update(each.number for each in batch.items)
        if highest is not None and batch.priority > highest:
            look.out_of_turn += 1  # type: ignore[attr-defined]
        look.total += 1  # type: ignore[attr-defined]
        assert look.out_of_turn <= 2 + 2 * look.total / TURN_EVERY + look.expired  # type: ignore[attr-defined]
        return batch

    look.out_of_turn = look.total = look.expired = 0  # type: ignore[attr-defined]
    added_list: list[Waiting[int]] = []
    added = {}  # type: ignore[assignment]
    for name, *arguments in steps:
        if name == "add":
            key, lane, priority, size_bytes, count, within_s = arguments
            deadline_s = None if within_s is None else now_s + within_s  # type: ignore[operator]
            try:
                (waiting,) = add(
                    policy,
                    len(added_list),
                    key=key,  # type: ignore[arg-type]
                    lane=lane,  # type: ignore[arg-type]
                    priority=priority,  # type: ignore[arg-type]
                    size_bytes=size_bytes,  # type: ignore[arg-type]
                    now_s=now_s,
                    observation_count=count,  # type: ignore[arg-type]
                    deadline_s=deadline_s,
                )
            except OverloadedError:
                refused += 1
                mine = [added[n] for n in is_waiting if (added[n].key, added[n].priority) == (key, priority)]
                observations = sum(each.observation_count for each in mine)
                assert observations + count > 30 or sum(each.size_bytes for each in mine) + size_bytes > 600  # type: ignore[operator]
                continue
            added_list.append(waiting)
            added[waiting.number] = waiting
            is_waiting.add(waiting.number)
        elif name == "take":
            # What is expected to expire changes the highest priority that waits: settle that first.
            expired = policy.take_expired(now_s)
            check_out(expired)
            look.expired += len(expired)  # type: ignore[attr-defined]
            batch = look()
            last_batch = batch.items if batch else []
        elif name == "cancel" and added_list:
            waiting = added_list[arguments[0] % len(added_list)]  # type: ignore[operator]
            policy.cancel(waiting)
            if waiting.number in is_waiting:
                is_waiting.discard(waiting.number)
                gone.append(waiting)
        elif name == "again" and last_batch:
            parts = arguments[0]
            for start in range(0, len(last_batch), parts):  # type: ignore[call-overload]
                policy.put_back(last_batch[start : start + parts])  # type: ignore[operator]
            is_waiting.update(each.number for each in last_batch)
            last_batch = []
        elif name == "wait":
            now_s += arguments[0]  # type: ignore[operator]
        elif name == "cost":
            policy.note_cost(*arguments)  # type: ignore[arg-type]
        elif name == "memory":
            policy.note_out_of_memory(*arguments)  # type: ignore[arg-type]
        counted = sum(q.live_count + q.backfill_count + q.shadow_count for q in policy.snapshot(now_s))
        expected = sum(added[n].observation_count for n in is_waiting if added[n].is_waiting)
        assert counted == expected
    while is_waiting:  # and all of it leaves in the end
        before = len(is_waiting)
        look()
        assert len(is_waiting) < before
    assert {each.number for each in gone} == set(added)
    assert all(q.oldest_s == 0 for q in policy.snapshot(now_s))


@given(
    backlog_s=st.floats(0.001, 5.0),
    live_s=st.floats(0.001, 0.1),
    priorities=st.permutations([BACKFILL, SHADOW]),
)
@settings(deadline=None, max_examples=30)
def test_nobody_starves_while_something_live_waits_all_the_time(
    backlog_s: float, live_s: float, priorities: list[Priority]
) -> None:
    policy = make_policy(A, count_max=1, cost=(0.0, live_s))
    policy.add_model(B, "cpu", max_batch_count=1, batch_bytes_max=10, cost=(0.0, backlog_s))
    for priority in priorities:
        add(policy, 1, 2, key=B, priority=priority)
    left = 4
    for i in range(int(3 * 4 * TURN_EVERY * max(1.0, backlog_s / max(live_s, BATCH_S_MIN))) + 100):
        add(policy, i)
        batch = policy.take("cpu", 0.0)
        assert batch is not None
        left -= batch.key == B
        if not left:
            return
    raise AssertionError(f"{left} of 4 still wait")


def test_thousands_of_lanes_and_many_deadlines_leave_nothing_behind() -> None:
    policy = make_policy(queue_count_max=10**5)
    waiting = [add(policy, i, lane=str(i % 5000), deadline_s=1e6 + i % 7)[0] for i in range(20_000)]
    for each in waiting[::2]:
        policy.cancel(each)
    batches = take_all(policy)
    assert sum(len(each.items) for each in batches) == 10_000
    lanes = [int(each.lane) for each in batches[0].items]
    assert all(after == before + 2 for before, after in pairwise(lanes))
    assert policy.next_expiry_s() is None
