"""Reads a bag back: every observation with its header, field for field, and every prediction, as the store had them.

One at a time, so that memory stays flat. Bags of an older format, whose table says less, are read as far as it goes.
Knows no store and no shelf.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

from google.protobuf.timestamp_pb2 import Timestamp

from fieldpost.errors import BrokenStateError
from fieldpost.v1 import observation_pb2 as pb
from flows.bags.bag_format import MANIFEST, PAYLOAD_FOLDER
from flows.bags.observations_file import CSV_NAME, TAR_NAME
from flows.bags.provenance import PROVENANCE_NAME
from flows.bags.reading_predictions import BagPrediction, read_predictions
from flows.bags.tar_members import Member, read_members
from server.archive.bags import day_to_unix_nanos

_NANOS_PER_S = 10**9
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SECOND = timedelta(seconds=1)
_INSTANT_CHARACTERS = len("2024-05-01T12:00:15.000000000Z")
_ENCODINGS = {name.removeprefix("PAYLOAD_ENCODING_").lower(): number for name, number in pb.PayloadEncoding.items()}
_CLOCK_SYNCS = {name.removeprefix("CLOCK_SYNC_").lower(): number for name, number in pb.ClockSync.items()}
_QUALITIES = {name.removeprefix("QUICK_LOOK_QUALITY_").lower(): number for name, number in pb.QuickLookQuality.items()}
_HINT = "the scrub flow repairs a damaged bag from its copy, where there is one"

Number = TypeVar("Number", bound=int)


class ObservationFacts(NamedTuple):
    """What the server knew of an observation beyond its header.

    Attributes:
        measure_unix_nanos: When it was measured; where the header does not say, as the payload or the capture told.
        capture_unix_nanos: When it was captured; where the header does not say, when it came to the server.
    """

    measure_unix_nanos: int
    capture_unix_nanos: int


class BagReader:
    """Reads one bag.

    Args:
        folder: The bag; its files have been compared with the manifest (check_files), or nobody minds.

    Attributes:
        folder: The bag.
        station: Whose day it is.
        instrument: Likewise.
        day: The UTC day.
        version: Of the bag.
        facts: What provenance.json says.

    Raises:
        BrokenStateError: It is no bag of ours.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with _as_broken(folder / PAYLOAD_FOLDER / PROVENANCE_NAME):
            self.facts: dict[str, Any] = json.loads((folder / PAYLOAD_FOLDER / PROVENANCE_NAME).read_bytes())
            self.station, self.instrument = (str(self.facts["instrument"][key]) for key in ("station", "instrument"))
            self.day, self.version = date.fromisoformat(self.facts["day"]), int(self.facts["version"])

    def observations(self) -> Iterator[tuple[pb.ObservationHeader, bytes, ObservationFacts]]:
        """Each observation, in order of measure time: the header as it was sent, and the instrument's bytes.

        Raises:
            BrokenStateError: The table and the tar do not belong together, or bytes are not those that were measured.
        """
        with _as_broken(self.folder / PAYLOAD_FOLDER / CSV_NAME):
            for line, member in self.lines():
                header = to_header(line, self.station, self.instrument)
                facts = ObservationFacts(parse_instant(line["measure_time"]), parse_instant(line["capture_time"]))
                yield header, member.content, facts

    def lines(self) -> Iterator[tuple[dict[str, str], Member]]:
        """Each line of the table by column, and the file that it speaks of, compared with its SHA-256.

        Raises:
            BrokenStateError: As above.
        """
        data = self.folder / PAYLOAD_FOLDER
        with _as_broken(data / CSV_NAME), (data / CSV_NAME).open(newline="", encoding="utf-8") as table:
            lines = csv.reader(table)
            columns = next(lines)
            for values, member in zip_longest(lines, read_members(data / TAR_NAME)):
                if values is None or member is None:
                    where, other = (CSV_NAME, TAR_NAME) if values is None else (TAR_NAME, CSV_NAME)
                    raise BrokenStateError(
                        f"expected as many observations in {where} as in {other}, but not so (bag {self.folder})",
                        hint=_HINT,
                    )
                line = dict(zip(columns, values, strict=True))
                _compare(line, member, self.folder)
                yield line, member

    def prediction_files(self) -> list[Path]:
        """The files of predictions, one for each model version."""
        return [self.folder / PAYLOAD_FOLDER / str(each["file"]) for each in self.facts["predictions"]]

    def predictions(self) -> Iterator[BagPrediction]:
        """All predictions: file by file, and in each in the order of their observations.

        Raises:
            BrokenStateError: A file cannot be read.
        """
        for path in self.prediction_files():
            yield from self.predictions_of(path)

    def predictions_of(self, path: Path) -> Iterator[BagPrediction]:
        """The predictions of one of these files."""
        return read_predictions(path, day_to_unix_nanos(self.day))


def check_files(folder: Path, manifest_sha256: str) -> int:
    """Reads every file of a bag and compares it with the manifest, and the manifest with what was recorded of it.

    Returns:
        How many files.

    Raises:
        BrokenStateError: One is missing or differs.
    """
    with _as_broken(folder):
        _check_file(folder / MANIFEST, manifest_sha256)
        lines = (folder / MANIFEST).read_text().splitlines()
        for line in lines:
            sha256, name = line.split("  ", 1)
            _check_file(folder / name, sha256)
        return len(lines) + 1


def _check_file(path: Path, expected: str) -> None:
    with path.open("rb") as file:
        got = hashlib.file_digest(file, "sha256").hexdigest()
    if got != expected:
        raise BrokenStateError(f"expected {path} with SHA-256 {expected}, but it has {got}", hint=_HINT)


def _compare(line: Mapping[str, str], member: Member, folder: Path) -> None:
    sha256 = hashlib.sha256(member.content).hexdigest()
    if (member.name, sha256) != (line["member"], line["sha256"]):
        raise BrokenStateError(
            f"expected {line['member']} with SHA-256 {line['sha256']}, but got {member.name} with {sha256} "
            f"from {TAR_NAME} (bag {folder})",
            hint=_HINT,
        )


def to_header(line: Mapping[str, str], station: str, instrument: str) -> pb.ObservationHeader:
    """The header of an observation, made again from its line.

    A line of an older bag does not have the station's own times; they are those that the server went by, where it went
    by them.
    """
    header = pb.ObservationHeader(
        station=station,
        instrument=instrument,
        epoch=line["epoch"],
        sequence=int(line["sequence"]),
        sha256=bytes.fromhex(line["sha256"]),
        payload_bytes=int(line["payload_bytes"]),
        payload_encoding=_number(_ENCODINGS, line["payload_encoding"]),
        payload_format=line["payload_format"],
        origin=line["origin"],
    )
    if line["measure_time_source"] == "station":
        _set(header.measure_time, line["measure_time"])
    source = line["capture_time_source"]
    wall = line.get("station_time", line["capture_time"] if source == "station" else "")
    corrected = line.get("corrected_time", line["capture_time"] if source == "station, corrected" else "")
    if line["clock_sync"]:
        clock = header.capture_clock
        clock.SetInParent()
        clock.clock_sync = _number(_CLOCK_SYNCS, line["clock_sync"])
        clock.boot_id, clock.monotonic_nanos = line["boot_id"], int(line["monotonic_nanos"])
        if wall:
            _set(clock.wall_time, wall)
    if corrected:
        _set(header.corrected_wall_time, corrected)
    if line.get("quick_look_quality"):
        _set_quick_look(header.quick_look, line)
    return header


def _set_quick_look(look: pb.QuickLook, line: Mapping[str, str]) -> None:
    look.SetInParent()
    look.model = line["quick_look_model"]
    look.quality = _number(_QUALITIES, line["quick_look_quality"])
    look.duration_ms = float(line["quick_look_duration_ms"])
    if line["quick_look_height_m"]:
        look.mixing_layer_height_m = float(line["quick_look_height_m"])


def _set(instant: Timestamp, text: str) -> None:
    instant.SetInParent()
    instant.seconds, instant.nanos = divmod(parse_instant(text), _NANOS_PER_S)


def _number(known: Mapping[str, Number], word: str) -> Number:
    """The number of an enumeration's value; of one that was not known when the bag was made, the word is the number."""
    return known[word] if word in known else cast(Number, int(word))


def parse_instant(text: str) -> int:
    """Nanoseconds since 1970 of an instant as ISO 8601 with nine digits, for example 2024-05-01T12:00:15.000000000Z.

    Raises:
        ValueError: It is not written so.
    """
    if len(text) != _INSTANT_CHARACTERS or text[-1] != "Z":
        raise ValueError(f"expected an instant of {_INSTANT_CHARACTERS} characters that ends in Z, but got {text!r}")
    return _to_unix_s(text[:19]) * _NANOS_PER_S + int(text[20:29])


@lru_cache(64)  # the instants of a line are mostly of one second
def _to_unix_s(text: str) -> int:
    return (datetime.fromisoformat(text).replace(tzinfo=UTC) - _EPOCH) // _SECOND


@contextmanager
def _as_broken(path: Path) -> Iterator[None]:
    """What cannot be read, or is not as a bag has it, is damage."""
    try:
        yield
    except (OSError, KeyError, ValueError, TypeError, IndexError, StopIteration, csv.Error) as error:
        raise BrokenStateError(f"expected {path} as in a bag of Fieldpost, but got: {error!r}", hint=_HINT) from error
