"""Turns instants into days and hours of a site, and lays the numbers of each day and of the day before beside them.

Knows nothing of what the numbers mean. A process of one day may last into the next; so every process is evaluated
twice, for the day itself at hour h and for the day before at hour h + 24, and nothing changes abruptly at midnight.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fieldpost.simulation.weather import SECONDS_PER_DEGREE
from fieldpost.sun import DAY_S

Table = dict[str, NDArray[np.float64]]
"""One array (times,) for each number of a day."""
DAYS_KEPT = 256


class Days:
    """The numbers of days, each drawn once.

    Args:
        draw: Draws one day: day number to a dataclass of floats.
        names: Its fields.
    """

    def __init__(self, draw: Callable[[int], Any], names: tuple[str, ...]) -> None:
        self._draw = draw
        self._names = names
        self._drawn: dict[int, tuple[float, ...]] = {}

    def around(self, day: NDArray[np.int64]) -> tuple[Table, Table]:
        """The numbers of these days, and those of the days before them."""
        first, last = int(day.min()) - 1, int(day.max())
        distinct = sorted({*day.tolist(), *(day - 1).tolist()}) if last - first > DAYS_KEPT else range(first, last + 1)
        rows = np.array([self._numbers(d) for d in distinct])  # (days, names)
        place = np.searchsorted(np.array(distinct), day)
        now, before = rows[place].T, rows[place - 1].T
        return dict(zip(self._names, now, strict=True)), dict(zip(self._names, before, strict=True))

    def _numbers(self, day: int) -> tuple[float, ...]:
        numbers = self._drawn.get(day)
        if numbers is None:
            if len(self._drawn) >= DAYS_KEPT:
                self._drawn.clear()
            drawn = self._draw(day)
            numbers = self._drawn[day] = tuple(float(getattr(drawn, name)) for name in self._names)
        return numbers


def day_and_hour(unix_s: NDArray[np.float64], longitude_deg: float) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Day number and hour of mean solar time, each (times,)."""
    days = (unix_s + longitude_deg * SECONDS_PER_DEGREE) / DAY_S
    day = np.floor(days)
    return day.astype(np.int64), (days - day) * 24


Hours = NDArray[np.float64] | float


def ramp(hour: NDArray[np.float64], start: Hours, end: Hours) -> NDArray[np.float64]:
    """From 0 at the start to 1 at the end, smoothly (6 x⁵ - 15 x⁴ + 10 x³), and exactly 0 and 1 outside."""
    x = np.clip((hour - start) / np.maximum(end - start, 1e-6), 0, 1)
    result: NDArray[np.float64] = x * x * x * (x * (6 * x - 15) + 10)
    return result
