"""Decides how the observations of a course are followed, so that what is said of them depends on no order of arrival.

A model version that remembers is asked about the observations of a course in the order of their positions. Two things
hold at every moment, whatever happens in between:

- A prediction that is final was made from all observations held before it, or one of those still waits (it has no
  prediction, or a provisional one). So where nothing waits, everything stands as if all had come in order.
- Whatever waits is found again by a query. What is remembered beside it only spares work.

Pure: plain values in and out, time is an argument. Knows no database, no worker and no analysis.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from itertools import pairwise
from typing import NamedTuple

PATIENCE_NANOS = 3600 * 10**9
"""What is missing is waited for so long after it was seen to be missing, and after each time that some of it came."""


class Position(NamedTuple):
    """Where an observation stands among its instrument's: by what it says itself, not by the order of arrival.

    Two of one instant and one sequence (of two lives of a station's buffer) with the same bytes are the same to it:
    they are followed together, so that what was followed up to there is told by the position alone.
    """

    measure_unix_nanos: int
    sequence: int
    sha256: bytes


class Turn(NamedTuple):
    """When an observation is asked about, among those of its course."""

    position: Position
    capture_unix_nanos: int
    """Among those of one position; so it depends on no order of arrival, as long as their captures differ."""
    epoch_id: int


class Course(NamedTuple):
    """A span of an instrument's measure time in which a model version remembers."""

    start_unix_nanos: int
    end_unix_nanos: int

    def holds(self, unix_nanos: int) -> bool:
        """Whether an instant is of this course."""
        return self.start_unix_nanos <= unix_nanos < self.end_unix_nanos


class Standing(Enum):
    """What stands of an observation."""

    MISSING = auto()
    PROVISIONAL = auto()
    FINAL = auto()


class Choice(Enum):
    """What to do about a course next."""

    FOLLOW_ON = auto()
    """From where it was followed to, with what came after that."""
    FOLLOW_ANEW = auto()
    """From its start."""
    WAIT = auto()
    """Some of it is still to come."""
    DONE = auto()


@dataclass(frozen=True, slots=True)
class Gaps:
    """How far the sequences of a course's epochs were looked at, and what is missing in them.

    Attributes:
        checked: By epoch, the last sequence up to which was looked.
        seen_unix_nanos: When the station captured the last of the observations that come after a gap and show it; None
            where there is no gap.
    """

    checked: dict[int, int] = field(default_factory=dict)
    seen_unix_nanos: int | None = None


class GapSight(NamedTuple):
    """The newest gap of a course that was met so far: the station's word for when it showed, and ours.

    Attributes:
        seen_unix_nanos: As of Gaps, by the station's clock, which may be ahead.
        look_unix_nanos: When it was met first, by the server's.
    """

    seen_unix_nanos: int = 0
    look_unix_nanos: int = 0


@dataclass(slots=True)
class CourseWork:
    """What is known to be done in one course of one instrument.

    Attributes:
        instrument_id: Whose it is.
        course: Which.
        first_id: The first observation that is known to wait in it; None for none.
        noted_from_unix_nanos: The earliest measure time of what was noted since the last look; None where nothing was.
        is_live: Whether something fresh is among it.
        is_backlog: Whether something else is.
        is_late: Whether the course is to be followed anew: something waits behind what was followed.
        late_unix_nanos: When something came late the last time.
        gap_sight: The newest gap that was met in it.
        is_waiting: Whether to leave it until the next examination.
        head_gaps: Up to where it was followed; without anything checked where that is to be looked up.
        is_head_behind: Whether following it to there met something that waited, and has not come to the end.
        walk: How far following it anew has come; None where that has not begun.
    """

    instrument_id: int
    course: Course
    first_id: int | None = None
    noted_from_unix_nanos: int | None = None
    is_live: bool = False
    is_backlog: bool = False
    is_late: bool = False
    late_unix_nanos: int = 0
    gap_sight: GapSight = field(default_factory=GapSight)
    is_waiting: bool = False
    head_gaps: Gaps = field(default_factory=Gaps)
    is_head_behind: bool = False
    walk: Walk | None = None

    def note(self, observation_id: int, measure_unix_nanos: int, *, is_live: bool) -> None:
        """An observation of the course waits."""
        self.lower(observation_id)
        earlier = self.noted_from_unix_nanos
        self.noted_from_unix_nanos = measure_unix_nanos if earlier is None else min(earlier, measure_unix_nanos)
        self.is_live = self.is_live or is_live
        self.is_backlog = self.is_backlog or not is_live

    def take_up(self, *, is_live: bool) -> int | None:
        """A step begins; returns from where on to look at what was noted.

        While the course is followed anew that is None, and what was noted is looked at when that is over.
        """
        self.is_live = self.is_live and not is_live
        noted = self.noted_from_unix_nanos
        if self.walk is not None:
            self.is_backlog = self.is_backlog or noted is not None
            return None
        self.noted_from_unix_nanos, self.is_backlog = None, False
        return noted

    def take_back(self, noted_from_unix_nanos: int | None, *, is_live: bool) -> None:
        """What was to be done could not be done, and is to be done yet."""
        if noted_from_unix_nanos is not None and self.first_id is not None:
            self.note(self.first_id, noted_from_unix_nanos, is_live=is_live)
        self.is_live = self.is_live or is_live
        self.is_backlog = self.is_backlog or not is_live

    def lower(self, observation_id: int) -> None:
        """An observation of the course waits, perhaps an earlier one than was known."""
        self.first_id = observation_id if self.first_id is None else min(self.first_id, observation_id)

    def rest(self) -> None:
        """All that was looked at is final."""
        is_news = self.is_live or self.is_backlog or self.noted_from_unix_nanos is not None
        if not is_news and not self.is_late:
            self.first_id = None

    @property
    def has_backlog(self) -> bool:
        """Whether there is something to do that is in no hurry."""
        return (self.is_backlog or self.is_late) and not self.is_waiting


@dataclass(frozen=True, slots=True)
class Walk:
    """How far a course was followed.

    Attributes:
        state: What the model version knows after that; empty at the start.
        through: The last position followed; None at the start.
        is_complete: Whether all predictions up to there are final.
        is_behind_waiting: Whether something was met that waited: all after it is made again.
        gaps: What is missing up to there.
    """

    state: bytes = b""
    through: Position | None = None
    is_complete: bool = True
    is_behind_waiting: bool = False
    gaps: Gaps = field(default_factory=Gaps)


def find_course(start_of: Callable[[int], int | None], measure_unix_nanos: int) -> Course:
    """The course that an instant belongs to.

    Args:
        start_of: The start of the course that an instant belongs to; it grows with the instant.
        measure_unix_nanos: The instant.

    Raises:
        ValueError: The instant belongs to no course.
    """
    start = start_of(measure_unix_nanos)
    if start is None or start > measure_unix_nanos:
        raise ValueError(f"expected the start of a course at or before {measure_unix_nanos}, but got {start}")
    step = 60 * 10**9
    while start_of(measure_unix_nanos + step) == start:
        step *= 2
    within, beyond = measure_unix_nanos, measure_unix_nanos + step
    while beyond - within > 1:
        middle = (within + beyond) // 2
        if start_of(middle) == start:
            within = middle
        else:
            beyond = middle
    return Course(start, beyond)


def decide(*, is_live: bool, is_late: bool, has_more: bool, is_gap_open: bool) -> Choice:
    """What to do about a course.

    Args:
        is_live: Whether something fresh is among what waits: it does not wait for what is late.
        is_late: Whether something waits behind what was followed.
        has_more: Whether there are observations after that.
        is_gap_open: Whether some of the course is still to come.
    """
    if has_more and (is_live or is_gap_open or not is_late):
        return Choice.FOLLOW_ON
    if is_late:
        return Choice.WAIT if is_gap_open else Choice.FOLLOW_ANEW
    return Choice.DONE


def meet_gap(sight: GapSight, gaps: Gaps, now_unix_nanos: int) -> GapSight:
    """The newest gap that was met, after these were looked at."""
    seen = gaps.seen_unix_nanos
    return sight if seen is None or seen <= sight.seen_unix_nanos else GapSight(seen, now_unix_nanos)


def is_open(gaps: Gaps, sight: GapSight, late_unix_nanos: int, now_unix_nanos: int) -> bool:
    """Whether what is missing is waited for: not for ever, since a station may have lost it.

    Nor longer for a station whose clock is ahead: a gap was there at the latest when it, or a newer one, was met.
    """
    if gaps.seen_unix_nanos is None:
        return False
    seen = min(gaps.seen_unix_nanos, sight.look_unix_nanos)
    return now_unix_nanos < max(seen, late_unix_nanos) + PATIENCE_NANOS


def choose_remade(
    standings: Sequence[Standing], *, is_behind_waiting: bool, is_cut_off: bool
) -> tuple[list[bool], bool]:
    """Which predictions of a stretch are written, and whether something waited in it or before it.

    What is final before the first that waits stands. All after it was made without it, and is made again; but where
    observations of the course are gone, what stands was made from more than there is now, and stays.
    """
    remade = []
    for standing in standings:
        is_waiting = standing is not Standing.FINAL
        is_behind_waiting = is_behind_waiting or is_waiting
        remade.append(is_waiting or (is_behind_waiting and not is_cut_off))
    return remade, is_behind_waiting


def is_in_order(course: Course, after: Position | None, turns: Sequence[Turn]) -> bool:
    """Whether turns ascend, after a position, within a course.

    The positions of observations whose payload alone tells their time are known only when they have been followed.
    """
    if not all(course.holds(each.position.measure_unix_nanos) for each in turns):
        return False
    if after is not None and turns and turns[0].position <= after:
        return False
    return all(each < following for each, following in pairwise(turns))


def count_whole(positions: Sequence[Position], count: int) -> int:
    """How many of the first ones to take, so many at most, without parting two of one position."""
    while 0 < count < len(positions) and positions[count - 1] == positions[count]:
        count -= 1
    return count


def choose_work(works: Sequence[CourseWork], *, is_live: bool) -> CourseWork | None:
    """Which course of an instrument comes next: the newest with something fresh, or the oldest of the others."""
    if is_live:
        return max((each for each in works if each.is_live), key=lambda each: each.course, default=None)
    return min((each for each in works if each.has_backlog), key=lambda each: each.course, default=None)
