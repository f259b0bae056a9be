"""Writes the bag of one day of one instrument aside, reads it back, and gives it its name.

Nothing unverified ever has a final name. Time is an argument; knows no database of bags, no lock and no Prefect.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path

from fieldpost.errors import BrokenStateError, TryAgainError
from flows.bags.bag_format import PAYLOAD_FOLDER, read_payload_file, validate, write_tag_files
from flows.bags.day import Contents, DayReader
from flows.bags.durable import FileDigest, digest_file, forget_cached, remove_folder, sync, write_file
from flows.bags.observations_file import format_instant, verify_observations, write_observations
from flows.bags.predictions_file import file_name, verify_predictions, write_predictions
from flows.bags.products import write_products
from flows.bags.provenance import PROVENANCE_NAME, bag_info, describe
from server.archive.bags import InstrumentDay

PART_PREFIX = ".part-"


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
"""Told after each step, with the folder that the bag is in at that moment."""


def ignore_step(step: Step, folder: Path) -> None:
    """Does nothing."""


def relative_path(day: InstrumentDay, version: int) -> str:
    """Where a bag lies in the archive."""
    return f"{day.station}/{day.instrument}/{day.day:%Y}/{day.day}.v{version}"


def sweep(home: Path) -> None:
    """Removes what ended runs left of an instrument; only the holder of its lock may."""
    for part in home.glob(f"*/{PART_PREFIX}*"):
        remove_folder(part)


def write_part(
    part: Path, reader: DayReader, contents: Contents, version: int, now_unix_nanos: int, on_step: OnStep
) -> str:
    """Writes a whole bag under a name of its own, down to the disk; returns the SHA-256 of its manifest."""
    data = part / PAYLOAD_FOLDER
    data.mkdir(parents=True)
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


def publish(part: Path, final: Path) -> None:
    """Gives a bag its final name, durably.

    Raises:
        TryAgainError: Another run was faster, on a file system without working locks.
    """
    if final.exists():
        raise TryAgainError(f"another run has published {final} meanwhile", hint="run again: it will find that bag")
    part.rename(final)  # refuses by itself where final is a folder with something in it
    sync(final.parent)


def read_contents_sha256(folder: Path) -> str:
    """What the bag says that it holds; empty where it cannot be trusted."""
    try:
        return str(json.loads(read_payload_file(folder, PROVENANCE_NAME))["contents_sha256"])
    except BrokenStateError:
        return ""
