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
    GapSight,
    Position,
    Standing,
    Turn,
    Walk,
    choose_remade,
    choose_work,
    count_whole,
    decide,
    find_course,
    is_in_order,
    is_open,
    meet_gap,
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
    sight = meet_gap(GapSight(), Gaps({}, seen), max(seen, now))
    assert is_open(Gaps({}, seen), sight, late, now) == (now - max(seen, late) < PATIENCE_NANOS)
    assert not is_open(Gaps({}, None), sight, late, now)


@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 10**6)), min_size=1, max_size=6))
def test_however_far_ahead_a_clock_is_a_gap_is_waited_for_as_if_it_had_shown_when_it_was_met_at_the_latest(
    met: list[tuple[int, int]],
) -> None:
    sight, now = GapSight(), 0
    for waited, seen in met:
        now += waited
        newest = max(sight, GapSight(seen, now), key=lambda each: each.seen_unix_nanos)
        sight = meet_gap(meet_gap(sight, Gaps({}, seen), now), Gaps({}, None), now + 1)
        assert sight == newest
        assert not is_open(Gaps({}, seen), sight, 0, min(seen, now) + PATIENCE_NANOS)
    until = min(sight) + PATIENCE_NANOS
    assert is_open(Gaps({}, sight.seen_unix_nanos), sight, 0, until - 1)
    assert is_open(Gaps({}, sight.seen_unix_nanos), sight, until - 1, until)  # some of it came late


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


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 2)), min_size=1, max_size=6), st.integers(0, 30))
def test_an_order_is_kept_only_if_all_ascends_within_the_course(said: list[tuple[int, int]], after: int) -> None:
    turns = [Turn(Position(instant, 1, b""), capture, 1) for instant, capture in said]
    course = Course(5, 25)
    is_ascending = said == sorted(set(said)) and after < said[0][0]
    is_within = all(5 <= instant < 25 for instant, _ in said)
    assert is_in_order(course, Position(after, 1, b""), turns) == (is_ascending and is_within)


@given(st.lists(st.integers(0, 4), max_size=12).map(sorted), st.integers(0, 12))
def test_as_many_are_taken_as_may_be_without_parting_those_of_one_position(instants: list[int], count: int) -> None:
    positions = [Position(each, 1, b"") for each in instants]
    taken = count_whole(positions, min(count, len(positions)))
    assert not set(positions[:taken]) & set(positions[taken:])
    assert len(set(positions[taken:count])) <= 1  # the next group would be too many


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


def test_what_was_noted_while_a_course_was_followed_anew_is_looked_at_when_that_is_over() -> None:
    work = CourseWork(1, Course(0, 10))
    work.note(7, 3, is_live=False)
    assert work.take_up(is_live=False) == 3
    work.is_late, work.walk = True, Walk(through=Position(5, 7, b""))
    work.note(9, 4, is_live=True)
    assert choose_work([work], is_live=True) is work
    assert work.take_up(is_live=True) is None  # what is fresh after all that was followed would go first
    assert choose_work([work], is_live=True) is None
    work.is_late, work.walk = False, None
    work.rest()
    assert choose_work([work], is_live=False) is work
    assert work.take_up(is_live=False) == 4
    work.rest()
    assert work.first_id is None


def test_a_course_rests_only_when_nothing_more_was_noted() -> None:
    work = CourseWork(1, Course(0, 10))
    work.note(7, 3, is_live=False)
    work.note(5, 4, is_live=False)
    work.rest()
    assert (work.first_id, work.noted_from_unix_nanos) == (5, 3)
    work.noted_from_unix_nanos, work.is_backlog = None, False
    work.rest()
    assert work.first_id is None
