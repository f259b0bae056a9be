"""What has changed between two looks at the network, and is worth telling. Pure: time and memory are arguments.

Everything is told once when it begins, and where that is good news, once when it ends. It knows no event system.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from itertools import pairwise

BACKLOG_MIN = 100
"""A backlog of a few observations grows and shrinks all day."""
SILENCE_MIN_S = 600.0
"""An instrument that measures every second may pause for a moment without anybody being told."""


@dataclass(frozen=True, slots=True)
class InstrumentSeen:
    """An instrument at this look.

    Attributes:
        name: Its name.
        interval_s: The usual time between two measurements; None where too few are held to tell.
        age_s: How long ago the newest one was captured; None where none is held.
    """

    name: str
    interval_s: float | None
    age_s: float | None


@dataclass(frozen=True, slots=True)
class StationSeen:
    """A station at this look.

    Attributes:
        name: Its name.
        age_s: How long ago it was heard of last; None where never.
        is_online: What it said then.
        backlog_count: Likewise: observations that it still has to deliver.
        gap_count: Observations that are missing here and do not come by themselves.
        disk_left_days: For how long its disk lasts; None where it does not know.
        alarms: What it says is wrong.
        instruments: Its instruments.
    """

    name: str
    age_s: float | None
    is_online: bool
    backlog_count: int = 0
    gap_count: int = 0
    disk_left_days: float | None = None
    alarms: tuple[str, ...] = ()
    instruments: tuple[InstrumentSeen, ...] = ()


@dataclass(frozen=True, slots=True)
class StationMemory:
    """What is kept of a station from look to look.

    Attributes:
        is_silent: Whether it was told of as silent.
        silent_instruments: Which of its instruments were.
        backlogs: What it had to deliver at the last looks, oldest first.
        is_growing: Whether its backlog was told of as growing.
    """

    is_silent: bool = False
    silent_instruments: tuple[str, ...] = ()
    backlogs: tuple[int, ...] = ()
    is_growing: bool = False


@dataclass(frozen=True, slots=True)
class Rules:
    """From when on something is worth telling; see WatchParams."""

    silent_s: float
    missed_intervals: int
    growing_looks: int


@dataclass(frozen=True, slots=True)
class News:
    """Something to tell of a station.

    Attributes:
        event: fieldpost.station.silent, fieldpost.station.back or fieldpost.backlog.growing.
        station: Which.
        facts: What JSON can hold.
    """

    event: str
    station: str
    facts: Mapping[str, object]


def judge(seen: StationSeen, memory: StationMemory, rules: Rules) -> tuple[StationMemory, list[News]]:
    """What is to be told of a station now, and what is kept of it for the next look."""
    news: list[News] = []
    is_silent = _is_silent(seen, memory, rules)
    if is_silent and not memory.is_silent:
        news.append(News("fieldpost.station.silent", seen.name, {"silent_s": round(seen.age_s or 0.0)}))
    if memory.is_silent and not is_silent:
        news.append(News("fieldpost.station.back", seen.name, {"backlog": seen.backlog_count}))
    memory = replace(memory, is_silent=is_silent)
    if is_silent:
        return memory, news  # its instruments and its backlog are as it left them: there is nothing new to say
    memory, more = _judge_instruments(seen, memory, rules)
    memory, growing = _judge_backlog(seen, memory, rules)
    return memory, [*news, *more, *growing]


def _is_silent(seen: StationSeen, memory: StationMemory, rules: Rules) -> bool:
    """A station that has just gone, or whose goodbye was told once more, is neither silent nor back."""
    if seen.age_s is None:
        return False  # registered, and never there: nobody misses it
    if seen.age_s > rules.silent_s:
        return True
    return memory.is_silent and not seen.is_online


def _judge_instruments(seen: StationSeen, memory: StationMemory, rules: Rules) -> tuple[StationMemory, list[News]]:
    silent, news = set(memory.silent_instruments), []
    for each in seen.instruments:
        if each.interval_s is None or each.age_s is None:
            continue
        limit_s = max(SILENCE_MIN_S, rules.missed_intervals * each.interval_s)
        facts = {"instrument": each.name, "silent_s": round(each.age_s), "interval_s": round(each.interval_s, 1)}
        if each.age_s <= limit_s:
            if each.name in silent:
                silent.discard(each.name)
                news.append(News("fieldpost.station.back", seen.name, facts))
        elif each.name not in silent and seen.backlog_count == 0:  # else its newest may still be on the way
            silent.add(each.name)
            news.append(News("fieldpost.station.silent", seen.name, facts))
    known = {each.name for each in seen.instruments}
    return replace(memory, silent_instruments=tuple(sorted(silent & known))), news


def _judge_backlog(seen: StationSeen, memory: StationMemory, rules: Rules) -> tuple[StationMemory, list[News]]:
    backlogs = (*memory.backlogs, seen.backlog_count)[-rules.growing_looks - 1 :]
    steps = [later - earlier for earlier, later in pairwise(backlogs)]
    is_growing = memory.is_growing and steps[-1:] > [0]
    if len(steps) >= rules.growing_looks and all(step > 0 for step in steps) and backlogs[-1] >= BACKLOG_MIN:
        is_growing = True
    memory_after = replace(memory, backlogs=backlogs, is_growing=is_growing)
    if is_growing and not memory.is_growing:
        facts = {"backlog": backlogs[-1], "looks": list(backlogs)}
        return memory_after, [News("fieldpost.backlog.growing", seen.name, facts)]
    return memory_after, []


def memory_from_json(content: object) -> StationMemory:
    """What was kept; nothing where it is of another version of this software."""
    try:
        kept = StationMemory(**content) if isinstance(content, dict) else StationMemory()
    except TypeError:
        return StationMemory()
    return replace(kept, silent_instruments=tuple(kept.silent_instruments), backlogs=tuple(kept.backlogs))


def memory_to_json(memory: StationMemory) -> dict[str, object]:
    """As JSON can hold it."""
    return asdict(memory)
