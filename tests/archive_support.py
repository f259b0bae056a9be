"""What the archive's tests share: a store with observations and predictions of one day, and a look at a bag."""

from __future__ import annotations

import csv
import hashlib
import io
import tarfile
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import zstandard
from server_support import START_NANOS, make_observation
from sqlalchemy import insert, select

from fieldpost.v1 import observation_pb2 as pb
from flows.archiving.archivist import ArchivedDay, Archivist
from flows.site import Site, open_shelves
from server.analyses import AnalysisResult, AnalysisVariable
from server.ingest.core import Ingest
from server.ingest.registry import RegisteredInstrument, RegisteredStation, register
from server.queries.predictions import NewPrediction, encode_failure, encode_result, write_predictions
from server.settings import Settings
from server.storage.store import Store
from server.storage.tables import bags, model_versions, observations

DAY = date(2025, 6, 15)
"""The UTC day of server_support.START_NANOS."""
NOW_NANOS = START_NANOS + 86_400 * 10**9
HEIGHT, ERROR, FLAG = (
    "atmosphere_boundary_layer_thickness",
    "atmosphere_boundary_layer_thickness_standard_error",
    "quality_flag",
)


def open_site(folder: Path, *, instruments: tuple[str, ...] = ("cl51",)) -> Store:
    """The store of a registered station with a position, where the server's settings expect it in a data folder."""
    folder.mkdir(parents=True, exist_ok=True)
    store = Store(f"sqlite:///{folder / 'fieldpost.db'}", folder / "segments")
    station = RegisteredStation(
        name="lindenberg",
        latitude_deg=52.21,
        longitude_deg=14.12,
        altitude_m=103.0,
        instruments=[RegisteredInstrument(name=name, instrument_model=name) for name in instruments],
    )
    store.write(lambda connection: register(connection, [station])).result(10)
    return store


def ingest_all(store: Store, sent: Sequence[pb.Observation]) -> None:
    """Sends observations through the real ingest, in one bundle an epoch."""
    ingest = Ingest(store, payload_bytes_max=2**25, on_stored=lambda: None)
    try:
        for epoch in dict.fromkeys(each.header.epoch for each in sent):
            bundle = pb.Bundle(observations=[each for each in sent if each.header.epoch == epoch])
            receipt = ingest.submit(bundle).result(10)
            assert not receipt.rejections
    finally:
        ingest.close()


def ingest_telegrams(store: Store, *sequences: int, instrument: str = "cl51") -> None:
    """Small observations, 15 s apart."""
    ingest_all(store, [make_observation(each, instrument=instrument) for each in sequences])


def predict(store: Store, *sequences: int, version: int = 1, predict_nanos: int = NOW_NANOS) -> None:
    """Predictions of boundary-layer-height: one sample each, 100 m higher with each sequence; 3 has no height."""
    for sequence in sequences:
        height_m = float("nan") if sequence == 3 else 100.0 * sequence
        variables = tuple(
            AnalysisVariable(name, unit, np.array([value], np.float32))
            for name, unit, value in ((HEIGHT, "m", height_m), (ERROR, "m", 12.5), (FLAG, "1", 1.0))
        )
        nanos = np.array([START_NANOS + sequence * 15_000_000_000], np.int64)
        content = encode_result(AnalysisResult(nanos, variables))
        write_prediction(store, sequence, content, version=version, predict_nanos=predict_nanos)


def fail_prediction(store: Store, sequence: int, failure: str) -> None:
    """A prediction that says only why there is none."""
    write_prediction(store, sequence, encode_failure(failure), is_failure=True)


def write_prediction(
    store: Store,
    sequence: int,
    content: bytes,
    *,
    analysis: str = "boundary-layer-height",
    version: int = 1,
    predict_nanos: int = NOW_NANOS,
    is_failure: bool = False,
) -> None:
    """A prediction on the observation of this sequence, as the dispatcher writes it."""
    model_id = model_row_id(store, analysis, version)
    with store.read() as connection:
        row = connection.execute(select(observations).where(observations.c.sequence == sequence)).one()
    new = NewPrediction(row.id, model_id, row.instrument_id, row.measure_unix_nanos, predict_nanos, content, is_failure)
    store.write(lambda connection: write_predictions(connection, [new])).result(10)


def model_row_id(store: Store, analysis: str, version: int) -> int:
    """The row of a model version, made where it is missing."""
    query = select(model_versions.c.id).where(
        model_versions.c.analysis == analysis, model_versions.c.version == version
    )
    with store.read() as connection:
        found = connection.scalar(query)
    if found is None:
        row = {"analysis": analysis, "version": version, "state": "active", "kind": "built-in"}
        found = store.write(
            lambda connection: connection.execute(
                insert(model_versions).values(**row).returning(model_versions.c.id)
            ).scalar_one()
        ).result(10)
    return int(found)


def make_archivist(store: Store, folder: Path, *, copy: Path | None = None, **options: Any) -> Archivist:
    """An archivist of a store whose bags lie in a folder."""
    return Archivist(make_site(store, folder, copy=copy), **options)


def make_site(store: Store, folder: Path, *, copy: Path | None = None) -> Site:
    """A site whose bags lie in a folder, and their copies, if any, in another one."""
    settings = Settings(data_folder=folder.parent, archive_folder=str(folder), archive_copy_folder=str(copy or ""))
    return Site(settings, store, *open_shelves(settings))


def archive_day(archivist: Archivist, now_nanos: int = NOW_NANOS, instrument: str = "cl51") -> ArchivedDay:
    """Archives the one day of an instrument that these tests have."""
    (day,) = archivist.find_days(DAY, DAY, instrument=instrument)
    return archivist.archive(day, now_nanos)


def read_tar(bag: Path) -> dict[str, bytes]:
    """Content by member, in the order of the tar."""
    with zstandard.open(bag / "data" / "observations.tar.zst") as stream:
        content = stream.read()
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]


def read_csv(bag: Path) -> list[dict[str, str]]:
    """The lines about the observations."""
    with (bag / "data" / "observations.csv").open(newline="", encoding="utf-8") as table:
        return list(csv.DictReader(table))


def recorded(store: Store) -> list[tuple[str, int]]:
    """(path, version) of all recorded bags."""
    with store.read() as connection:
        rows = connection.execute(select(bags.c.path, bags.c.version).order_by(bags.c.path)).all()
    return [(row.path, row.version) for row in rows]


def hash_tree(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def parts(archive: Path) -> list[Path]:
    """What ended runs left."""
    return list(archive.rglob(".part-*"))
