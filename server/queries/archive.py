"""The bags that are recorded, as the server serves them: a page at a time, or one of them. Knows no shelf."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Select, and_, exists, func, or_, select

from fieldpost.errors import InvalidRequestError, UnknownObservationError
from fieldpost.v1 import archive_service_pb2 as pb
from server.archive.bags import NANOS_PER_DAY, day_to_unix_nanos
from server.queries.pages import page_size
from server.queries.stations import find_instrument_ids
from server.storage.tables import bags, instruments, observations, stations

VERSION_MAX = 2**31 - 1
NAME_LENGTH_MAX = 63


@dataclass(frozen=True, slots=True)
class BagFilter:
    """Which bags are meant; what is left empty matches all.

    Attributes:
        station: Only this station.
        instrument: Only this instrument; needs station.
        first_day: Only this UTC day and later ones, as YYYY-MM-DD.
        last_day: Only this UTC day and earlier ones, likewise.
        all_versions: Whether all versions of a day are meant; else the newest alone.
    """

    station: str = ""
    instrument: str = ""
    first_day: str = ""
    last_day: str = ""
    all_versions: bool = False

    def __post_init__(self) -> None:
        if self.instrument and not self.station:
            raise InvalidRequestError("expected a station together with an instrument", hint="name the station too")
        for day in (self.first_day, self.last_day):
            if day:
                check_day(day)


@dataclass(frozen=True, slots=True)
class BagPosition:
    """Where a bag stands in the list."""

    station: str
    instrument: str
    day: str
    version: int

    @classmethod
    def parse(cls, token: str) -> BagPosition | None:
        """Reads a token; None for the first page.

        Raises:
            InvalidRequestError: It is not one of ours.
        """
        if not token:
            return None
        match token.split("/"):
            case [station, instrument, day, version] if version.isascii() and version.isdigit() and len(token) <= 160:
                return cls(station, instrument, check_day(day), min(int(version), VERSION_MAX))
        raise InvalidRequestError(f"expected next_page_token of an earlier answer, but got {token[:80]!r}")

    def __str__(self) -> str:
        return f"{self.station}/{self.instrument}/{self.day}/{self.version}"


def check_day(day: str) -> str:
    """The day, if it is one.

    Raises:
        InvalidRequestError: It is not a day as YYYY-MM-DD.
    """
    try:
        if date.fromisoformat(day).isoformat() == day:
            return day
    except ValueError:
        pass
    raise InvalidRequestError(f"expected a UTC day as YYYY-MM-DD, but got {day[:32]!r}")


def list_bags(
    connection: Connection, wanted: BagFilter, wanted_size: int, page_token: str
) -> tuple[list[pb.ArchivedBag], str]:
    """One page, ordered by station, instrument, day and version, and the token of the next one (empty at the end).

    Raises:
        InvalidRequestError: The token is not one of ours.
    """
    after, size = BagPosition.parse(page_token), page_size(wanted_size)
    page: list[pb.ArchivedBag] = []
    for instrument_id in _find_archived(connection, wanted, after):
        page += _bags_of(connection, instrument_id, wanted, after, size - len(page))
        if len(page) == size:
            last = page[-1]
            return page, str(BagPosition(last.station, last.instrument, last.day, last.bag_version))
    return page, ""


def _find_archived(connection: Connection, wanted: BagFilter, after: BagPosition | None) -> Sequence[int]:
    """The instruments that have such bags, by name, from the one on at which the page begins.

    Each is looked up in the index once, so that instruments without bags cost next to nothing.
    """
    query = (
        select(instruments.c.id)
        .join(stations, stations.c.id == instruments.c.station_id)
        .where(exists().where(bags.c.instrument_id == instruments.c.id, *_within(wanted)))
        .order_by(stations.c.name, instruments.c.name)
    )
    if wanted.station:
        query = query.where(stations.c.name == wanted.station)
    if wanted.instrument:
        query = query.where(instruments.c.name == wanted.instrument)
    if after is not None:
        same = and_(stations.c.name == after.station, instruments.c.name >= after.instrument)
        query = query.where(or_(stations.c.name > after.station, same))
    return connection.scalars(query).all()


def _bags_of(
    connection: Connection, instrument_id: int, wanted: BagFilter, after: BagPosition | None, limit: int
) -> Iterator[pb.ArchivedBag]:
    query = _select().where(bags.c.instrument_id == instrument_id, *_within(wanted))
    if not wanted.all_versions:
        query = query.where(~_has_later())
    if after is not None:
        here = and_(stations.c.name == after.station, instruments.c.name == after.instrument)
        behind = or_(bags.c.day > after.day, and_(bags.c.day == after.day, bags.c.version > after.version))
        query = query.where(or_(~here, behind))
    return map(_to_message, connection.execute(query.order_by(bags.c.day, bags.c.version).limit(limit)))


def _within(wanted: BagFilter) -> list[ColumnElement[bool]]:
    first = [bags.c.day >= wanted.first_day] if wanted.first_day else []
    return first + ([bags.c.day <= wanted.last_day] if wanted.last_day else [])


def _has_later() -> ColumnElement[bool]:
    later = bags.alias("later")
    return exists().where(
        later.c.instrument_id == bags.c.instrument_id, later.c.day == bags.c.day, later.c.version > bags.c.version
    )


def find_bag(connection: Connection, station: str, instrument: str, day: str, version: int) -> pb.ArchivedBag:
    """One bag; the newest of the day where version is 0.

    Raises:
        InvalidRequestError: The day is none.
        UnknownObservationError: There is no such bag; the message says what is known of the day.
    """
    query = _select().where(stations.c.name == station, instruments.c.name == instrument, bags.c.day == check_day(day))
    if version:
        query = query.where(bags.c.version == min(version, VERSION_MAX))
    row = connection.execute(query.order_by(bags.c.version.desc()).limit(1)).one_or_none()
    if row is None:
        raise _not_archived(connection, station, instrument, day, version)
    return _to_message(row)


def _not_archived(
    connection: Connection, station: str, instrument: str, day: str, version: int
) -> UnknownObservationError:
    name = f"{station[:NAME_LENGTH_MAX]}/{instrument[:NAME_LENGTH_MAX]} of {day}"
    instrument_ids = find_instrument_ids(connection, station, instrument) if station and instrument else []
    if not instrument_ids:
        return UnknownObservationError(
            f"expected a bag of {name}, but there is no such instrument", hint="`fieldpost stations` lists them"
        )
    if version and (newest := _newest_version(connection, instrument_ids[0], day)):
        return UnknownObservationError(
            f"expected version {version} of {name}, but its versions are 1 to {newest}",
            hint="ask for one of these, or for the newest",
        )
    first = day_to_unix_nanos(date.fromisoformat(day))
    measured = observations.c.measure_unix_nanos
    held = select(func.count(), func.min(measured), func.max(measured)).where(
        observations.c.instrument_id == instrument_ids[0], measured >= first, measured < first + NANOS_PER_DAY
    )
    count, earliest, latest = connection.execute(held).one()
    if not count:
        return UnknownObservationError(
            f"expected a bag of {name}, but it is not archived, and the server holds no observation of that day",
            hint="`fieldpost archive list` shows what is archived; what is still on the station comes by itself",
        )
    return UnknownObservationError(
        f"expected a bag of {name}, but it is not archived yet: the server holds {count} of its observations, measured "
        f"from {_clock(earliest)} to {_clock(latest)} UTC",
        hint="the archive flow archives a day once it is over; until then `fieldpost observations` lists them, "
        "`fieldpost read` brings them",
    )


def _newest_version(connection: Connection, instrument_id: int, day: str) -> int:
    query = select(func.max(bags.c.version)).where(bags.c.instrument_id == instrument_id, bags.c.day == day)
    return connection.scalar(query) or 0


def _clock(unix_nanos: int) -> str:
    return f"{datetime.fromtimestamp(unix_nanos // 10**9, UTC):%H:%M:%S}"


def _select() -> Select[Any]:
    return (
        select(bags, stations.c.name.label("station"), instruments.c.name.label("instrument"))
        .join(instruments, instruments.c.id == bags.c.instrument_id)
        .join(stations, stations.c.id == instruments.c.station_id)
    )


def _to_message(row: Row[Any]) -> pb.ArchivedBag:
    message = pb.ArchivedBag(
        station=row.station,
        instrument=row.instrument,
        day=row.day,
        bag_version=row.version,
        path=row.path,
        manifest_sha256=bytes.fromhex(row.manifest_sha256),
        observation_count=row.observation_count,
        prediction_count=row.prediction_count,
        payload_bytes=row.payload_bytes,
        bag_bytes=row.bag_bytes,
        damage=row.damage,
    )
    message.archive_time.FromNanoseconds(row.archive_unix_nanos)
    if row.check_unix_nanos is not None:
        message.check_time.FromNanoseconds(row.check_unix_nanos)
    if row.copy_unix_nanos is not None:
        message.copy_time.FromNanoseconds(row.copy_unix_nanos)
    return message
