"""Days of real observations for a retrain: from the store, and from the archive's bags where the store let go of them.

Reads a day at a time, a few hundred observations of it, evenly spaced. Knows no analysis and changes nothing.
"""

from __future__ import annotations

import csv
import hashlib
import logging
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path

import numpy as np
import zstandard
from numpy.typing import NDArray
from sqlalchemy import select

from fieldpost.errors import BrokenStateError
from flows.bags.bag_format import PAYLOAD_FOLDER
from flows.bags.day import DayReader
from flows.bags.observations_file import CSV_NAME, TAR_NAME
from server.analyses import AnalysisInput
from server.archive.bags import InstrumentDay, day_to_unix_nanos, list_instrument_days, newest_bag, read_extent
from server.archive.shelf import Shelf
from server.storage.store import Store
from server.storage.tables import bags, instruments, stations

logger = logging.getLogger(__name__)

BYTES_MAX = 256 * 1024 * 1024
"""Of the payloads of one day that are held at once."""


@dataclass(frozen=True, slots=True)
class RealDay:
    """Some observations of a day of an instrument.

    Attributes:
        day: Which.
        observations: By measure time.
        measure_unix_nanos: Of all observations of the day: (observations,), int64, ascending.
    """

    day: InstrumentDay
    observations: list[AnalysisInput]
    measure_unix_nanos: NDArray[np.int64]


def find_real_days(store: Store, first_day: date, last_day: date) -> list[InstrumentDay]:
    """The days, both ends included, that the store or the archive has observations of."""
    facts = [instruments.c[name] for name in ("instrument_model", "latitude_deg", "longitude_deg", "altitude_m")]
    archived = (
        select(instruments.c.id, stations.c.name, instruments.c.name, bags.c.day, *facts, instruments.c.calibration)
        .join(stations, stations.c.id == instruments.c.station_id)
        .join(bags, bags.c.instrument_id == instruments.c.id)
        .where(bags.c.day >= first_day.isoformat(), bags.c.day <= last_day.isoformat())
        .distinct()
    )
    with store.read() as connection:
        found = {(each.instrument_id, each.day): each for each in list_instrument_days(connection, first_day, last_day)}
        for row in connection.execute(archived):
            day = InstrumentDay(row[0], row[1], row[2], date.fromisoformat(row[3]), *row[4:])
            found.setdefault((day.instrument_id, day.day), day)
    return sorted(found.values(), key=lambda each: (each.station, each.instrument, each.day))


def read_real_day(store: Store, shelf: Shelf, day: InstrumentDay, observations_max: int) -> RealDay | None:
    """A day, from the store where that has it whole, else from its newest bag; None where neither can be read.

    A damaged day is logged and left out: one of many, it is for the archive's runs to complain about.
    """
    with store.read() as connection:
        bag = newest_bag(connection, day)
        extent = read_extent(connection)
    reader = DayReader(store, day)
    try:
        rows = list(reader.observations(extent))
        if bag is not None and bag.observation_count > len(rows):
            with shelf.open(bag.path) as folder:
                return _read_bag(folder, day, observations_max)
        chosen = _evenly([row.payload_bytes for row in rows], observations_max)
        inputs = [_to_input(day, rows[place].measure_unix_nanos, reader.read(rows[place])[1]) for place in chosen]
    except BrokenStateError as error:
        logger.warning("day is left out", extra={"day": str(day), "error": str(error)})
        return None
    return RealDay(day, inputs, np.array([row.measure_unix_nanos for row in rows], np.int64)) if rows else None


def _evenly(payload_bytes: list[int], observations_max: int) -> list[int]:
    """The places of those that are read: no more than observations_max, nor BYTES_MAX."""
    stride = max(-(-len(payload_bytes) // observations_max), -(-sum(payload_bytes) // BYTES_MAX), 1)
    return list(range(0, len(payload_bytes), stride))


def _to_input(day: InstrumentDay, measure_unix_nanos: int, content: bytes) -> AnalysisInput:
    return AnalysisInput(
        content, day.instrument_model, measure_unix_nanos, day.calibration, day.latitude_deg, day.longitude_deg
    )


def _read_bag(folder: Path, day: InstrumentDay, observations_max: int) -> RealDay:
    """Reads a bag's observations; each is compared with the SHA-256 that the bag has of it."""
    data = folder / PAYLOAD_FOLDER
    try:
        with (data / CSV_NAME).open(newline="", encoding="utf-8") as table:
            lines = list(csv.DictReader(table))
        nanos = [_parse_instant(line["measure_time"]) for line in lines]
        chosen = set(_evenly([int(line["payload_bytes"]) for line in lines], observations_max))
        inputs = [
            _to_input(day, nanos[place], content)
            for place, content in enumerate(_read_members(data / TAR_NAME, lines, chosen))
            if content is not None
        ]
    except (OSError, KeyError, ValueError, tarfile.TarError, zstandard.ZstdError) as error:
        raise BrokenStateError(f"expected a readable bag in {folder}, but got: {error!r}") from error
    return RealDay(day, inputs, np.array(nanos, np.int64))


def _read_members(path: Path, lines: list[dict[str, str]], chosen: set[int]) -> Iterator[bytes | None]:
    """The content of each chosen member, in order; None for the others."""
    with (
        path.open("rb") as file,
        zstandard.ZstdDecompressor().stream_reader(file) as stream,
        tarfile.open(fileobj=stream, mode="r|") as tar,
    ):
        for place, (member, line) in enumerate(zip(tar, lines, strict=True)):
            content = tar.extractfile(member) if place in chosen else None
            if content is None:
                yield None
                continue
            payload = content.read()
            if member.name != line["member"] or hashlib.sha256(payload).hexdigest() != line["sha256"]:
                raise BrokenStateError(
                    f"expected {line['member']} as {CSV_NAME} has it, but got {member.name} ({path})"
                )
            yield payload


def _parse_instant(text: str) -> int:
    """The opposite of format_instant: nine digits of a second are more than datetime keeps."""
    seconds, _, digits = text.removesuffix("Z").partition(".")
    whole = datetime.fromisoformat(f"{seconds}+00:00")
    since_midnight_s = whole.hour * 3600 + whole.minute * 60 + whole.second
    return day_to_unix_nanos(whole.date()) + since_midnight_s * 10**9 + int(digits)
