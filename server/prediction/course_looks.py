"""Looks at a course in one view of the database: what is to be done in it next, and with which observations.

Between the rows (course_rows.py) and the rules (course.py); runs in a thread, and changes nothing.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass, replace

from sqlalchemy import Connection

from server.batching.policy import MIB
from server.prediction.course import (
    Choice,
    CourseWork,
    Gaps,
    GapSight,
    Standing,
    Walk,
    choose_remade,
    count_whole,
    decide,
    is_open,
    meet_gap,
)
from server.prediction.course_rows import (
    CourseRow,
    Head,
    find_reach,
    has_waiting,
    is_cut_off,
    list_after,
    look_for_gaps,
    read_head,
)

STRETCH_MAX = 64
"""Observations that are asked about at once."""
STRETCH_BYTES_MAX = 4 * MIB
"""Of their payloads; a larger one goes alone."""


@dataclass(frozen=True, slots=True)
class CourseLook:
    """What was seen of a course, and what it leads to.

    Attributes:
        choice: What to do.
        is_late: Whether something waits behind what was followed.
        late_unix_nanos: When something came late the last time.
        gap_sight: The newest gap that was met in it.
        head: Up to where the instrument was followed.
        is_newest: Whether that is in no later course.
        base: From where to follow.
        rows: The next stretch from there.
        is_remade: Which of their predictions are written.
        is_last: Whether the course has no more observations.
        is_cut_off: Whether the course has lost observations.
        after: As base, after the stretch; but for the state, and the position that only the payload may tell.
    """

    choice: Choice
    is_late: bool
    late_unix_nanos: int
    gap_sight: GapSight
    head: Head | None
    is_newest: bool
    base: Walk
    rows: list[CourseRow]
    is_remade: list[bool]
    is_last: bool
    is_cut_off: bool
    after: Walk


def look_at_course(
    connection: Connection, model_row_id: int, work: CourseWork, noted_from: int | None, now: int, *, is_live: bool
) -> CourseLook:
    """Looks, and decides.

    Args:
        connection: For reading.
        model_row_id: The model version.
        work: What is known of the course.
        noted_from: The earliest measure time of what was noted since the last look; None for nothing.
        now: The time, in nanoseconds.
        is_live: Whether what is fresh comes first.
    """
    course, instrument_id = work.course, work.instrument_id
    head = read_head(connection, model_row_id, instrument_id)
    is_here = head is not None and head.course_start_unix_nanos == course.start_unix_nanos
    is_newest = head is None or head.course_start_unix_nanos < course.end_unix_nanos
    is_late, late, sight = work.is_late, work.late_unix_nanos, work.gap_sight
    if noted_from is not None and (is_here or not is_newest):
        is_late, late = _look_behind(connection, model_row_id, work, noted_from, head if is_here else None, now)
    base, rows = Walk(), []
    if is_newest:
        if is_here and head is not None:
            base = Walk(head.state, head.through, head.is_complete, work.is_head_behind, work.head_gaps)
        rows = list_after(connection, model_row_id, instrument_id, course, base.through, STRETCH_MAX + 1)
    is_gap_open = False
    if is_late and work.walk is None and not is_live:
        reach = find_reach(connection, instrument_id, course)
        gaps = look_for_gaps(connection, instrument_id, course, Gaps(), reach)
        sight = meet_gap(sight, gaps, now)
        is_gap_open = is_open(gaps, sight, late, now)
    choice = decide(is_live=is_live, is_late=is_late, has_more=bool(rows), is_gap_open=is_gap_open)
    if choice is Choice.FOLLOW_ANEW:
        base = work.walk or Walk()
        rows = list_after(connection, model_row_id, instrument_id, course, base.through, STRETCH_MAX + 1)
    taken = rows[: _fitting(rows)]
    reach = _reach_of(taken)
    gaps = look_for_gaps(connection, instrument_id, course, base.gaps, reach)
    sight = meet_gap(sight, gaps, now)
    is_complete = base.is_complete and not (choice is Choice.FOLLOW_ON and is_late)
    if is_complete and is_open(gaps, sight, late, now):
        sound = _before_gap(connection, work, base.gaps, taken, sight, late, now)
        taken, is_complete = (sound, True) if sound else (taken, False)
        reach = _reach_of(taken)
        gaps = look_for_gaps(connection, instrument_id, course, base.gaps, reach)
    is_last = len(taken) == len(rows)
    standings = [each.standing for each in taken]
    is_cut = (not is_last or Standing.FINAL in standings) and is_cut_off(connection, instrument_id, course, reach)
    is_remade, is_behind_waiting = choose_remade(standings, is_behind_waiting=base.is_behind_waiting, is_cut_off=is_cut)
    after = replace(base, is_complete=is_complete, is_behind_waiting=is_behind_waiting, gaps=gaps)
    return CourseLook(choice, is_late, late, sight, head, is_newest, base, taken, is_remade, is_last, is_cut, after)


def _look_behind(
    connection: Connection, model_row_id: int, work: CourseWork, noted_from: int, head: Head | None, now: int
) -> tuple[bool, int]:
    """Whether something waits behind what was followed, and when something came late the last time."""
    through = None if head is None else head.through
    if through is not None and noted_from > through.measure_unix_nanos:
        return work.is_late, work.late_unix_nanos
    where = (connection, model_row_id, work.instrument_id, work.course, noted_from, through)
    if not has_waiting(*where, with_provisional=True):
        return work.is_late, work.late_unix_nanos
    return True, now if has_waiting(*where, with_provisional=False) else work.late_unix_nanos


def _before_gap(
    connection: Connection,
    work: CourseWork,
    gaps: Gaps,
    rows: list[CourseRow],
    sight: GapSight,
    late: int,
    now: int,
) -> list[CourseRow]:
    """What comes before the first gap that is waited for."""

    def is_behind(place: int) -> bool:
        reach = _reach_of(rows[: place + 1])
        return is_open(look_for_gaps(connection, work.instrument_id, work.course, gaps, reach), sight, late, now)

    return rows[: count_whole([each.position for each in rows], bisect_left(range(len(rows)), True, key=is_behind))]


def _fitting(rows: list[CourseRow]) -> int:
    """How many of these observations, from the first on, go together; if there are any, all of the first position."""
    if not rows:
        return 0
    count = size_bytes = 0
    for row in rows[:STRETCH_MAX]:
        size_bytes += row.pending.place.length
        if size_bytes > STRETCH_BYTES_MAX and count:
            break
        count += 1
    positions = [each.position for each in rows]
    return count_whole(positions, count) or bisect_right(positions, positions[0])


def _reach_of(rows: list[CourseRow]) -> dict[int, int]:
    """By epoch, their last sequence."""
    reach: dict[int, int] = {}
    for row in rows:
        reach[row.epoch_id] = max(row.position.sequence, reach.get(row.epoch_id, 0))
    return reach
