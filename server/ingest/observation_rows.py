"""Inserts the rows of observations as fast as the database's driver can, and tells whether somebody else did.

Knows the two databases; decides nothing about what is inserted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import psycopg
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError


class ObservationRow(NamedTuple):
    """What the table holds of an observation, beside its id."""

    epoch_id: int
    sequence: int
    instrument_id: int
    measure_unix_nanos: int
    capture_unix_nanos: int
    payload_bytes: int
    sha256: bytes
    segment_id: int
    segment_offset: int
    stored_bytes: int
    is_live: bool


# SQLAlchemy's own way of inserting costs twice (SQLite) to eight times (PostgreSQL) as much a row.
_COLUMNS = ", ".join(ObservationRow._fields)
_INSERT = f"INSERT INTO observation ({_COLUMNS}) VALUES ({', '.join('?' * len(ObservationRow._fields))})"
_COPY = f"COPY observation ({_COLUMNS}) FROM STDIN"
_LAST_ID = {
    "sqlite": "SELECT seq FROM sqlite_sequence WHERE name = 'observation'",
    "postgresql": "SELECT last_value, is_called FROM observation_id_seq",
}


def insert_observations(connection: Connection, rows: Sequence[ObservationRow]) -> None:
    """Inserts the rows; raises as SQLAlchemy does."""
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql(_INSERT, list(rows))
        return
    driver = connection.connection.driver_connection
    assert isinstance(driver, psycopg.Connection)
    try:
        with driver.cursor() as cursor, cursor.copy(_COPY) as copy:
            for row in rows:
                copy.write_row(row)
    except psycopg.Error as error:
        raise DBAPIError.instance(_COPY, None, error, psycopg.Error) from error


def read_insert_mark(connection: Connection) -> object:
    """Another one after each insertion, whoever did it, and never one of before; a rolled back one may count too."""
    row = connection.exec_driver_sql(_LAST_ID[connection.dialect.name]).one_or_none()
    return row and tuple(row)
