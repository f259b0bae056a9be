"""Which of the sequences that are missing are a gap, and in what portions a station is asked for them. Pure.

Knows no database and no station: what is missing, and what the station said of itself, is told.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from fieldpost.ranges import RangeSet

PORTION_SEQUENCES = 20_000
"""A station reads what it is asked for from its disk and sends it behind what is fresh: some minutes of a slow link."""
PORTION_RANGES = 500
"""Bounds the message, and what the station has to look up for it."""


@dataclass(frozen=True, slots=True)
class Missing:
    """What an epoch lacks here, and what is known about why.

    Attributes:
        sequences: Neither held, nor let go after they were archived, nor known to be lost.
        is_current: Whether the station said last that this is its buffer.
        backlog_count: What it then still had to deliver.
        refused_count: What the server had refused.
    """

    sequences: RangeSet
    is_current: bool
    backlog_count: int
    refused_count: int


def choose_gap(missing: Missing, is_young: Callable[[int, int], bool]) -> RangeSet:
    """What does not come by itself.

    A station says how many observations it has still to deliver, not which. As long as no more are missing than it has
    yet to deliver or was refused, nothing is a gap. Where it has nothing to deliver, whatever is missing is one.
    Between the two, the young is left alone: it may be on its way.

    Args:
        missing: Of one epoch.
        is_young: Of a range of sequences, first to last: whether it may be on its way.
    """
    if len(missing.sequences) <= missing.backlog_count + missing.refused_count:
        return RangeSet()
    if missing.is_current and missing.backlog_count == 0:
        return RangeSet(missing.sequences)
    return RangeSet((first, last) for first, last in missing.sequences if not is_young(first, last))


def portions(
    ranges: RangeSet, sequences_max: int = PORTION_SEQUENCES, ranges_max: int = PORTION_RANGES
) -> Iterator[RangeSet]:
    """The same sequences in portions, ascending, none larger than the bounds."""
    portion, range_count = RangeSet(), 0
    for first, last in ranges:
        while first <= last:
            if len(portion) == sequences_max or range_count == ranges_max:
                yield portion
                portion, range_count = RangeSet(), 0
            end = min(last, first + sequences_max - len(portion) - 1)
            portion.add(first, end)
            range_count += 1
            first = end + 1
    if portion:
        yield portion


def common(left: RangeSet, right: RangeSet) -> RangeSet:
    """What is in both."""
    return RangeSet(part for first, last in left for part in right.common(first, last))


def without(left: RangeSet, right: RangeSet) -> RangeSet:
    """What is in the first and not in the second."""
    return RangeSet(part for first, last in left for part in right.gaps(first, last))
