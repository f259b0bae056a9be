"""What the tests of restore share: a day of every kind of observation, let go, and all that a store says of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from archive_support import (
    DAY,
    NOW_NANOS,
    archive_day,
    fail_prediction,
    ingest_all,
    make_archivist,
    make_site,
    model_row_id,
    write_prediction,
)
from server_support import START_NANOS, make_observation
from sqlalchemy import select, update

from fieldpost.payload import decode_checked
from fieldpost.v1 import observation_pb2 as pb
from flows.restoring.restorer import Restorer
from flows.site import Site
from server.analyses import AnalysisResult, AnalysisVariable
from server.archive.retention import PruneReport, prune
from server.queries.predictions import NewPrediction, encode_result, write_predictions
from server.storage.segments import Place
from server.storage.store import Store
from server.storage.tables import epochs, instruments, model_versions, observations, predictions, segments

OTHER_EPOCH = "fedcba9876543210" * 2
LATER_NANOS = NOW_NANOS + 40 * 86_400 * 10**9
KEEP_UNTIL_NANOS = LATER_NANOS + 30 * 86_400 * 10**9
HOT_DAYS = 30
VARIETY_COUNT = 14


def ingest_variety(store: Store) -> None:
    """Telegrams and files, packed and not, with clocks right, corrected, wrong and absent, and with quick looks."""
    random = Random(7)
    sent = [make_observation(sequence) for sequence in range(1, 7)]
    sent[1] = make_observation(2, random.randbytes(3000))  # does not shrink: travels as it is
    sent[2] = make_observation(3, b"")
    sent[3].header.payload_format = "netcdf"
    sent[3].header.ClearField("measure_time")  # the payload tells
    sent[4].header.ClearField("measure_time")  # nobody tells
    sent[4].header.origin = 'C5061500.DAT,"new"\r\nline#7 \N{GREEK SMALL LETTER MU}'
    clock = sent[5].header.capture_clock
    clock.boot_id, clock.monotonic_nanos, clock.clock_sync = "b" * 32, 123_456_789, pb.CLOCK_SYNC_UNSYNCHRONISED
    clock.wall_time.FromNanoseconds(5_000_000_001)  # of 1970
    sent[5].header.corrected_wall_time.FromNanoseconds(START_NANOS + 123_456_789)
    looks = [make_observation(sequence, epoch=OTHER_EPOCH) for sequence in range(1, 6)]
    looks[0].header.quick_look.model = "mixing@0123456789ab"
    looks[0].header.quick_look.mixing_layer_height_m = 1234.000000001
    looks[0].header.quick_look.quality = pb.QUICK_LOOK_QUALITY_GOOD
    looks[0].header.quick_look.duration_ms = 0.1
    looks[1].header.quick_look.quality = pb.QUICK_LOOK_QUALITY_BAD
    looks[2].header.quick_look.SetInParent()
    looks[3].header.ClearField("capture_clock")  # the server's clock tells; measured on the day all the same
    looks[4].header.capture_clock.Clear()
    looks[4].header.capture_clock.SetInParent()
    far = [make_observation(sequence) for sequence in (7, 8, 9)]
    for observation, sequence in zip(far, (900_000, 900_001, 2**53), strict=True):  # with gaps between
        observation.header.sequence = sequence
    ingest_all(store, [*sent, *looks, *far])


def predict_variety(store: Store) -> None:
    """Values, classes, several samples, none, failures, provisional ones, and one made years later."""
    words = ("clear", "low cloud", "rain")
    with store.read() as connection:
        rows = connection.execute(select(observations).order_by(observations.c.id)).all()
    model_id = model_row_id(store, "sky", 2)
    for place, row in enumerate(rows):
        is_time_news = row.measure_unix_nanos == row.capture_unix_nanos and row.sequence == 4
        measured = row.measure_unix_nanos - is_time_news * 60 * 10**9
        nanos = np.array([measured + each for each in range(place % 3 + 1)], np.int64)
        values = np.array([float("nan"), 0.1, 2.0][: len(nanos)], np.float32)
        kinds = (
            AnalysisVariable("sky_class", "1", np.float32(place % 3) + 0 * np.nan_to_num(values), words),
            AnalysisVariable("time", "s", values),  # a name that the file needs itself
        )
        content = encode_result(AnalysisResult(nanos, kinds[: 1 + place % 2]))
        made = measured + 10 * 365 * 86_400 * 10**9 + 1 + place
        about = (row.id, model_id, row.instrument_id, measured, made, content, False, is_time_news)
        new = NewPrediction(*about, is_provisional=place % 4 == 1)
        store.write(lambda connection, new=new: write_predictions(connection, [new])).result(10)  # type: ignore[misc]
    fail_prediction(store, 900_000, "expected a telegram,\nbut got \N{GREEK SMALL LETTER MU}")
    content = encode_result(AnalysisResult(np.array([START_NANOS], np.int64), ()))
    write_prediction(store, 900_001, content, predict_nanos=NOW_NANOS + 1)


def settle(store: Store) -> None:
    """No observation that is here waits for a prediction."""
    values = {"settled_observation_id": 10**9}
    store.write(lambda connection: connection.execute(update(model_versions).values(**values))).result(10)


def prune_now(site: Site, now_nanos: int = LATER_NANOS, **options: Any) -> PruneReport:
    """Lets go of what is old and in the archive."""
    settle(site.store)
    return prune(site.store, site.shelf, hot_days=HOT_DAYS, now_unix_nanos=now_nanos, **options)


def archive_and_let_go(site: Site) -> None:
    """The day is in the archive alone."""
    archive_day(make_archivist_of(site), LATER_NANOS)
    report = prune_now(site)
    assert report.errors == []
    assert read_rows(site.store) == []


def make_archivist_of(site: Site) -> Any:
    """The archivist of a site whose bags lie in a folder."""
    return make_archivist(site.store, Path(site.shelf.url))


def restore_day(site: Site, **options: Any) -> Any:
    """Brings the one day back."""
    restorer = Restorer(site)
    (day,) = restorer.find_days(DAY, DAY)
    return restorer.restore(day, keep_until_unix_nanos=KEEP_UNTIL_NANOS, **options)


def make_restored_site(store: Store, folder: Path) -> Site:
    """A site beside the store's own data folder."""
    return make_site(store, folder / "archive")


def read_rows(store: Store) -> list[dict[str, Any]]:
    """Each observation as the store has it, but for ids, places and whether it was fresh; header and bytes with it."""
    query = (
        select(observations, epochs.c.epoch, segments.c.name)
        .join(epochs, epochs.c.id == observations.c.epoch_id)
        .join(segments, segments.c.id == observations.c.segment_id)
        .order_by(observations.c.measure_unix_nanos, observations.c.sequence, epochs.c.epoch)
    )
    with store.read() as connection:
        rows = connection.execute(query).all()
    kept = ("epoch", "sequence", "instrument_id", "measure_unix_nanos", "capture_unix_nanos", "payload_bytes", "sha256")
    return [{name: getattr(row, name) for name in kept} | _read_record(store, row) for row in rows]


def _read_record(store: Store, row: Any) -> dict[str, Any]:
    observation = pb.Observation.FromString(store.read_segment(Place(row.name, row.segment_offset, row.stored_bytes)))
    return {"header": observation.header, "content": decode_checked(observation)}


def read_predictions(store: Store) -> list[tuple[Any, ...]]:
    """Each prediction as the store has it, but for ids."""
    columns = (epochs.c.epoch, observations.c.sequence, model_versions.c.analysis, model_versions.c.version)
    facts = ("instrument_id", "measure_unix_nanos", "predict_unix_nanos", "content", "is_failure", "is_provisional")
    query = (
        select(*columns, *(predictions.c[name] for name in facts))
        .join(observations, observations.c.id == predictions.c.observation_id)
        .join(epochs, epochs.c.id == observations.c.epoch_id)
        .join(model_versions, model_versions.c.id == predictions.c.model_version_id)
        .order_by(*columns)
    )
    with store.read() as connection:
        return [tuple(row) for row in connection.execute(query)]


def read_state(store: Store) -> tuple[list[dict[str, Any]], list[tuple[Any, ...]], list[int]]:
    """All that restore promises to bring back: observations, predictions, and how many each instrument has."""
    with store.read() as connection:
        counts = list(connection.scalars(select(instruments.c.observation_count).order_by(instruments.c.id)))
    return read_rows(store), read_predictions(store), counts


def pruned_of(store: Store) -> list[bytes | None]:
    """What epochs promise that is in the archive alone."""
    with store.read() as connection:
        return list(connection.scalars(select(epochs.c.pruned_ranges).order_by(epochs.c.id)))


def sequences(store: Store) -> Sequence[int]:
    """Of the observations that the store holds."""
    return [row["sequence"] for row in read_rows(store)]
