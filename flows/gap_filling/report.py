"""What a run of the fill-gaps flow found and did, in tables and words for people. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from fieldpost.errors import FieldpostError, RejectedError
from fieldpost.ranges import RangeSet
from fieldpost.words import count
from flows.gap_filling.filling import FilledEpoch

RANGES_SHOWN = 5


def to_rows(outcomes: Sequence[FilledEpoch]) -> list[dict[str, str | int]]:
    """One row for each epoch that lacked something."""
    return [
        {
            "station": each.found.facts.station,
            "epoch": each.found.facts.epoch[:8],
            "missing": len(each.found.missing),
            "asked": len(each.asked),
            "came": each.came_count,
            "lost": len(each.lost),
            "refused": len(each.refused),
            "still missing": len(each.still),
            "why": each.why,
        }
        for each in outcomes
    ]


def to_markdown(outcomes: Sequence[FilledEpoch]) -> str:
    """What a person wants to know first."""
    if not outcomes:
        return (
            "# Gaps\n\nNothing is missing: of every station, all is here that it ever recorded or knows to be lost.\n"
        )
    came, lost = sum(each.came_count for each in outcomes), sum(len(each.lost) for each in outcomes)
    found = sum(len(each.found.missing) for each in outcomes)
    lines = ["# Gaps", "", f"{count(found, 'observation')} missing, {came} of them came, {lost} are lost for good.", ""]
    for each in outcomes:
        facts = each.found.facts
        name = f"**{facts.station}** ({'its buffer' if facts.is_current else 'an earlier buffer'} {facts.epoch[:8]})"
        if each.lost:
            lines.append(f"- {name}: nobody has {format_ranges(each.lost)} any more")
        if each.refused:
            lines.append(f"- {name}: the server refuses {format_ranges(each.refused)}; the station's alarms say why")
        if each.still:
            lines.append(f"- {name}: still missing {format_ranges(each.still)}: {each.why}")
    return "\n".join(lines) + "\n"


def format_ranges(ranges: RangeSet) -> str:
    """The first few ranges, and how many sequences they are in all."""
    texts = [str(first) if first == last else f"{first} to {last}" for first, last in list(ranges)[:RANGES_SHOWN]]
    more = " and more" if len(list(ranges)) > RANGES_SHOWN else ""
    return f"{', '.join(texts)}{more} ({count(len(ranges), 'observation')})"


def to_error(outcomes: Sequence[FilledEpoch]) -> FieldpostError | None:
    """What a run has to raise at its end: stations could not be asked, and will not be next time either."""
    errors = [each.error for each in outcomes if each.error is not None]
    if not errors:
        return None
    return RejectedError(f"{count(len(errors), 'station')} could not be asked; first: {errors[0]}", hint=errors[0].hint)
