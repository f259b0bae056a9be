"""The record of bags as a scrub needs it: which there are, when each was read, and what the store still holds.

Knows no shelf and no bag.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date

from sqlalchemy import Connection, case, func, select, update

from server.archive.bags import NANOS_PER_DAY, day_to_unix_nanos
from server.storage.tables import bags, instruments, observations, stations


@dataclass(frozen=True, slots=True)
class RecordedBag:
    """A bag, as it is recorded.

    Attributes:
        row_id: Of its row.
        instrument_id: Whose day.
        day: The UTC day.
        version: 1, 2, 3 and so on.
        path: On every shelf.
        manifest_sha256: Of its manifest, in hexadecimal digits.
        observation_count: Observations in it.
        bag_bytes: Of all its files; None where an older version of this software did not note it.
        check_unix_nanos: When it was last found whole; None where it never was.
        copy_unix_nanos: When its copy was last found whole; None where it has none.
        damage: What the last look found wrong and could not repair.
        has_later: Whether a later version of the day is recorded, and not as damaged: it holds all that this one does.
    """

    row_id: int
    instrument_id: int
    day: date
    version: int
    path: str
    manifest_sha256: str
    observation_count: int
    bag_bytes: int | None
    check_unix_nanos: int | None
    copy_unix_nanos: int | None
    damage: str
    has_later: bool

    @property
    def home(self) -> str:
        """The folder of its instrument: station/instrument."""
        return self.path.rsplit("/", 2)[0]


def list_recorded(
    connection: Connection, first_day: date | None, last_day: date | None, station: str | None, instrument: str | None
) -> list[RecordedBag]:
    """The bags of these days, of all stations and instruments where none is named; by path."""
    whole = case((bags.c.damage == "", bags.c.version), else_=0)
    newest = func.max(whole).over(partition_by=(bags.c.instrument_id, bags.c.day)).label("newest")
    query = (
        select(bags, newest)
        .join(instruments, instruments.c.id == bags.c.instrument_id)
        .join(stations, stations.c.id == instruments.c.station_id)
        .order_by(bags.c.path)
    )
    if first_day is not None:
        query = query.where(bags.c.day >= first_day.isoformat())
    if last_day is not None:
        query = query.where(bags.c.day <= last_day.isoformat())
    if station is not None:
        query = query.where(stations.c.name == station)
    if instrument is not None:
        query = query.where(instruments.c.name == instrument)
    return [
        RecordedBag(
            row.id,
            row.instrument_id,
            date.fromisoformat(row.day),
            row.version,
            row.path,
            row.manifest_sha256,
            row.observation_count,
            row.bag_bytes,
            row.check_unix_nanos,
            row.copy_unix_nanos,
            row.damage,
            row.version < row.newest,
        )
        for row in connection.execute(query)
    ]


def write_look(
    connection: Connection,
    bag: RecordedBag,
    *,
    check_unix_nanos: int | None,
    copy_unix_nanos: int | None,
    bag_bytes: int | None,
    damage: str,
) -> None:
    """Records what a look found.

    Args:
        connection: For writing.
        bag: Which was looked at.
        check_unix_nanos: When it was found whole; None where it was not: what is recorded stays.
        copy_unix_nanos: When its copy was; likewise.
        bag_bytes: Of its files, where it was found whole.
        damage: What is wrong and could not be repaired; empty where all is well.
    """
    found: dict[str, object] = {"damage": damage}
    times = {"check_unix_nanos": check_unix_nanos, "copy_unix_nanos": copy_unix_nanos, "bag_bytes": bag_bytes}
    found |= {name: value for name, value in times.items() if value is not None}
    connection.execute(update(bags).where(bags.c.id == bag.row_id).values(**found))


def count_held(connection: Connection, bag: RecordedBag) -> int:
    """How many observations of the bag's day the store still holds."""
    first, measured = day_to_unix_nanos(bag.day), observations.c.measure_unix_nanos
    here = (observations.c.instrument_id == bag.instrument_id, measured >= first, measured < first + NANOS_PER_DAY)
    return connection.scalar(select(func.count()).where(*here)) or 0
