"""Days that only the archive keeps: which there are, what their bags hold of a version, and how they come and go.

A day that was brought back is held in the hot store until its new bag is recorded. A run that is ended leaves the hold,
by which the next run finds the day, and which ends by itself; predictions that no bag has stay until one has. Knows no
worker.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any

from sqlalchemy import Connection, func, select

from fieldpost.errors import BrokenStateError, TryAgainError
from flows.archiving.archivist import ArchivedDay, Archivist
from flows.backfilling.span import DayKey
from flows.bags.bag_format import PAYLOAD_FOLDER
from flows.bags.provenance import PROVENANCE_NAME
from flows.restoring.restorer import Restorer
from flows.site import Site
from server.archive.bags import NANOS_PER_DAY, BagRecord, InstrumentDay
from server.archive.bring_back import list_bags
from server.archive.holds import drop_hold, is_held
from server.models.card import ModelCard
from server.prediction.course import Course
from server.prediction.course_rows import held_in_course
from server.storage.tables import observations

HOLD_NANOS = 2 * NANOS_PER_DAY
"""How long a day stays that a run has brought back and was ended with: time enough to run again."""
WRITE_WAIT_S = 120.0


@dataclass(frozen=True, slots=True)
class BaggedDay:
    """A day that the hot store does not hold, or only for a while, and its bags.

    Attributes:
        day: Which.
        observation_count: Observations in its largest bag: in all of them together there may be more.
        waiting_count: Those without a prediction of the version in the newest bag.
        failed_count: Those of which the version could not say anything.
        is_here: Whether somebody has brought it back already, whole.
    """

    day: InstrumentDay
    observation_count: int
    waiting_count: int
    failed_count: int
    is_here: bool = False

    @property
    def key(self) -> DayKey:
        """Names it."""
        return self.day.instrument_id, self.day.day


def find_bagged_days(
    site: Site,
    card: ModelCard,
    first_day: date,
    last_day: date,
    *,
    station: str | None,
    instrument: str | None,
    is_read: bool,
) -> list[BaggedDay]:
    """The days that only the archive keeps.

    Args:
        site: The server's.
        card: The version.
        first_day: The first UTC day.
        last_day: The last one.
        station: Only this station; None for all.
        instrument: Only instruments of this name; None for all.
        is_read: Whether to ask the bags what they hold; where not, everything in them counts as waiting.

    Raises:
        TryAgainError: The archive does not answer.
        BrokenStateError: A bag that is recorded is not there, or does not say what it holds.
    """
    found, now = [], time.time_ns()
    for day in Restorer(site).find_days(first_day, last_day, station=station, instrument=instrument):
        with site.store.read() as connection:
            bags, hot_count = list_bags(connection, day), count_hot(connection, day)
            may_go = is_held(connection, day.instrument_id, day.day, now)
        count = max(each.observation_count for each in bags)
        if may_go or hot_count < count:
            made_count, failed_count = _count_made(read_facts(site, bags[0]), card) if is_read else (0, 0)
            found.append(BaggedDay(day, count, max(0, count - made_count), failed_count, hot_count >= count))
    return found


def count_hot(connection: Connection, day: InstrumentDay) -> int:
    """How many observations of a day the store holds."""
    within = Course(day.first_unix_nanos, day.first_unix_nanos + NANOS_PER_DAY)
    query = select(func.count()).select_from(observations).where(*held_in_course(day.instrument_id, within))
    return connection.scalar(query) or 0


def read_facts(site: Site, record: BagRecord) -> Mapping[str, Any]:
    """What a bag says of itself."""
    name = f"{PAYLOAD_FOLDER}/{PROVENANCE_NAME}"
    try:
        facts: dict[str, Any] = json.loads(b"".join(site.shelf.read(record.path, name)))
    except ValueError as error:
        raise BrokenStateError(
            f"expected JSON in {name} of bag {record.path}, but it cannot be read: {error}",
            hint="run the scrub flow: it looks for a whole copy",
        ) from error
    return facts


def _count_made(facts: Mapping[str, Any], card: ModelCard) -> tuple[int, int]:
    """How many predictions of a version a bag holds, and how many of them say only why there is no value."""
    mine = [
        (each["prediction_count"], each["failure_count"])
        for each in facts["predictions"]
        if (each["analysis"], each["model_version"]) == card.key
    ]
    return mine[0] if mine else (0, 0)


class ArchivedDays:
    """Brings days back, and sends them home.

    Args:
        site: Where to, and from where.
        restorer: Who brings them back.
        archivist: Who makes their new bags.
        bagged: The days.
    """

    def __init__(
        self, site: Site, restorer: Restorer, archivist: Archivist, bagged: Mapping[DayKey, BaggedDay]
    ) -> None:
        self._site = site
        self._restorer = restorer
        self._archivist = archivist
        self._bagged = bagged

    def check_room(self, keys: Iterable[DayKey]) -> None:
        """Makes sure that the disks have room for these days; raises TryAgainError where they do not."""
        days = [self._bagged[key].day for key in keys]
        self._restorer.check_room(self._restorer.plan(days), None)

    def bring(self, key: DayKey) -> None:
        """Brings a day back, whole or not at all; what is there already is left as it is."""
        self._restorer.restore(self._bagged[key].day, keep_until_unix_nanos=time.time_ns() + HOLD_NANOS)

    def send_home(self, key: DayKey) -> ArchivedDay:
        """Archives a day that was brought back, and lets go of it: pruning may take it from now on.

        One that somebody else had brought back stays for as long as they said.
        """
        day = self._bagged[key].day
        archived = self._archivist.archive(day, time.time_ns())
        if self._bagged[key].is_here:
            return archived
        dropped = self._site.store.write(lambda connection: drop_hold(connection, day.instrument_id, day.day))
        try:
            dropped.result(WRITE_WAIT_S)
        except TimeoutError as error:
            raise TryAgainError(
                f"the database did not let go of {day} within {WRITE_WAIT_S:g} s",
                hint="the day is archived, and its hold ends by itself",
            ) from error
        return archived
