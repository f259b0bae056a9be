"""A store with one day of one instrument in it, as the server would have filled it: through the ingest, and predicted.

Telegrams are those of a simulated CL51, one every 15 s, so that they compress as real ones do; or small payloads, so
that many fit. The heights are a day's course with noise: what they say does not matter here, that they all differ does.
Knows no bag.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from datetime import date
from itertools import islice
from pathlib import Path

import numpy as np
from sqlalchemy import insert, select

from fieldpost.payload import encode_payload
from fieldpost.simulation.cl51 import SimulatedCl51
from fieldpost.v1 import observation_pb2 as pb
from flows.archiving.picture import OBSERVATIONS_MAX
from server.analyses import AnalysisResult, AnalysisVariable
from server.archive.bags import NANOS_PER_DAY, day_to_unix_nanos
from server.ingest.core import Ingest
from server.ingest.registry import RegisteredInstrument, RegisteredStation, register
from server.models.card import ModelKind, ModelState
from server.queries.predictions import NewPrediction, encode_result, write_predictions
from server.storage.store import Store
from server.storage.tables import model_versions, observations

DAY = date(2025, 6, 16)
STATION, INSTRUMENT = "bench-archive", "cl51"
EPOCH = "0f3a5c71" * 4
ANALYSIS = "boundary-layer-height"
VERSIONS = (1, 2)
BUNDLE = 256
PREDICTION_CHUNK = 10_000
HEIGHT = "atmosphere_boundary_layer_thickness"
SMALL_BYTES = 200


def make_telegrams(count: int) -> Iterator[bytes]:
    """The telegrams of a CL51 over the day, evenly spaced."""
    instrument = SimulatedCl51(7)
    start_s = day_to_unix_nanos(DAY) / 1e9
    return (instrument.telegram(start_s + index * 86_400 / count) for index in range(count))


def make_small(count: int) -> Iterator[bytes]:
    """Payloads of SMALL_BYTES, half of it digits that repeat and half of it noise; telegrams where a picture looks."""
    generator = np.random.default_rng(7)
    instrument = SimulatedCl51(7)
    start_s = day_to_unix_nanos(DAY) / 1e9
    half = SMALL_BYTES // 2
    stride = -(-count // OBSERVATIONS_MAX)
    for index in range(count):
        if index % stride == 0:
            yield instrument.telegram(start_s + index * 86_400 / count)
        else:
            yield b"%0*d" % (half, index) + generator.bytes(half)


def fill_day(store: Store, contents: Iterable[bytes], count: int) -> int:
    """Stores the day and its predictions.

    Args:
        store: An empty one.
        contents: The instrument's bytes of each observation.
        count: How many there are.

    Returns:
        Bytes of the instrument.
    """
    instrument = RegisteredInstrument(name=INSTRUMENT, instrument_model="cl51")
    place = {"latitude_deg": 52.2, "longitude_deg": 14.1, "altitude_m": 103.0}
    station = RegisteredStation(name=STATION, instruments=[instrument], **place)
    store.write(lambda connection: register(connection, [station])).result()
    payload_bytes = 0
    ingest = Ingest(store, payload_bytes_max=2**20, on_stored=lambda: None)
    remaining = enumerate(contents)
    while chunk := list(islice(remaining, BUNDLE)):
        payload_bytes += sum(len(content) for _, content in chunk)
        bundle = pb.Bundle(observations=[make_observation(index, content, count) for index, content in chunk])
        receipt = ingest.submit(bundle, timeout_s=60).result()
        if receipt.rejections:
            raise SystemExit(f"expected all observations to be taken, but got {receipt.rejections[0]}")
    ingest.close()
    for version in VERSIONS:
        _predict(store, version)
    return payload_bytes


def make_observation(index: int, content: bytes, count: int) -> pb.Observation:
    """An observation as a station sends it."""
    payload, encoding = encode_payload(content)
    header = pb.ObservationHeader(station=STATION, instrument=INSTRUMENT, epoch=EPOCH, sequence=index + 1)
    header.sha256, header.payload_bytes = hashlib.sha256(content).digest(), len(content)
    header.payload_encoding, header.payload_format = encoding, "vaisala-cl"
    unix_nanos = day_to_unix_nanos(DAY) + index * NANOS_PER_DAY // count
    header.measure_time.FromNanoseconds(unix_nanos)
    clock = header.capture_clock
    clock.wall_time.FromNanoseconds(unix_nanos + 1_234_567_890)
    clock.monotonic_nanos, clock.boot_id = index * 15_000_000_000, "b" * 32
    clock.clock_sync = pb.CLOCK_SYNC_SYNCHRONISED
    header.origin = f"cl51:serial-2025-06-16#{index}"
    return pb.Observation(header=header, payload=payload)


def _predict(store: Store, version: int) -> None:
    row = {"analysis": ANALYSIS, "version": version, "state": ModelState.RETIRED, "kind": ModelKind.BUILT_IN}
    made = insert(model_versions).values(**row).returning(model_versions.c.id)
    model_row_id = store.write(lambda connection: connection.execute(made).scalar_one()).result()
    generator = np.random.default_rng(version)
    columns = (observations.c.id, observations.c.instrument_id, observations.c.measure_unix_nanos)
    last_id = 0
    while True:
        with store.read() as connection:
            query = select(*columns).where(observations.c.id > last_id).order_by(observations.c.id)
            rows = connection.execute(query.limit(PREDICTION_CHUNK)).all()
        if not rows:
            return
        new = [
            NewPrediction(row[0], model_row_id, row[1], row[2], row[2] + 10**9, content, is_failure=False)
            for row, content in zip(rows, _answers([row[2] for row in rows], generator), strict=True)
        ]
        store.write(lambda connection, new=new: write_predictions(connection, new)).result()  # type: ignore[misc]
        last_id = rows[-1][0]


def _answers(unix_nanos: list[int], generator: np.random.Generator) -> Iterator[bytes]:
    """A height, its standard error and how far it can be trusted, for each instant."""
    for nanos in unix_nanos:
        hour = (nanos - day_to_unix_nanos(DAY)) / 3.6e12
        height_m = 300 + 1200 * np.exp(-(((hour - 15) / 4) ** 2)) + generator.normal(0, 40)
        values = ((HEIGHT, "m", height_m), (f"{HEIGHT}_standard_error", "m", 30 + generator.exponential(20)))
        variables = [AnalysisVariable(name, unit, np.array([value], np.float32)) for name, unit, value in values]
        variables.append(AnalysisVariable("quality_flag", "1", np.array([generator.integers(0, 3)], np.float32)))
        yield encode_result(AnalysisResult(np.array([nanos], np.int64), tuple(variables)))


def open_empty(folder: Path) -> Store:
    """A store without anything, in the folder's own files."""
    folder.mkdir(parents=True, exist_ok=True)
    return Store(f"sqlite:///{folder / 'fieldpost.db'}", folder / "segments")
