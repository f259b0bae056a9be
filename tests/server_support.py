"""What the server's tests share: observations, bundles, a registered store."""

from __future__ import annotations

import hashlib
from pathlib import Path

from fieldpost.payload import encode_payload
from fieldpost.v1 import observation_pb2 as pb
from server.ingest.registry import RegisteredInstrument, RegisteredStation, register
from server.storage.store import Store

EPOCH = "0123456789abcdef" * 2
START_NANOS = 1_750_000_000_000_000_000


def make_observation(
    sequence: int,
    content: bytes | None = None,
    *,
    station: str = "lindenberg",
    instrument: str = "cl51",
    epoch: str = EPOCH,
) -> pb.Observation:
    """A sound observation; its content is told by its sequence unless given."""
    content = content if content is not None else b"observation %d " % sequence * 20
    payload, encoding = encode_payload(content)
    header = pb.ObservationHeader(
        station=station,
        instrument=instrument,
        epoch=epoch,
        sequence=sequence,
        sha256=hashlib.sha256(content).digest(),
        payload_bytes=len(content),
        payload_encoding=encoding,
        payload_format="vaisala-cl",
        origin=f"test#{sequence}",
    )
    header.measure_time.FromNanoseconds(START_NANOS + sequence * 15_000_000_000)
    header.capture_clock.wall_time.FromNanoseconds(START_NANOS + sequence * 15_000_000_000 + 1)
    return pb.Observation(header=header, payload=payload)


def make_bundle(*sequences: int, **names: str) -> pb.Bundle:
    """A bundle of sound observations."""
    return pb.Bundle(observations=[make_observation(each, **names) for each in sequences])  # type: ignore[arg-type]


def open_store(folder: Path, *, instruments: tuple[str, ...] = ("cl51",), database_url: str = "") -> Store:
    """A store in which station lindenberg is registered, each instrument named like its model; without URL: SQLite."""
    store = Store(database_url or f"sqlite:///{folder / 'fieldpost.db'}", folder / "segments")
    station = RegisteredStation(
        name="lindenberg",
        instruments=[RegisteredInstrument(name=name, instrument_model=name) for name in instruments],
    )
    store.write(lambda connection: register(connection, [station])).result()
    return store
