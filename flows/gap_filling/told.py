"""Which gaps somebody was told of already, so that each is told once: an alarm every night is an alarm nobody reads.

It also keeps an automation that fills gaps whenever one is told of from starting itself for ever. The file is a memory,
not the truth: where it is lost, gaps are told once more. It knows no Prefect.
"""

from __future__ import annotations

from collections.abc import Mapping

from fieldpost.ranges import RangeSet
from flows.gap_filling.gaps import common, without

Gaps = Mapping[str, RangeSet]
"""Sequences by epoch."""
FILE_NAME = "told-gaps.json"


def is_news(gaps: Gaps, told: Gaps) -> bool:
    """Whether there is a gap that was not told of."""
    return any(without(ranges, told.get(epoch, RangeSet())) for epoch, ranges in gaps.items())


def remember(gaps: Gaps, missing: Gaps, told: Gaps) -> dict[str, RangeSet]:
    """What was told of from now on: the gaps, and of what was told before, whatever is still missing."""
    kept = {epoch: common(ranges, missing.get(epoch, RangeSet())) for epoch, ranges in told.items()}
    for epoch, ranges in gaps.items():
        kept[epoch] = RangeSet([*kept.get(epoch, RangeSet()), *ranges])
    return {epoch: ranges for epoch, ranges in kept.items() if ranges}


def from_json(content: object) -> dict[str, dict[str, RangeSet]]:
    """By station; what cannot be read was never told."""
    if not isinstance(content, dict):
        return {}
    return {
        station: {epoch: RangeSet((first, last) for first, last in ranges) for epoch, ranges in gaps.items()}
        for station, gaps in content.items()
    }


def to_json(told: Mapping[str, Gaps]) -> dict[str, dict[str, list[tuple[int, int]]]]:
    """As JSON can hold it."""
    return {station: {epoch: list(ranges) for epoch, ranges in gaps.items()} for station, gaps in told.items() if gaps}
