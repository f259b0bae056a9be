"""What is said in the log, and when: pure."""

from __future__ import annotations

from server.ingest.repeats import INTERVAL_S, KEYS_MAX, Repeats


def test_the_first_time_is_said_and_the_next_only_after_a_while_with_all_between() -> None:
    repeats = Repeats()
    assert repeats.note("a", 3, 0.0) == 3
    assert repeats.note("a", 4, 1.0) == 0
    assert repeats.note("a", 5, INTERVAL_S) == 9
    assert repeats.note("a", 1, INTERVAL_S + 1) == 0


def test_different_things_are_said_apart() -> None:
    repeats = Repeats()
    assert repeats.note("a", 1, 0.0) == 1
    assert repeats.note("b", 1, 0.0) == 1


def test_memory_is_bounded() -> None:
    repeats = Repeats()
    for key in range(3 * KEYS_MAX):
        repeats.note(key, 1, 0.0)
    assert len(repeats._said) <= KEYS_MAX
