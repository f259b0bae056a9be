"""Builds the requests for the archive's catalogue, and reads its answers. Pure: opens no connection and no file."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import PurePosixPath
from typing import TypeAlias, TypedDict

from google.protobuf.timestamp_pb2 import Timestamp

from fieldpost._requests import check_names
from fieldpost._resuming import Patience
from fieldpost.errors import BrokenStateError, InvalidObservationError, InvalidRequestError
from fieldpost.names import check_name
from fieldpost.v1 import archive_service_pb2 as pb

Day: TypeAlias = date | str
"""A UTC day: a date, or text such as 2025-06-01."""
_DAY = re.compile(r"\d{4}-\d\d-\d\d")
_TELL = "tell the server's operator: the answer makes no sense"


class BagQuery(TypedDict, total=False):
    """Which bags are meant. Whatever is left out, or None, matches all.

    Attributes:
        station: Only this station.
        instrument: Only this instrument; needs station.
        first_day: Only this UTC day and later ones.
        last_day: Only this UTC day and earlier ones.
        all_versions: Whether all versions of a day are wanted; else the newest alone.
    """

    station: str | None
    instrument: str | None
    first_day: Day | None
    last_day: Day | None
    all_versions: bool


@dataclass(frozen=True, slots=True)
class ArchivedBag:
    """One UTC day of one instrument in the archive, in one version.

    Attributes:
        station: Its station.
        instrument: Its instrument.
        day: Its UTC day.
        version: 1, 2, 3 and so on; observations that came late made the next one.
        path: Where it lies in the archive, relative to its folder.
        manifest_sha256: Of its file manifest-sha256.txt, in hexadecimal digits.
        observation_count: Observations in it.
        prediction_count: Predictions in it, of all model versions together.
        payload_bytes: Bytes that the instrument wrote; None where an older server did not note it.
        bag_bytes: Bytes of all its files; likewise.
        archive_time: When it was made.
        check_time: When it was last read from its first to its last byte and found whole; None where nobody noted it.
        copy_time: When its copy in the second place was last read so; None where there is none.
        damage: What the last look found wrong and could not repair; empty where it is whole.
    """

    station: str
    instrument: str
    day: date
    version: int
    path: str
    manifest_sha256: str
    observation_count: int
    prediction_count: int
    payload_bytes: int | None
    bag_bytes: int | None
    archive_time: datetime
    check_time: datetime | None
    copy_time: datetime | None
    damage: str

    def __str__(self) -> str:
        return f"{self.station}/{self.instrument} of {self.day}, version {self.version}"


@dataclass(frozen=True, slots=True)
class BagFile:
    """One file of a bag.

    Attributes:
        file: Its name in the bag, with forward slashes.
        file_bytes: How many bytes it has.
        sha256: What the manifests of the bag promise, in hexadecimal digits.
    """

    file: str
    file_bytes: int
    sha256: str


def parse_day(day: Day) -> date:
    """The day.

    Raises:
        InvalidRequestError: It is none.
    """
    if isinstance(day, datetime) or not isinstance(day, date | str):
        raise InvalidRequestError(f"expected a UTC day as a date or as YYYY-MM-DD, but got {day!r}")
    if isinstance(day, date):
        return day
    try:
        if _DAY.fullmatch(day):
            return date.fromisoformat(day)
    except ValueError:
        pass
    raise InvalidRequestError(f"expected a UTC day as YYYY-MM-DD, but got {day!r}")


def list_request(
    *,
    station: str | None = None,
    instrument: str | None = None,
    first_day: Day | None = None,
    last_day: Day | None = None,
    all_versions: bool = False,
) -> pb.ListBagsRequest:
    """The request for the first page.

    Raises:
        InvalidRequestError: The query makes no sense.
    """
    check_names(station, instrument)
    first, last = (None if day is None else parse_day(day) for day in (first_day, last_day))
    if first is not None and last is not None and last < first:
        raise InvalidRequestError(f"expected a last day at or after {first}, but got {last}")
    return pb.ListBagsRequest(
        station=station or "",
        instrument=instrument or "",
        first_day="" if first is None else first.isoformat(),
        last_day="" if last is None else last.isoformat(),
        has_all_versions=all_versions,
    )


def get_request(station: str, instrument: str, day: Day, version: int | None) -> pb.GetBagRequest:
    """The request for one bag.

    Raises:
        InvalidRequestError: It names none.
    """
    check_names(station, instrument)
    if version is not None and version < 1:
        raise InvalidRequestError(f"expected a version of 1 or more, or None for the newest, but got {version}")
    return pb.GetBagRequest(
        station=station, instrument=instrument, day=parse_day(day).isoformat(), bag_version=version or 0
    )


def to_bag(message: pb.ArchivedBag) -> ArchivedBag:
    """A bag as the server tells it.

    Raises:
        BrokenStateError: It makes no sense; a name is never trusted to be one, since it becomes part of a path.
    """
    try:
        return ArchivedBag(
            station=check_name("station", message.station),
            instrument=check_name("instrument", message.instrument),
            day=parse_day(message.day),
            version=message.bag_version,
            path=message.path,
            manifest_sha256=message.manifest_sha256.hex(),
            observation_count=message.observation_count,
            prediction_count=message.prediction_count,
            payload_bytes=message.payload_bytes if message.HasField("payload_bytes") else None,
            bag_bytes=message.bag_bytes if message.HasField("bag_bytes") else None,
            archive_time=_moment(message.archive_time),
            check_time=_moment(message.check_time) if message.HasField("check_time") else None,
            copy_time=_moment(message.copy_time) if message.HasField("copy_time") else None,
            damage=message.damage,
        )
    except (InvalidObservationError, InvalidRequestError) as error:
        raise BrokenStateError(f"expected a bag, but {error}", hint=_TELL) from error


def _moment(timestamp: Timestamp) -> datetime:
    moment: datetime = timestamp.ToDatetime(UTC)
    return moment


def to_file(message: pb.BagFile) -> BagFile:
    """A file as the server tells it.

    Raises:
        BrokenStateError: Its name leads out of the bag.
    """
    path = PurePosixPath(message.file)
    if path.is_absolute() or not path.parts or ".." in path.parts or str(path) != message.file:
        raise BrokenStateError(f"expected the name of a file in a bag, but got {message.file!r}", hint=_TELL)
    return BagFile(message.file, message.file_bytes, message.sha256.hex())


class FileReading:
    """A file of a bag that comes in pieces, and goes on where it was when the connection breaks.

    Args:
        bag: The bag.
        file: The file.
        offset_bytes: Where to begin.
        patience_s: As Patience says.
    """

    def __init__(self, bag: ArchivedBag, file: BagFile, offset_bytes: int, patience_s: float) -> None:
        self.patience = Patience(patience_s)
        self._bag = bag
        self._file = file
        self._offset_bytes = offset_bytes

    def request(self) -> pb.ReadBagRequest:
        """The request that goes on where the reading stands."""
        return pb.ReadBagRequest(
            station=self._bag.station,
            instrument=self._bag.instrument,
            day=self._bag.day.isoformat(),
            bag_version=self._bag.version,
            file=self._file.file,
            offset_bytes=self._offset_bytes,
        )

    def take(self, response: pb.ReadBagResponse) -> tuple[bytes]:
        """The bytes of a piece."""
        self._offset_bytes += len(response.content)
        return (response.content,)

    def is_complete(self, *, has_ended_well: bool) -> bool:
        """Whether all bytes have come."""
        return self._offset_bytes >= self._file.file_bytes
