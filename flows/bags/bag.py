"""Writes the bag of one day of one instrument into a folder, and reads it back.

Time is an argument; knows no shelf, no database of bags and no Prefect.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path

from fieldpost.errors import BrokenStateError
from flows.bags.bag_format import MANIFEST, PAYLOAD_FOLDER, validate, write_tag_files
from flows.bags.day import Contents, DayReader
from flows.bags.durable import FileDigest, digest_file, forget_cached, write_file
from flows.bags.observations_file import format_instant, verify_observations, write_observations
from flows.bags.predictions_file import file_name, verify_predictions, write_predictions
from flows.bags.products import write_products
from flows.bags.provenance import PROVENANCE_NAME, bag_info, describe
from server.archive.bags import InstrumentDay
from server.archive.disk import sync
from server.archive.shelf import Shelf, read_file


class Step(StrEnum):
    """What has just been done; a run can end after any of them."""

    LOCKED = "locked"
    SWEPT = "swept"
    LOOKED = "looked"
    OBSERVATIONS_WRITTEN = "observations written"
    PREDICTIONS_WRITTEN = "predictions written"
    TAGS_WRITTEN = "tags written"
    SYNCED = "synced"
    VERIFIED = "verified"
    PUBLISHED = "published"
    RECORDED = "recorded"


OnStep = Callable[[Step, Path], None]
"""Told after each step, with the folder that the bag is made in, or what the step was about on the shelf."""


def ignore_step(step: Step, folder: Path) -> None:
    """Does nothing."""


def relative_path(day: InstrumentDay, version: int) -> str:
    """Where a bag lies in the archive."""
    return f"{day.station}/{day.instrument}/{day.day:%Y}/{day.day}.v{version}"


def write_part(
    part: Path, reader: DayReader, contents: Contents, version: int, now_unix_nanos: int, on_step: OnStep
) -> str:
    """Writes a whole bag into an empty folder, down to the disk; returns the SHA-256 of its manifest."""
    data = part / PAYLOAD_FOLDER
    data.mkdir()
    observations = ((row, *reader.read(row)) for row in reader.observations(contents.extent))
    payload = write_observations(data, observations, contents.epoch_characters)
    on_step(Step.OBSERVATIONS_WRITTEN, part)
    payload |= _write_series(data, reader, contents, now_unix_nanos)
    on_step(Step.PREDICTIONS_WRITTEN, part)
    provenance = describe(reader.day, contents, version, now_unix_nanos)
    payload[PROVENANCE_NAME] = write_file(data / PROVENANCE_NAME, provenance)
    manifest_sha256 = write_tag_files(part, payload, bag_info(reader.day, contents, version, now_unix_nanos))
    on_step(Step.TAGS_WRITTEN, part)
    for folder in (data, part):
        sync(folder)
    on_step(Step.SYNCED, part)
    return manifest_sha256


def _write_series(data: Path, reader: DayReader, contents: Contents, now_unix_nanos: int) -> dict[str, FileDigest]:
    written = {}
    for series in contents.series:
        path = data / file_name(series)
        rows = reader.predictions(contents.extent, series.model)
        history = f"{format_instant(now_unix_nanos)} written from the store by the archive flow of Fieldpost"
        write_predictions(path, reader.day, contents, series, rows, history=history)
        rows = reader.predictions(contents.extent, series.model)
        for each in [path, *write_products(data, reader.day, series, rows, history)]:
            sync(each)
            written[each.name] = digest_file(each)
    return written


def verify(folder: Path, reader: DayReader, contents: Contents) -> int:
    """Reads a bag back: every file against the manifest, every observation and prediction against the store.

    Returns:
        How many SHA-256 of observations were computed from the bag and found equal.

    Raises:
        BrokenStateError: Something differs.
    """
    data = folder / PAYLOAD_FOLDER
    for path in data.iterdir():
        forget_cached(path)
    validate(folder)
    verified_count = verify_observations(data, reader.observations(contents.extent))
    for series in contents.series:
        rows = reader.predictions(contents.extent, series.model)
        verify_predictions(data / file_name(series), reader.day, contents, series, rows)
    return verified_count


def read_contents_sha256(shelf: Shelf, path: str) -> str:
    """What the bag says that it holds; empty where it cannot be trusted."""
    try:
        content = read_file(shelf, path, f"{PAYLOAD_FOLDER}/{PROVENANCE_NAME}")
        lines = read_file(shelf, path, MANIFEST).decode().splitlines()
        if f"{hashlib.sha256(content).hexdigest()}  {PAYLOAD_FOLDER}/{PROVENANCE_NAME}" not in lines:
            return ""
        return str(json.loads(content)["contents_sha256"])
    except (BrokenStateError, ValueError):
        return ""


def read_manifest_sha256(shelf: Shelf, path: str) -> str:
    """The SHA-256 of a bag's manifest; empty where there is no manifest."""
    try:
        return hashlib.sha256(read_file(shelf, path, MANIFEST)).hexdigest()
    except BrokenStateError:
        return ""
