"""RangeSet against a Python set: the same numbers after any series of operations."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldpost.ranges import RangeSet

NUMBERS = st.integers(1, 40)
RANGES = st.tuples(NUMBERS, NUMBERS).map(lambda pair: (min(pair), max(pair)))
STEPS = st.lists(st.tuples(st.sampled_from(["add", "discard"]), RANGES), max_size=30)


def numbers(ranges: RangeSet) -> set[int]:
    return {number for first, last in ranges for number in range(first, last + 1)}


@given(STEPS)
def test_any_series_of_additions_and_removals_gives_the_numbers_of_a_set(
    steps: list[tuple[str, tuple[int, int]]],
) -> None:
    ranges, model = RangeSet(), set[int]()
    for verb, (first, last) in steps:
        getattr(ranges, verb)(first, last)
        model = model | set(range(first, last + 1)) if verb == "add" else model - set(range(first, last + 1))
        assert numbers(ranges) == model
        assert len(ranges) == len(model)
        assert bool(ranges) == bool(model)
        pairs = list(ranges)
        assert all(last + 1 < first for (_, last), (first, _) in itertools.pairwise(pairs)), "not merged"


@given(st.sets(NUMBERS), RANGES)
def test_gaps_are_the_numbers_that_are_not_in_the_set(model: set[int], span: tuple[int, int]) -> None:
    gaps = RangeSet(RangeSet.of(model).gaps(*span))
    assert numbers(gaps) == set(range(span[0], span[1] + 1)) - model


@given(st.sets(NUMBERS), NUMBERS)
def test_membership_and_the_first_missing_number_are_those_of_the_set(model: set[int], start: int) -> None:
    ranges = RangeSet.of(model)
    assert (start in ranges) == (start in model)
    expected = start
    while expected in model:
        expected += 1
    assert ranges.first_missing(start) == expected


@given(st.sets(NUMBERS), st.sets(NUMBERS))
def test_sets_are_equal_exactly_where_their_numbers_are(left: set[int], right: set[int]) -> None:
    assert (RangeSet.of(left) == RangeSet.of(right)) == (left == right)


def test_a_range_that_ends_before_it_begins_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected a range with last >= first, but got 3\.\.2"):
        RangeSet().add(3, 2)


def test_a_million_consecutive_numbers_are_one_range() -> None:
    ranges = RangeSet()
    for first in range(1, 1_000_001, 1000):
        ranges.add(first, first + 999)
    assert list(ranges) == [(1, 1_000_000)]


@given(st.sets(NUMBERS), RANGES)
def test_common_are_the_numbers_of_the_span_that_are_in_the_set(model: set[int], span: tuple[int, int]) -> None:
    pairs = list(RangeSet.of(model).common(*span))
    assert numbers(RangeSet(pairs)) == set(range(span[0], span[1] + 1)) & model
    assert all(last + 1 < first for (_, last), (first, _) in itertools.pairwise(pairs)), "not ascending and apart"
