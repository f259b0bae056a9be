"""The stations as a person wants to see them: one line each, those with something wrong first. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from flows.watching.looks import StationMemory, StationSeen


def to_rows(
    stations: Sequence[StationSeen], memories: Mapping[str, StationMemory]
) -> list[dict[str, str | int | float]]:
    """One row a station."""
    return [_row(each, memories[each.name]) for each in sorted(stations, key=lambda each: _order(each, memories))]


def _order(seen: StationSeen, memories: Mapping[str, StationMemory]) -> tuple[bool, str]:
    memory = memories[seen.name]
    is_wrong = memory.is_silent or memory.silent_instruments or memory.is_growing or seen.gap_count or seen.alarms
    return not is_wrong, seen.name


def _row(seen: StationSeen, memory: StationMemory) -> dict[str, str | int | float]:
    return {
        "station": seen.name,
        "online": "silent" if memory.is_silent else "yes" if seen.is_online else "no",
        "last seen": "never" if seen.age_s is None else f"{format_age(seen.age_s)} ago",
        "backlog": f"{seen.backlog_count} and growing" if memory.is_growing else seen.backlog_count,
        "gaps": seen.gap_count,
        "disk left days": "" if seen.disk_left_days is None else round(seen.disk_left_days, 1),
        "silent instruments": ", ".join(memory.silent_instruments),
        "alarms": "; ".join(seen.alarms),
    }


def format_age(age_s: float) -> str:
    """For people: 40 s, 12 min, 5 h, 3 d."""
    for unit_s, name in ((86_400, "d"), (3600, "h"), (60, "min")):
        if age_s >= 2 * unit_s:
            return f"{age_s / unit_s:.0f} {name}"
    return f"{max(age_s, 0):.0f} s"
