"""Pages of rows in the order of their measure time: position tokens, and the next rows of any number of instruments.

The index leads from an instrument to its rows in the order of time; nothing leads from a time to the rows of several
instruments. So the first rows of each are merged here. Asking every instrument for a whole page would read a page for
each; but where some have filled a page already, its last row bounds what is asked of the others. One instrument is
asked first, then as many as were asked before, and so on: a page of ten thousand instruments reads about a dozen pages.
Knows the two tables of observations and predictions by the columns that they share.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlalchemy import Connection, Select, Table, literal, select, true, tuple_

from fieldpost.errors import InvalidRequestError
from server.storage.tables import instruments

PAGE_SIZE_DEFAULT = 1000
PAGE_SIZE_MAX = 10_000
ASKED_TOGETHER_MAX = 512
"""Instruments in one query."""
NUMBER_MAX = 2**63


class Position(NamedTuple):
    """Where a row stands."""

    measure_unix_nanos: int
    row_id: int


class TimeSpan(NamedTuple):
    """From start on, before end; None where open."""

    start_unix_nanos: int | None = None
    end_unix_nanos: int | None = None


ALWAYS = TimeSpan()


def page_size(wanted: int) -> int:
    """How many rows a page has, if so many are wanted."""
    return min(wanted, PAGE_SIZE_MAX) if wanted > 0 else PAGE_SIZE_DEFAULT


def make_token(position: Position) -> str:
    """Says where the next page begins: behind this row."""
    return f"{position.measure_unix_nanos}-{position.row_id}"


def parse_token(token: str) -> Position | None:
    """The row behind which a page begins; None for the first page.

    Raises:
        InvalidRequestError: The token is not one of ours.
    """
    if not token:
        return None
    measure, separator, number = token.rpartition("-")
    if separator and len(token) <= 64 and _is_number(measure.removeprefix("-")) and _is_number(number):
        position = Position(int(measure), int(number))
        if abs(position.measure_unix_nanos) < NUMBER_MAX and position.row_id < NUMBER_MAX:
            return position
    raise InvalidRequestError(f"expected next_page_token of an earlier answer as page_token, but got {token[:80]!r}")


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def next_positions(
    connection: Connection,
    table: Table,
    instrument_ids: Sequence[int],
    span: TimeSpan,
    after: Position | None,
    limit: int,
    model_version_ids: Sequence[int] | None = None,
) -> list[Position]:
    """The first rows of these instruments behind a row, by measure time and then id.

    Args:
        connection: To the store.
        table: Observations or predictions.
        instrument_ids: Whose rows.
        span: Only rows measured in it.
        after: Only rows behind this one.
        limit: So many at most.
        model_version_ids: Of predictions, only those of these model versions.
    """
    found: list[Position] = []
    asked = 0
    while asked < len(instrument_ids):
        group = instrument_ids[asked : asked + min(max(asked, 1), ASKED_TOGETHER_MAX)]
        asked += len(group)
        bound = found[-1] if len(found) == limit else None
        query = _first_of_each(connection.dialect.name, table, group, span, after, bound, limit, model_version_ids)
        new = [Position(*row) for row in connection.execute(query)]
        found = sorted([*found, *new])[:limit] if found else new
    return found


def _first_of_each(
    dialect: str,
    table: Table,
    instrument_ids: Sequence[int],
    span: TimeSpan,
    after: Position | None,
    bound: Position | None,
    limit: int,
    model_version_ids: Sequence[int] | None,
) -> Select[Any]:
    each = table.alias("each")
    place = (each.c.measure_unix_nanos, each.c.id)
    own = select(*place).where(each.c.instrument_id == instruments.c.id).order_by(*place).limit(limit)
    if span.start_unix_nanos is not None:
        own = own.where(each.c.measure_unix_nanos >= span.start_unix_nanos)
    if after is not None:
        own = own.where(tuple_(*place) > tuple_(*map(literal, after)))
    if span.end_unix_nanos is not None:
        own = own.where(each.c.measure_unix_nanos < span.end_unix_nanos)
    if bound is not None:
        own = own.where(each.c.measure_unix_nanos <= bound.measure_unix_nanos)
    if model_version_ids is not None:
        own = own.where(each.c.model_version_id.in_(model_version_ids))
    asked = instruments.c.id.in_(instrument_ids)
    if dialect == "postgresql":
        first = own.correlate(instruments).lateral("first")
        rows = select(first.c.measure_unix_nanos, first.c.id).select_from(instruments.join(first, true()))
        return rows.where(asked).order_by(first.c.measure_unix_nanos, first.c.id).limit(limit)
    # SQLite has no LATERAL; the same rows, found once more by their ids.
    ids = own.with_only_columns(each.c.id).correlate(instruments)
    rows = select(table.c.measure_unix_nanos, table.c.id).select_from(instruments.join(table, table.c.id.in_(ids)))
    return rows.where(asked).order_by(table.c.measure_unix_nanos, table.c.id).limit(limit)
