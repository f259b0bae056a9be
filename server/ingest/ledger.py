"""Writes observations into the store: which are new, where their bytes go, which rows are made.

Runs inside a transaction of the store's writer, in its thread alone, so that what it looks up cannot change before
it has written. Between two transactions another process may have written; what it remembers takes that into account.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from sqlalchemy import Connection, Table, bindparam, case, func, insert, select, update

from fieldpost.ranges import RangeSet
from fieldpost.v1 import observation_pb2 as pb
from fieldpost.v1 import receipt_pb2
from server.ingest.admission import CheckedBundle, judge, write_receipt
from server.ingest.observation_rows import ObservationRow, insert_observations, read_insert_mark
from server.instants import captured_time, to_nanos
from server.storage.segments import Place, SegmentWriter
from server.storage.tables import epochs, instruments, observations, segments, stations


@dataclass(slots=True)
class InstrumentCounts:
    """What became of the observations of one instrument."""

    stored: int = 0
    duplicates: int = 0
    rejected: int = 0


@dataclass(frozen=True, slots=True)
class BundleOutcome:
    """What became of a bundle, and by instrument, of its observations."""

    receipt: receipt_pb2.Receipt
    counts: dict[str, InstrumentCounts]


class _New(NamedTuple):
    """An observation that is to be written."""

    observation: pb.Observation
    epoch_id: int
    instrument_id: int
    place: Place | None
    """Where its record lies already; None where it is still to be appended."""


@dataclass(frozen=True, slots=True)
class _Held:
    """What of a bundle's identities was held before this group."""

    sha256: dict[int, bytes]
    """By sequence."""
    pruned: RangeSet
    """Sequences that were held, archived, and let go here; their SHA-256 went with them."""


LIVE_AGE_NANOS = 600 * 10**9
"""What was captured longer ago than this when it is stored is backlog: it is predicted after what is fresh."""

# Built once: building a statement costs more than running it.
_HELD = select(observations.c.sequence, observations.c.sha256).where(
    observations.c.epoch_id == bindparam("epoch_id"),
    observations.c.sequence.in_(bindparam("sequences", expanding=True)),
)
_LAST = instruments.c.last_measure_unix_nanos
_COUNT = (
    update(instruments)
    .where(instruments.c.id == bindparam("counted_id"))
    .values(
        observation_count=instruments.c.observation_count + bindparam("count"),
        # The newer of the two; where nothing was measured before, the new one.
        last_measure_unix_nanos=case((bindparam("newest") < _LAST, _LAST), else_=bindparam("newest")),
    )
)


class Ledger:
    """Writes bundles; remembers the row ids of names, and the last sequence of each epoch, between transactions."""

    def __init__(self, segments: SegmentWriter) -> None:
        self._segments = segments
        self._ids: dict[tuple[str, ...], int] = {}
        self._segment = ("", 0)
        self._last_sequences: dict[int, int] = {}
        self._insert_mark: object = None
        self._driver: object = None

    def write(self, connection: Connection, bundles: Sequence[CheckedBundle]) -> list[BundleOutcome]:
        """Writes what is new of these bundles; returns the outcome of each, true once the transaction is committed."""
        driver = connection.connection.driver_connection
        if driver is not self._driver:  # a transaction was undone; or the database was away, and may be a restored one
            self._forget()
            self._driver = driver
        try:
            return self._write(connection, bundles)
        except BaseException:
            self._forget()  # at once: the next bundles may stand in the same transaction
            raise

    def _forget(self) -> None:
        """Forgets all ids: those that were made may not be there, and may become others'."""
        self._ids.clear()
        self._segment = ("", 0)
        self._last_sequences.clear()

    def _write(self, connection: Connection, bundles: Sequence[CheckedBundle]) -> list[BundleOutcome]:
        insert_mark = read_insert_mark(connection)
        if insert_mark != self._insert_mark:
            self._last_sequences.clear()  # another process stored something
        new: list[_New] = []
        in_group: dict[tuple[int, int], bytes] = {}
        outcomes = [self._judge(connection, bundle, new, in_group) for bundle in bundles]
        if new:
            self._insert(connection, new)
            insert_mark = read_insert_mark(connection)
        self._insert_mark = insert_mark
        return outcomes

    def _judge(
        self, connection: Connection, bundle: CheckedBundle, new: list[_New], in_group: dict[tuple[int, int], bytes]
    ) -> BundleOutcome:
        """Sorts a bundle's observations into new (added to `new` and `in_group`), held and refused."""
        counts: dict[str, InstrumentCounts] = defaultdict(InstrumentCounts)
        rejections = []
        for instrument, rejection in bundle.rejections:
            rejections.append(rejection)
            counts[instrument].rejected += 1
        epoch_id = self._epoch_id(connection, bundle)
        before = self._held(connection, epoch_id, bundle)
        held = RangeSet()
        duplicate_count = 0
        for observation in bundle.sound:
            header = observation.header
            sequence, instrument = header.sequence, header.instrument
            instrument_id = self._instrument_id(connection, bundle.station, instrument)
            judgement = judge(
                header,
                is_registered=instrument_id is not None,
                held_sha256=in_group.get((epoch_id or 0, sequence)) or before.sha256.get(sequence),
                is_pruned=sequence in before.pruned,
            )
            if judgement.rejection is not None:
                rejections.append(judgement.rejection)
                counts[instrument].rejected += 1
                continue
            held.add(sequence)
            if judgement.is_new:
                assert epoch_id is not None and instrument_id is not None  # registered: both exist
                new.append(_New(observation, epoch_id, instrument_id, bundle.place))
                in_group[epoch_id, sequence] = header.sha256
                counts[instrument].stored += 1
            else:
                duplicate_count += 1
                counts[instrument].duplicates += 1
        return BundleOutcome(write_receipt(bundle, held, rejections, duplicate_count), counts)

    def _insert(self, connection: Connection, new: list[_New]) -> None:
        appended = iter(self._append([each.observation for each in new if each.place is None]))
        rows = []
        now = time.time_ns()
        for observation, epoch_id, instrument_id, place in new:
            header = observation.header
            sequence = header.sequence
            capture = to_nanos(captured_time(header)) or now
            measure = to_nanos(header.measure_time) if header.HasField("measure_time") else capture
            segment, offset, length = place or next(appended)
            segment_id = self._segment_id(connection, segment)
            facts = (measure, capture, header.payload_bytes, header.sha256)
            is_live = now - capture < LIVE_AGE_NANOS
            rows.append(ObservationRow(epoch_id, sequence, instrument_id, *facts, segment_id, offset, length, is_live))
            if sequence > self._last_sequences.get(epoch_id, 0):
                self._last_sequences[epoch_id] = sequence
        insert_observations(connection, rows)
        self._count(connection, rows)

    def _append(self, group: list[pb.Observation]) -> list[Place]:
        if not group:
            return []
        records = [each.SerializeToString() for each in group]
        segment, offsets = self._segments.append(records)
        return [Place(segment, offset, len(record)) for offset, record in zip(offsets, records, strict=True)]

    def _count(self, connection: Connection, rows: list[ObservationRow]) -> None:
        """Keeps what is told of an instrument without reading its observations."""
        measured: dict[int, list[int]] = {}
        for row in rows:
            measured.setdefault(row.instrument_id, []).append(row.measure_unix_nanos)
        connection.execute(
            _COUNT, [{"counted_id": each, "count": len(at), "newest": max(at)} for each, at in measured.items()]
        )

    def _held(self, connection: Connection, epoch_id: int | None, bundle: CheckedBundle) -> _Held:
        if epoch_id is None or not bundle.sound:
            return _Held({}, RangeSet())
        sequences = [observation.header.sequence for observation in bundle.sound]
        last = self._last_sequences.get(epoch_id)
        if last is not None and min(sequences) > last:
            return _Held({}, RangeSet())  # counts upward: by far the commonest bundle asks nothing of the database
        pruned = _read_pruned(connection, epoch_id)
        if last is None:
            query = select(func.max(observations.c.sequence)).where(observations.c.epoch_id == epoch_id)
            last = max(connection.scalar(query) or 0, *(last for _, last in pruned), 0)
            self._last_sequences[epoch_id] = last
        if min(sequences) > last:
            return _Held({}, pruned)
        rows = connection.execute(_HELD, {"epoch_id": epoch_id, "sequences": sequences})
        return _Held({row.sequence: row.sha256 for row in rows}, pruned)

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
        if self._segment[0] != name:  # only the newest is remembered: an object store has one a commit
            self._segment = name, _find_or_insert(connection, segments, name=name)
        return self._segment[1]


def _read_pruned(connection: Connection, epoch_id: int) -> RangeSet:
    content = connection.scalar(select(epochs.c.pruned_ranges).where(epochs.c.id == epoch_id))
    ranges = receipt_pb2.Receipt.FromString(content or b"").held_ranges
    return RangeSet((each.first_sequence, each.last_sequence) for each in ranges)


def _find_or_insert(connection: Connection, table: Table, **values: object) -> int:
    """The id of the row that has these values, made where it is missing."""
    found = connection.scalar(select(table.c.id).where(*(table.c[key] == value for key, value in values.items())))
    if found is None:
        found = connection.execute(insert(table).values(**values).returning(table.c.id)).scalar_one()
    return int(found)
