"""Writes observations into the store: which are new, where their bytes go, which rows are made.

Runs inside a transaction of the store's writer, in its thread alone, so that what it looks up cannot change before
it has written.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Table, case, insert, or_, select, update

from fieldpost.ranges import RangeSet
from fieldpost.v1 import observation_pb2 as pb
from fieldpost.v1 import receipt_pb2
from server.admission import CheckedBundle, judge, write_receipt
from server.segments import SegmentWriter
from server.tables import epochs, instruments, observations, segments, stations


@dataclass(slots=True)
class InstrumentCounts:
    """What became of the observations of one instrument."""

    stored: int = 0
    duplicates: int = 0
    rejected: int = 0


@dataclass(frozen=True, slots=True)
class BundleOutcome:
    """What became of a bundle."""

    receipt: receipt_pb2.Receipt
    counts: dict[str, InstrumentCounts] = field(default_factory=dict)


class Ledger:
    """Writes bundles; remembers the row ids of names between transactions."""

    def __init__(self, segments: SegmentWriter) -> None:
        self._segments = segments
        self._ids: dict[tuple[str, ...], int] = {}

    def forget(self) -> None:
        """Forgets all ids: a transaction that made some was undone."""
        self._ids.clear()

    def write(self, connection: Connection, bundles: Sequence[CheckedBundle]) -> list[BundleOutcome]:
        """Writes what is new of these bundles; returns the outcome of each, true once the transaction is committed."""
        new: list[pb.Observation] = []
        foreign_ids: list[tuple[int, int]] = []
        held_in_group: dict[tuple[str, str, int], bytes] = {}
        outcomes = []
        for bundle in bundles:
            outcome = BundleOutcome(receipt_pb2.Receipt())
            held = RangeSet()
            rejections = []
            duplicate_count = 0
            for instrument, rejection in bundle.rejections:
                rejections.append(rejection)
                outcome.counts.setdefault(instrument, InstrumentCounts()).rejected += 1
            epoch_id = self._epoch_id(connection, bundle)
            held_before = self._held(connection, epoch_id, bundle)
            for observation in bundle.sound:
                header = observation.header
                identity = (bundle.station, bundle.epoch, header.sequence)
                instrument_id = self._instrument_id(connection, bundle.station, header.instrument)
                judgement = judge(
                    header,
                    is_registered=instrument_id is not None,
                    held_sha256=held_in_group.get(identity) or held_before.get(header.sequence),
                )
                counts = outcome.counts.setdefault(header.instrument, InstrumentCounts())
                if judgement.rejection is not None:
                    rejections.append(judgement.rejection)
                    counts.rejected += 1
                    continue
                held.add(header.sequence)
                if judgement.is_new:
                    assert epoch_id is not None and instrument_id is not None  # registered: both exist
                    new.append(observation)
                    foreign_ids.append((epoch_id, instrument_id))
                    held_in_group[identity] = header.sha256
                    counts.stored += 1
                else:
                    duplicate_count += 1
                    counts.duplicates += 1
            outcome.receipt.CopyFrom(write_receipt(bundle, held, rejections, duplicate_count))
            outcomes.append(outcome)
        if new:
            self._insert(connection, new, foreign_ids)
        return outcomes

    def _insert(self, connection: Connection, new: list[pb.Observation], foreign_ids: list[tuple[int, int]]) -> None:
        places = self._segments.append([observation.SerializeToString() for observation in new])
        rows = []
        for observation, (epoch_id, instrument_id), place in zip(new, foreign_ids, places, strict=True):
            header = observation.header
            capture = header.capture_clock.wall_time.ToNanoseconds() or time.time_ns()
            measure = header.measure_time.ToNanoseconds() if header.HasField("measure_time") else capture
            rows.append(
                {
                    "epoch_id": epoch_id,
                    "sequence": header.sequence,
                    "instrument_id": instrument_id,
                    "measure_unix_nanos": measure,
                    "capture_unix_nanos": capture,
                    "payload_bytes": header.payload_bytes,
                    "sha256": header.sha256,
                    "segment_id": self._segment_id(connection, place.segment),
                    "segment_offset": place.offset,
                    "stored_bytes": place.length,
                }
            )
        connection.execute(insert(observations), rows)
        self._count(connection, rows)

    def _count(self, connection: Connection, rows: list[dict[str, Any]]) -> None:
        """Keeps what is told of an instrument without reading its observations."""
        measured: dict[int, list[int]] = {}
        for row in rows:
            measured.setdefault(row["instrument_id"], []).append(row["measure_unix_nanos"])
        for instrument_id, instants in measured.items():
            newest = max(instants)
            last = instruments.c.last_measure_unix_nanos
            counts = {
                "observation_count": instruments.c.observation_count + len(instants),
                "last_measure_unix_nanos": case((or_(last.is_(None), last < newest), newest), else_=last),
            }
            connection.execute(update(instruments).where(instruments.c.id == instrument_id).values(**counts))

    def _held(self, connection: Connection, epoch_id: int | None, bundle: CheckedBundle) -> dict[int, bytes]:
        """SHA-256 by sequence, of those of the bundle's sequences that are held."""
        if epoch_id is None:
            return {}
        sequences = [observation.header.sequence for observation in bundle.sound]
        query = select(observations.c.sequence, observations.c.sha256).where(
            observations.c.epoch_id == epoch_id, observations.c.sequence.in_(sequences)
        )
        return {row.sequence: row.sha256 for row in connection.execute(query)}

    def _epoch_id(self, connection: Connection, bundle: CheckedBundle) -> int | None:
        """The epoch's row, made where it is missing; None where the station is not registered."""
        key = ("epoch", bundle.station, bundle.epoch)
        if key not in self._ids:
            station_id = connection.scalar(select(stations.c.id).where(stations.c.name == bundle.station))
            if station_id is None:
                return None
            self._ids[key] = _find_or_insert(connection, epochs, station_id=station_id, epoch=bundle.epoch)
        return self._ids[key]

    def _instrument_id(self, connection: Connection, station: str, instrument: str) -> int | None:
        """The instrument's row. A miss is not remembered: it may be registered in a moment."""
        key = ("instrument", station, instrument)
        found = self._ids.get(key)
        if found is None:
            query = select(instruments.c.id).join(stations)
            found = connection.scalar(query.where(stations.c.name == station, instruments.c.name == instrument))
            if found is not None:
                self._ids[key] = found
        return found

    def _segment_id(self, connection: Connection, name: str) -> int:
        key = ("segment", name)
        if key not in self._ids:
            self._ids[key] = _find_or_insert(connection, segments, name=name)
        return self._ids[key]


def _find_or_insert(connection: Connection, table: Table, **values: object) -> int:
    """The id of the row that has these values, made where it is missing."""
    found = connection.scalar(select(table.c.id).where(*(table.c[key] == value for key, value in values.items())))
    if found is None:
        found = connection.execute(insert(table).values(**values).returning(table.c.id)).scalar_one()
    return int(found)
