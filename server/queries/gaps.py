"""Sequences that are missing: found by counting in the index of identities, a bounded piece at a time.

A piece that holds as many rows as it has sequences lacks nothing, and is never read; only one that lacks some is cut in
halves until it is small enough to be read. So ten million observations cost one walk through an index, and memory
follows the number of gaps alone. It knows nothing of stations that answer: what is missing here may still come.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from sqlalchemy import Connection, bindparam, func, insert, select, update

from fieldpost.ranges import RangeSet
from fieldpost.v1 import receipt_pb2, station_pb2
from server.storage.tables import epochs, observations, stations

COUNTED_TOGETHER = 65_536
READ_TOGETHER = 2048
RANGES_ALONE = 8
"""More small ranges close together are read in one look: what is missing here and there would cost a look for each."""

# Built once: building a statement costs more than running it.
_OF_EPOCH = observations.c.epoch_id == bindparam("epoch_id")
_BETWEEN = (_OF_EPOCH, observations.c.sequence.between(bindparam("first"), bindparam("last")))
_COUNT = select(func.count()).select_from(observations).where(*_BETWEEN)
_READ = select(observations.c.sequence).where(*_BETWEEN).order_by(observations.c.sequence)
_NEXT = select(func.min(observations.c.sequence)).where(_OF_EPOCH, observations.c.sequence >= bindparam("first"))
_NEXT_CAPTURE = (
    select(observations.c.capture_unix_nanos)
    .where(_OF_EPOCH, observations.c.sequence > bindparam("last"))
    .order_by(observations.c.sequence)
    .limit(1)
)


@dataclass(frozen=True, slots=True)
class EpochFacts:
    """What is known of an epoch before anything of it is counted.

    Attributes:
        station_id: Row of its station.
        station: Its name.
        epoch: The epoch.
        epoch_id: Its row; None where nothing of it was ever stored.
        is_current: Whether the station said last that this is its buffer.
        is_online: And that it is connected.
        last_sequence: The highest that the station told of, or that is or was held here.
        held_through: The highest that is or was held here; 0 for none.
        backlog_count: Observations for which the station still waits for a receipt; 0 where it is not current.
        refused_count: Observations that the server refused, as the station says; likewise.
        answered: Sequences that are no gap although they are not held: let go after they were archived, or lost.
    """

    station_id: int
    station: str
    epoch: str
    epoch_id: int | None
    is_current: bool
    is_online: bool
    last_sequence: int
    held_through: int
    backlog_count: int
    refused_count: int
    answered: RangeSet


@dataclass(frozen=True, slots=True)
class EpochLook:
    """What was seen of an epoch.

    Attributes:
        through: Looked at from 1 to here.
        missing: Of that, what is neither held nor answered.
    """

    through: int
    missing: RangeSet


def list_epochs(connection: Connection, station: str = "") -> list[EpochFacts]:
    """All epochs, by station; of one station alone where it is named. The current one is there even where it is empty.

    One statement, with one look into the index for each epoch.
    """
    highest = select(func.max(observations.c.sequence)).where(observations.c.epoch_id == epochs.c.id).scalar_subquery()
    query = select(epochs, highest.label("highest"))
    asked = select(stations.c.id, stations.c.name, stations.c.status).order_by(stations.c.name)
    if station:
        asked = asked.where(stations.c.name == station)
        query = query.where(
            epochs.c.station_id == select(stations.c.id).where(stations.c.name == station).scalar_subquery()
        )
    found: list[EpochFacts] = []
    said = {
        row.id: (row.name, station_pb2.StationStatus.FromString(row.status or b"")) for row in connection.execute(asked)
    }
    seen = set()
    for row in connection.execute(query.order_by(epochs.c.id)):
        name, status = said[row.station_id]
        pruned, lost = read_ranges(row.pruned_ranges), read_ranges(row.lost_ranges)
        held_through = max(row.highest or 0, last_of(pruned))
        for first, last in lost:
            pruned.add(first, last)
        facts = (row.station_id, name, row.epoch, row.id)
        found.append(_describe(*facts, status, held_through, pruned))
        seen.add((row.station_id, row.epoch))
    for station_id, (name, status) in said.items():
        if status.epoch and (station_id, status.epoch) not in seen:
            found.append(_describe(station_id, name, status.epoch, None, status, 0, RangeSet()))
    return sorted(found, key=lambda each: each.station)


def _describe(
    station_id: int,
    station: str,
    epoch: str,
    epoch_id: int | None,
    status: station_pb2.StationStatus,
    held_through: int,
    answered: RangeSet,
) -> EpochFacts:
    is_current = status.epoch == epoch
    return EpochFacts(
        station_id=station_id,
        station=station,
        epoch=epoch,
        epoch_id=epoch_id,
        is_current=is_current,
        is_online=is_current and status.is_online,
        last_sequence=max(held_through, status.last_sequence if is_current else 0),
        held_through=held_through,
        backlog_count=status.backlog_count if is_current else 0,
        refused_count=status.rejected_count if is_current else 0,
        answered=answered,
    )


def look_at(
    connection: Connection, facts: EpochFacts, before: EpochLook | None = None, sequences_max: int | None = None
) -> EpochLook:
    """Looks at an epoch, or goes on where an earlier look ended: what it missed then is looked at again.

    Args:
        connection: For reading.
        facts: The epoch.
        before: The earlier look.
        sequences_max: So many sequences further at most; None for all.
    """
    if before is None or before.through > facts.last_sequence:  # a database that was restored knows less than before
        before = EpochLook(0, RangeSet())
    end = facts.last_sequence
    if sequences_max is not None:
        end = min(end, before.through + sequences_max)
    within = RangeSet(before.missing)
    if end > before.through:
        within.add(before.through + 1, end)
    for first, last in facts.answered:
        within.discard(first, last)
    return EpochLook(end, find_missing(connection, facts.epoch_id, within))


def find_missing(connection: Connection, epoch_id: int | None, within: RangeSet) -> RangeSet:
    """Those of the sequences that have no row.

    Args:
        connection: For reading.
        epoch_id: Whose sequences; None for an epoch of which nothing is stored.
        within: Which are looked for.
    """
    if epoch_id is None:
        return RangeSet(within)
    missing = RangeSet()
    for group in _neighbours(within):
        if len(group) < RANGES_ALONE:
            for first, last in group:
                _find_between(connection, epoch_id, first, last, missing)
        else:
            held = RangeSet.of(
                connection.scalars(_READ, {"epoch_id": epoch_id, "first": group[0][0], "last": group[-1][1]})
            )
            for first, last in group:
                for gap in held.gaps(first, last):
                    missing.add(*gap)
    return missing


def _neighbours(ranges: Iterable[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    """Ranges that lie so close together that one look reads all of them; at least one at a time."""
    group: list[tuple[int, int]] = []
    for each in ranges:
        if group and each[1] - group[0][0] >= COUNTED_TOGETHER:
            yield group
            group = []
        group.append(each)
    if group:
        yield group


def _find_between(connection: Connection, epoch_id: int, first: int, last: int, missing: RangeSet) -> None:
    while first <= last:
        # One look skips an empty stretch, however long.
        held = connection.scalar(_NEXT, {"epoch_id": epoch_id, "first": first})
        if held is None or held > last:
            missing.add(first, last)
            return
        if held > first:
            missing.add(first, held - 1)
            first = held
        end = min(last, first + COUNTED_TOGETHER - 1)
        for part in _incomplete(connection, epoch_id, first, end):
            rows = connection.scalars(_READ, {"epoch_id": epoch_id, "first": part[0], "last": part[1]})
            for gap in RangeSet.of(rows).gaps(*part):
                missing.add(*gap)
        first = end + 1


def _incomplete(connection: Connection, epoch_id: int, first: int, last: int) -> Iterator[tuple[int, int]]:
    """Small pieces of first..last that lack a row, ascending."""
    count = connection.scalar(_COUNT, {"epoch_id": epoch_id, "first": first, "last": last})
    if count == last - first + 1:
        return
    if last - first < READ_TOGETHER:
        yield first, last
        return
    middle = (first + last) // 2
    yield from _incomplete(connection, epoch_id, first, middle)
    yield from _incomplete(connection, epoch_id, middle + 1, last)


def next_capture_unix_nanos(connection: Connection, epoch_id: int, last: int) -> int | None:
    """When the first held observation behind a sequence was captured; None where none is held."""
    return connection.scalar(_NEXT_CAPTURE, {"epoch_id": epoch_id, "last": last})


def write_lost(connection: Connection, facts: EpochFacts, ranges: RangeSet) -> None:
    """Records what nobody has any more, beside what was recorded before. What comes in spite of it is stored."""
    here = (epochs.c.station_id == facts.station_id, epochs.c.epoch == facts.epoch)
    row = connection.execute(select(epochs.c.id, epochs.c.lost_ranges).where(*here)).one_or_none()
    lost = read_ranges(row.lost_ranges if row else None)
    for first, last in ranges:
        lost.add(first, last)
    named = [receipt_pb2.SequenceRange(first_sequence=first, last_sequence=last) for first, last in lost]
    values: Mapping[str, object] = {"lost_ranges": receipt_pb2.Receipt(held_ranges=named).SerializeToString()}
    if row is None:
        connection.execute(insert(epochs).values(station_id=facts.station_id, epoch=facts.epoch, **values))
    else:
        connection.execute(update(epochs).where(epochs.c.id == row.id).values(**values))


def read_ranges(content: bytes | None) -> RangeSet:
    """What a column of ranges says: a serialized fieldpost.v1.Receipt that has only held_ranges."""
    ranges = receipt_pb2.Receipt.FromString(content or b"").held_ranges
    return RangeSet((each.first_sequence, each.last_sequence) for each in ranges)


def last_of(ranges: RangeSet) -> int:
    """The highest number; 0 where there is none."""
    return max((last for _, last in ranges), default=0)
