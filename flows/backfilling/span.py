"""The pieces that a range is predicted in: UTC days, or whole courses of a version that remembers. Pure.

Knows no database: which days there are is told, and what of them is done is asked elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date, timedelta

from server.analyses import CourseStart
from server.archive.bags import NANOS_PER_DAY, InstrumentDay
from server.prediction.course import Course, find_course

EPOCH_DAY = date(1970, 1, 1)


@dataclass(frozen=True, slots=True)
class Span:
    """What is predicted as a whole.

    Attributes:
        instrument: Whose; its own day says nothing here.
        course: From when to when.
    """

    instrument: InstrumentDay
    course: Course

    @property
    def days(self) -> tuple[date, ...]:
        """The UTC days that it touches."""
        first, last = self.course.start_unix_nanos // NANOS_PER_DAY, (self.course.end_unix_nanos - 1) // NANOS_PER_DAY
        return tuple(EPOCH_DAY + timedelta(days=number) for number in range(first, last + 1))


def find_spans(days: Iterable[InstrumentDay], version: int, course_start: CourseStart | None) -> list[Span]:
    """The pieces that cover these days, by station, instrument and time; each once.

    Args:
        days: Of which there are observations.
        version: The model version.
        course_start: How it cuts an instrument's time into courses; None where it does not remember.
    """
    found: dict[tuple[int, int], Span] = {}
    for day in days:
        for course in _courses(day, version, course_start):
            found.setdefault((day.instrument_id, course.start_unix_nanos), Span(day, course))
    return sorted(found.values(), key=lambda each: (each.instrument.station, each.instrument.instrument, each.course))


def _courses(day: InstrumentDay, version: int, course_start: CourseStart | None) -> Iterator[Course]:
    at, end = day.first_unix_nanos, day.first_unix_nanos + NANOS_PER_DAY
    if course_start is None:
        yield Course(at, end)
        return
    while at < end:
        course = course_at(day, version, course_start, at)
        yield course
        at = course.end_unix_nanos


def course_at(instrument: InstrumentDay, version: int, course_start: CourseStart, unix_nanos: int) -> Course:
    """The course of an instrument that an instant belongs to."""
    return find_course(lambda instant: course_start(version, instant, instrument.longitude_deg), unix_nanos)


DayKey = tuple[int, date]
"""An instrument's id and a UTC day."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Pieces that are predicted together.

    Attributes:
        spans: The pieces.
        restored: What is brought back from the archive before.
        released: What is archived again and let go after, since nothing that follows needs it.
    """

    spans: tuple[Span, ...]
    restored: tuple[DayKey, ...]
    released: tuple[DayKey, ...]


def make_batches(spans: Sequence[Span], archived: Iterable[DayKey], days_at_once: int) -> list[Batch]:
    """Puts pieces together so that few days lie in the hot store at once that belong in the archive.

    What needs nothing from the archive comes first. A piece that needs more days than may be there at once goes alone.

    Args:
        spans: In the order of instruments and times.
        archived: The days that only the archive has.
        days_at_once: How many of them may be brought back at a time.
    """
    only_there = frozenset(archived)
    needs = [frozenset((span.instrument.instrument_id, day) for day in span.days) & only_there for span in spans]
    hot = tuple(span for span, needed in zip(spans, needs, strict=True) if not needed)
    groups: list[tuple[list[Span], set[DayKey]]] = []
    for span, needed in zip(spans, needs, strict=True):
        if not needed:
            continue
        if groups and len(groups[-1][1] | needed) <= days_at_once:
            groups[-1][0].append(span)
            groups[-1][1].update(needed)
        else:
            groups.append(([span], set(needed)))
    batches = [Batch(hot, (), ())] if hot else []
    held: set[DayKey] = set()
    for number, (members, needed_days) in enumerate(groups):
        following = groups[number + 1][1] if number + 1 < len(groups) else set()
        restored, released = needed_days - held, needed_days - following
        batches.append(Batch(tuple(members), tuple(sorted(restored)), tuple(sorted(released))))
        held = needed_days & following
    return batches
