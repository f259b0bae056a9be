"""How time is cut for the versions that remember: courses from noon to noon, and steps of five minutes. Pure.

A course begins about solar noon, when over land the boundary layer is one well-mixed layer: nowhere does a memory that
knows nothing cost less.
"""

from __future__ import annotations

from fieldpost.sun import DAY_S, solar_noon_unix_s

STEP_S = 300
STEP_COUNT = round(DAY_S) // STEP_S
"""Steps of a course."""
NANOS = 1_000_000_000


def course_start_unix_s(unix_s: float, longitude_deg: float | None) -> int:
    """The start of the course that an instant belongs to.

    Args:
        unix_s: Seconds since 1970-01-01 UTC.
        longitude_deg: East is positive; None where it is unknown, and then that of Greenwich.

    Returns:
        Seconds: mean solar noon rounded down to a whole step, so that all courses of a place are a day long.
    """
    day_s = round(DAY_S)
    phase_s = int(solar_noon_unix_s(0.0, longitude_deg or 0.0)) // STEP_S * STEP_S
    return int((unix_s - phase_s) // day_s) * day_s + phase_s


def course_start_nanos(measure_unix_nanos: int, longitude_deg: float | None) -> int:
    """The same in nanoseconds."""
    return course_start_unix_s(measure_unix_nanos // NANOS, longitude_deg) * NANOS
