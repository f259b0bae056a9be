"""Heights that somebody knows (radiosondes, experts), read from a CSV file and joined to the observations they are of.

Whole weeks of an instrument are dealt to training and to comparison, by their names alone: a week is always on the same
side, and neighbouring days, which are alike, seldom on two. Knows no analysis.
"""

from __future__ import annotations

import csv
import hashlib
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np

from fieldpost.errors import InvalidRequestError
from flows.retraining.days import find_real_days, read_real_day
from server.analyses.retraining import ReferenceDay
from server.archive.shelf import Shelf
from server.storage.store import Store

COLUMNS = ("station", "instrument", "time", "height_m")
HEIGHT_MAX_M = 20_000.0
HELD_OUT_ONE_OF = 4
OBSERVATIONS_MAX = 1440
"""Of a day: one a minute."""


@dataclass(frozen=True, slots=True)
class Reference:
    """A height that somebody knows.

    Attributes:
        station: Of the instrument.
        instrument: Its name there.
        time: When it holds, UTC.
        height_m: Above the instrument.
    """

    station: str
    instrument: str
    time: datetime
    height_m: float

    @property
    def day_name(self) -> str:
        """Of the day that it belongs to."""
        return f"{self.station}/{self.instrument} {self.time.date()}"

    @property
    def is_held_out(self) -> bool:
        """Whether its week is for the comparison, and never trained on."""
        year, week, _ = self.time.isocalendar()
        name = f"{self.station}/{self.instrument} {year}-{week}"
        return hashlib.sha256(name.encode()).digest()[0] % HELD_OUT_ONE_OF == 0


def read_reference_file(path: Path) -> list[Reference]:
    """Reads the file.

    Raises:
        InvalidRequestError: It is not there, or a line is not as it should be; the message names it.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = csv.DictReader(file)
            if tuple(lines.fieldnames or ()) != COLUMNS:
                raise InvalidRequestError(
                    f"expected the columns {','.join(COLUMNS)} in {path}, but got {lines.fieldnames}"
                )
            return [_to_reference(line, f"line {lines.line_num} of {path}") for line in lines]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InvalidRequestError(f"expected a CSV file of reference heights, but got {error} ({path})") from error


def _to_reference(line: dict[str, str], where: str) -> Reference:
    try:
        time, height_m = datetime.fromisoformat(line["time"]), float(line["height_m"])
    except (TypeError, ValueError) as error:
        raise InvalidRequestError(
            f"expected a time in ISO 8601 and a height in m, but got {error} ({where})"
        ) from error
    if time.tzinfo is None:
        raise InvalidRequestError(
            f"expected a time with its offset, but got {line['time']!r} ({where})", hint="write Z after times in UTC"
        )
    if not (math.isfinite(height_m) and 0 < height_m <= HEIGHT_MAX_M):
        raise InvalidRequestError(f"expected 0 to {HEIGHT_MAX_M:.0f} m, but got {line['height_m']!r} ({where})")
    return Reference(line["station"], line["instrument"], time.astimezone(UTC), height_m)


@dataclass(frozen=True, slots=True)
class ReferenceDays:
    """Days with their references; their observations are read anew each time that they are gone through.

    Attributes:
        store: Where they are.
        shelf: Where they are when the store has let go of them.
        references: Of these days.
    """

    store: Store
    shelf: Shelf
    references: Sequence[Reference]

    def __iter__(self) -> Iterator[ReferenceDay]:
        by_day: dict[tuple[str, str, date], list[Reference]] = defaultdict(list)
        for each in self.references:
            by_day[each.station, each.instrument, each.time.date()].append(each)
        for (station, instrument, day), mine in sorted(by_day.items()):
            found = [
                real
                for known in find_real_days(self.store, day - timedelta(days=1), day)
                if (known.station, known.instrument) == (station, instrument)
                and (real := read_real_day(self.store, self.shelf, known, OBSERVATIONS_MAX)) is not None
            ]
            if found and found[-1].day.day == day:
                mine.sort(key=lambda each: each.time)
                yield ReferenceDay(
                    name=mine[0].day_name,
                    observations=[observation for real in found for observation in real.observations],
                    unix_s=np.array([each.time.timestamp() for each in mine]),
                    height_m=np.array([each.height_m for each in mine]),
                )
