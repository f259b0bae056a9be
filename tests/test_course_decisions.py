"""The rules by which a course is followed: what is made again, what is waited for, what comes next. Pure."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.prediction.course import (
    PATIENCE_NANOS,
    Choice,
    Course,
    CourseWork,
    Gaps,
    Position,
    Standing,
    choose_remade,
    choose_work,
    decide,
    find_course,
    is_in_order,
    is_open,
)

DAY_NANOS = 86_400 * 10**9
STANDINGS = st.lists(st.sampled_from(Standing), max_size=20)


@given(STANDINGS, st.integers(0, 20))
def test_all_from_the_first_that_waits_is_made_again_and_nothing_before_however_it_is_cut(
    standings: list[Standing], cut: int
) -> None:
    first = next((i for i, each in enumerate(standings) if each is not Standing.FINAL), len(standings))
    before, is_behind = choose_remade(standings[:cut], is_behind_waiting=False, is_cut_off=False)
    after, is_behind = choose_remade(standings[cut:], is_behind_waiting=is_behind, is_cut_off=False)
    assert before + after == [i >= first for i in range(len(standings))]
    assert is_behind == (first < len(standings))


@given(STANDINGS, st.booleans())
def test_where_observations_are_gone_only_what_waits_is_made(standings: list[Standing], is_behind: bool) -> None:
    remade, _ = choose_remade(standings, is_behind_waiting=is_behind, is_cut_off=True)
    assert remade == [each is not Standing.FINAL for each in standings]


@given(st.booleans(), st.booleans(), st.booleans(), st.booleans())
def test_there_is_always_something_to_do_until_nothing_waits(live: bool, late: bool, more: bool, gap: bool) -> None:
    choice = decide(is_live=live, is_late=late, has_more=more, is_gap_open=gap)
    assert (choice is Choice.DONE) == (not late and not more)
    if choice is Choice.WAIT:
        assert gap and late and not more  # never while something could be followed
    if choice is Choice.FOLLOW_ANEW:
        assert late and not gap  # once, when all is there
    if live and more:
        assert choice is Choice.FOLLOW_ON  # what is fresh waits for nothing


@given(st.integers(0, 10**18), st.integers(0, 10**18), st.integers(0, 2 * 10**18))
def test_a_gap_is_waited_for_as_long_as_it_shrinks_but_not_for_ever(seen: int, late: int, now: int) -> None:
    assert is_open(Gaps({}, seen), late, now) == (now - max(seen, late) < PATIENCE_NANOS)
    assert not is_open(Gaps({}, None), late, now)


@given(st.integers(-40 * DAY_NANOS, 10**6 * DAY_NANOS), st.integers(60 * 10**9, 3 * DAY_NANOS), st.integers(0, 10**15))
def test_a_course_holds_the_instants_that_have_its_start_and_no_others(at: int, length: int, shift: int) -> None:
    def start_of(unix_nanos: int) -> int:
        return (unix_nanos - shift) // length * length + shift

    course = find_course(start_of, at)
    assert course == Course(start_of(at), start_of(at) + length)
    assert course.holds(at) and course.holds(course.start_unix_nanos) and not course.holds(course.end_unix_nanos)


def test_a_start_after_the_instant_is_refused() -> None:
    with pytest.raises(ValueError, match="at or before 5"):
        find_course(lambda at: at + 1, 5)


@given(st.lists(st.integers(0, 30), min_size=1, max_size=6), st.integers(0, 30))
def test_an_order_is_kept_only_if_all_ascends_within_the_course(instants: list[int], after: int) -> None:
    positions = [Position(each, 1, b"") for each in instants]
    course = Course(5, 25)
    is_ascending = instants == sorted(set(instants)) and after < instants[0]
    is_within = all(5 <= each < 25 for each in instants)
    assert is_in_order(course, Position(after, 1, b""), positions) == (is_ascending and is_within)


def test_what_is_fresh_comes_newest_course_first_and_the_past_oldest_first() -> None:
    works = [CourseWork(1, Course(start, start + 10)) for start in (10, 20, 30)]
    assert choose_work(works, is_live=True) is None and choose_work(works, is_live=False) is None
    for number, work in enumerate(works):
        work.note(number, work.course.start_unix_nanos, is_live=True)
    assert choose_work(works, is_live=True) is works[2]
    assert choose_work(works, is_live=False) is None
    works[0].is_late = works[1].is_late = True
    assert choose_work(works, is_live=False) is works[0]
    works[0].is_waiting = True
    assert choose_work(works, is_live=False) is works[1]


def test_a_course_rests_only_when_nothing_more_was_noted() -> None:
    work = CourseWork(1, Course(0, 10))
    work.note(7, 3, is_live=False)
    work.note(5, 4, is_live=False)
    work.rest()
    assert (work.first_id, work.noted_from_unix_nanos) == (5, 3)
    work.noted_from_unix_nanos, work.is_backlog = None, False
    work.rest()
    assert work.first_id is None
