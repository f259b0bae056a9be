"""Which waiting observations go into a batch: pure, time is an argument."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from server.batching import BatchQueue, Waiting


def fill(queue: BatchQueue[int], *items: Waiting[int]) -> BatchQueue[int]:
    for item in items:
        queue.add(item)
    return queue


def values(items: list[Waiting[int]]) -> list[int]:
    return [item.value for item in items]


def test_a_lone_item_does_not_wait_for_company() -> None:
    queue = fill(BatchQueue(64, 1000), Waiting(1, "a", 10))
    assert values(queue.take(0).items) == [1]
    assert len(queue) == 0


def test_lanes_take_turns_so_that_a_backlog_delays_nobody() -> None:
    queue = fill(BatchQueue(4, 1000), *(Waiting(i, "backlog", 1) for i in range(100)), Waiting(1000, "live", 1))
    assert 1000 in values(queue.take(0).items)


def test_order_within_a_lane_is_kept() -> None:
    queue = fill(BatchQueue(10, 1000), *(Waiting(i, "ab"[i % 2], 1) for i in range(10)))
    batch = values(queue.take(0).items)
    assert [i for i in batch if i % 2 == 0] == [0, 2, 4, 6, 8]


def test_a_batch_is_bounded_by_bytes_but_a_larger_item_goes_alone() -> None:
    queue = fill(BatchQueue(10, 100), Waiting(1, "a", 60), Waiting(2, "a", 60), Waiting(3, "a", 500))
    assert [values(queue.take(0).items) for _ in range(3)] == [[1], [2], [3]]


def test_what_is_past_its_deadline_is_given_back_and_takes_no_room() -> None:
    queue = fill(BatchQueue(2, 100), Waiting(1, "a", 1, deadline_s=5), Waiting(2, "a", 1), Waiting(3, "a", 1))
    batch = queue.take(5.0)
    assert values(batch.expired) == [1]
    assert values(batch.items) == [2, 3]


@given(
    lanes=st.lists(st.sampled_from("abc"), max_size=60),
    count_max=st.integers(1, 9),
    bytes_max=st.integers(1, 30),
    sizes=st.lists(st.integers(1, 20), min_size=60, max_size=60),
)
def test_every_item_leaves_once_and_no_bound_is_broken(
    lanes: list[str], count_max: int, bytes_max: int, sizes: list[int]
) -> None:
    queue = fill(BatchQueue(count_max, bytes_max), *(Waiting(i, lane, sizes[i]) for i, lane in enumerate(lanes)))
    left: list[int] = []
    while batch := queue.take(0).items:
        assert len(batch) <= count_max
        assert len(batch) == 1 or sum(item.size_bytes for item in batch) <= bytes_max
        left += values(batch)
    assert sorted(left) == list(range(len(lanes)))
    for lane in "abc":
        mine = [i for i in left if lanes[i] == lane]
        assert mine == sorted(mine)
