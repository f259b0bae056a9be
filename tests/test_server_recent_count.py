"""What happened during the last minute, and not before."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from server.ingest.recent_count import RecentCount


@given(st.lists(st.tuples(st.integers(0, 100), st.floats(0, 30))), st.floats(0, 200))
def test_the_count_is_that_of_the_window_to_the_second(steps: list[tuple[int, float]], wait_s: float) -> None:
    recent, now_s, happened = RecentCount(60), 1000.0, []
    for count, after_s in steps:
        now_s += after_s
        recent.add(count, now_s)
        happened.append((count, now_s))
    now_s += wait_s
    assert recent.total(now_s) == sum(count for count, at_s in happened if int(at_s) > now_s - 60)
