"""Old days that stay in the hot store for a while, since somebody brought them back from the archive.

Runs inside transactions of others; time is an argument. Knows no bag, nor how a day is brought back or let go.
"""

from __future__ import annotations

from datetime import date

from sqlalchemy import ColumnElement, Connection, delete, select, update

from server.queries.predictions import insert_unless_there
from server.storage.tables import holds


def write_hold(connection: Connection, instrument_id: int, day: date, until_unix_nanos: int) -> None:
    """Keeps a day until an instant; one that is kept for longer already stays so."""
    row = {"instrument_id": instrument_id, "day": day.isoformat(), "until_unix_nanos": until_unix_nanos}
    connection.execute(insert_unless_there(connection, holds).values(row))
    is_shorter = holds.c.until_unix_nanos < until_unix_nanos
    connection.execute(update(holds).where(*_of(instrument_id, day), is_shorter).values(row))


def drop_hold(connection: Connection, instrument_id: int, day: date) -> None:
    """Lets a day go as any other; one that is not held is as good."""
    connection.execute(delete(holds).where(*_of(instrument_id, day)))


def is_held(connection: Connection, instrument_id: int, day: date, now_unix_nanos: int) -> bool:
    """Whether a day is to stay here now, however old it is."""
    is_on = holds.c.until_unix_nanos > now_unix_nanos
    return connection.scalar(select(holds.c.id).where(*_of(instrument_id, day), is_on)) is not None


def _of(instrument_id: int, day: date) -> tuple[ColumnElement[bool], ...]:
    return holds.c.instrument_id == instrument_id, holds.c.day == day.isoformat()
