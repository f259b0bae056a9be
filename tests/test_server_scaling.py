"""How many workers there should be: the rules one by one, and that a steady load ends in a steady number."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from server.workers.scaling import Load, Scaling, ScalingBounds

BOUNDS = ScalingBounds(workers_min=1, workers_max=8, oldest_max_s=2.0, quiet_s=60.0)


def see(
    now_s: float, *, oldest_s: float = 0.0, waiting: int = 0, workers: int = 1, starting: int = 0, busy_s: float = 0.0
) -> Load:
    return Load(now_s, oldest_s, waiting, workers, starting, busy_s)


def test_a_long_wait_doubles_the_workers_at_once_and_up_to_the_bound() -> None:
    scaling = Scaling(BOUNDS)
    assert scaling.decide(see(0, oldest_s=1.9, waiting=500)) == 1
    assert scaling.decide(see(1, oldest_s=2.1, waiting=500)) == 2
    assert scaling.decide(see(2, oldest_s=3.0, waiting=500, workers=2)) == 4
    assert scaling.decide(see(3, oldest_s=4.0, waiting=500, workers=4)) == 8
    assert scaling.decide(see(4, oldest_s=5.0, waiting=500, workers=8)) == 8


def test_nothing_is_added_while_a_worker_is_still_starting() -> None:
    scaling = Scaling(BOUNDS)
    assert scaling.decide(see(0, oldest_s=9, waiting=9, workers=2, starting=1)) == 2
    assert scaling.decide(see(1, oldest_s=9, waiting=9, workers=2)) == 4


def test_after_a_quiet_time_one_worker_goes_and_then_the_next() -> None:
    scaling = Scaling(BOUNDS)
    counts = []
    workers = 3
    for now_s in range(0, 200, 10):
        workers = scaling.decide(see(now_s, workers=workers))
        counts.append(workers)
    assert counts == [3] * 6 + [2] * 6 + [1] * 8


def test_a_worker_stays_where_the_others_could_not_do_its_share() -> None:
    scaling = Scaling(BOUNDS)
    for now_s in range(0, 600, 10):  # two workers' work is done, none of it late
        assert scaling.decide(see(now_s, workers=3, busy_s=2.0 * now_s)) == 3


def test_a_long_wait_starts_the_quiet_time_again() -> None:
    scaling = Scaling(BOUNDS)
    scaling.decide(see(0, workers=8))
    scaling.decide(see(59, workers=8, oldest_s=3, waiting=1))
    assert scaling.decide(see(61, workers=8)) == 8
    assert scaling.decide(see(120, workers=8)) == 8
    assert scaling.decide(see(121, workers=8)) == 7


def test_the_bounds_hold_whatever_there_is() -> None:
    scaling = Scaling(ScalingBounds(2, 4))
    assert scaling.decide(see(0, workers=0)) == 2
    assert scaling.decide(see(1, workers=9)) == 4
    nothing = Scaling(ScalingBounds(0, 0))
    assert nothing.decide(see(0, workers=0, oldest_s=99, waiting=5)) == 0


@settings(max_examples=60, deadline=None)
@given(
    load=st.floats(0.0, 7.5),
    start_s=st.integers(0, 20),
    workers_min=st.integers(1, 3),
    batch_s=st.sampled_from([0.1, 1.0, 5.0]),
)
def test_a_steady_load_ends_in_a_steady_number_of_workers(
    load: float, start_s: int, workers_min: int, batch_s: float
) -> None:
    """A queue is simulated second by second: `load` workers' work comes in, each worker does a second's of it."""
    scaling = Scaling(ScalingBounds(workers_min, 8))
    ready_at = [0] * workers_min
    queue_s = busy_s = 0.0
    counts = []
    for now_s in range(1800):
        ready = sum(at <= now_s for at in ready_at)
        queue_s += load
        done_s = min(queue_s, float(ready))
        queue_s -= done_s
        busy_s += done_s
        oldest_s = queue_s / load if load else 0.0  # what is left came in this long ago
        waiting = int(queue_s / batch_s)
        wanted = scaling.decide(Load(now_s, oldest_s, waiting, len(ready_at), len(ready_at) - ready, busy_s))
        assert workers_min <= wanted <= 8
        ready_at = ready_at[:wanted] + [now_s + start_s] * (wanted - len(ready_at))
        counts.append(wanted)
    assert len(set(counts[1200:])) == 1
    assert counts[-1] >= load and queue_s < max(load, 1.0)
    changes = [after - before for before, after in pairwise(counts) if after != before]
    turns = sum((a > 0) != (b > 0) for a, b in pairwise(changes))
    assert turns <= 1  # up, then down to what it needs; never to and fro
