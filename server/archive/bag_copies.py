"""The record of the bags' copies in the second place: which are missing, and which were brought and read back there.

Runs inside transactions of others. Knows no file and no shelf.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date

from sqlalchemy import ColumnElement, Connection, func, select, update

from server.archive.bags import BagRecord, to_record
from server.storage.tables import bags, instruments, stations


@dataclass(frozen=True, slots=True)
class UncopiedBag:
    """A bag that has no copy in the second place.

    Attributes:
        station: Whose.
        instrument: Which of the station's.
        day: Its UTC day.
        record: What is recorded of it.
    """

    station: str
    instrument: str
    day: date
    record: BagRecord


def list_uncopied_bags(connection: Connection, limit: int) -> list[UncopiedBag]:
    """Bags without a copy, the one that was made first first; a damaged one has nothing to copy."""
    names = (stations.c.name.label("station"), instruments.c.name.label("instrument"))
    query = (
        select(bags, *names)
        .join(instruments, instruments.c.id == bags.c.instrument_id)
        .join(stations, stations.c.id == instruments.c.station_id)
        .where(*_uncopied())
        .order_by(bags.c.archive_unix_nanos, bags.c.id)
        .limit(limit)
    )
    rows = connection.execute(query)
    return [UncopiedBag(row.station, row.instrument, date.fromisoformat(row.day), to_record(row)) for row in rows]


def count_uncopied_bags(connection: Connection) -> int:
    """How many bags have no copy."""
    return connection.scalar(select(func.count()).select_from(bags).where(*_uncopied())) or 0


def has_copies(connection: Connection) -> bool:
    """Whether any bag has a copy."""
    return connection.scalar(select(bags.c.id).where(bags.c.copy_unix_nanos.is_not(None)).limit(1)) is not None


def write_copy(connection: Connection, record: BagRecord, copy_unix_nanos: int) -> None:
    """Records that a bag has a copy, which was read back at this instant."""
    here = (bags.c.path == record.path, bags.c.manifest_sha256 == record.manifest_sha256)
    connection.execute(update(bags).where(*here).values(copy_unix_nanos=copy_unix_nanos))


def forget_copies(connection: Connection) -> None:
    """Has every bag copied again: the second place is a new one."""
    connection.execute(update(bags).values(copy_unix_nanos=None))


def _uncopied() -> tuple[ColumnElement[bool], ...]:
    return bags.c.copy_unix_nanos.is_(None), bags.c.damage == ""
