"""Brings observations and predictions of an archived day back into the store, as if they had never been let go.

The order is that of ingest: payloads to a segment, rows to the database, both to the disk in one commit. What is here
already is compared and left alone, so that however often a run is ended, the next one only adds what lacks. Runs inside
transactions of the store; knows no bag and no file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date

from sqlalchemy import Connection, case, insert, select, update

from fieldpost.errors import BrokenStateError, TryAgainError
from fieldpost.ranges import RangeSet
from fieldpost.v1 import receipt_pb2
from server.archive.bags import BagRecord, InstrumentDay
from server.ingest.observation_rows import ObservationRow, insert_observations
from server.queries.predictions import NewPrediction, write_predictions
from server.storage.segments import SegmentWriter
from server.storage.tables import (
    bags,
    epochs,
    instruments,
    model_versions,
    observations,
    predictions,
    segments,
    stations,
)

Identity = tuple[str, int]
"""(epoch, sequence)."""
ModelName = tuple[str, int]
"""(analysis, version)."""


@dataclass(frozen=True, slots=True)
class ArchivedPrediction:
    """A prediction from the archive."""

    model: ModelName
    predict_unix_nanos: int
    content: bytes
    """A serialized fieldpost.v1.Prediction that has only samples, variables and failure."""
    is_failure: bool
    is_provisional: bool


@dataclass(frozen=True, slots=True)
class ArchivedObservation:
    """An observation from the archive.

    Attributes:
        identity: Which.
        measure_unix_nanos: When it was measured.
        capture_unix_nanos: When it was captured.
        payload_bytes: The instrument's bytes.
        sha256: Of these.
        record: A serialized fieldpost.v1.Observation; empty where the store was seen to hold it.
        predictions: What was predicted of it.
    """

    identity: Identity
    measure_unix_nanos: int
    capture_unix_nanos: int
    payload_bytes: int
    sha256: bytes
    record: bytes
    predictions: list[ArchivedPrediction]


@dataclass(frozen=True, slots=True)
class BroughtBack:
    """What became of observations from the archive.

    Attributes:
        observation_count: Those that came back.
        present_count: Those that were here.
        prediction_count: Predictions that came back.
        payload_bytes: The instrument's, of those that came back.
        unknown: Predictions left in the archive, since the store does not know their model version.
    """

    observation_count: int
    present_count: int
    prediction_count: int
    payload_bytes: int
    unknown: Counter[ModelName]


def list_archived_days(
    connection: Connection, first_day: date, last_day: date, *, station: str = "", instrument: str = ""
) -> list[InstrumentDay]:
    """The days, both ends included, of which a bag is recorded; by station, instrument and day.

    Args:
        connection: For reading.
        first_day: The first UTC day.
        last_day: The last one.
        station: Only this station; empty for all.
        instrument: Only instruments of this name; empty for all.
    """
    facts = [instruments.c[name] for name in ("instrument_model", "latitude_deg", "longitude_deg", "altitude_m")]
    query = (
        select(
            instruments.c.id,
            stations.c.name.label("station"),
            instruments.c.name.label("instrument"),
            bags.c.day,
            *facts,
            instruments.c.calibration,
        )
        .join(instruments, instruments.c.id == bags.c.instrument_id)
        .join(stations, stations.c.id == instruments.c.station_id)
        .where(bags.c.day >= first_day.isoformat(), bags.c.day <= last_day.isoformat())
        .distinct()
        .order_by("station", "instrument", bags.c.day)
    )
    if station:
        query = query.where(stations.c.name == station)
    if instrument:
        query = query.where(instruments.c.name == instrument)
    rows = connection.execute(query)
    return [InstrumentDay(row[0], row[1], row[2], date.fromisoformat(row[3]), *row[4:]) for row in rows]


def list_bags(connection: Connection, day: InstrumentDay) -> list[BagRecord]:
    """All recorded bags of a day, the newest first."""
    columns = [
        *(bags.c.version, bags.c.path, bags.c.manifest_sha256, bags.c.observation_count, bags.c.prediction_count),
        *(bags.c.archive_unix_nanos, bags.c.payload_bytes, bags.c.bag_bytes),
    ]
    query = select(*columns).where(bags.c.instrument_id == day.instrument_id, bags.c.day == day.day.isoformat())
    return [BagRecord(*row) for row in connection.execute(query.order_by(bags.c.version.desc()))]


def find_present(connection: Connection, day: InstrumentDay, identities: Iterable[Identity]) -> set[Identity]:
    """Those of the observations that the store holds."""
    wanted = list(identities)
    epoch_ids = _find_epochs(connection, day, {epoch for epoch, _ in wanted})
    return set(_list_held(connection, epoch_ids, wanted))


def bring_back(
    connection: Connection, writer: SegmentWriter, day: InstrumentDay, batch: Sequence[ArchivedObservation]
) -> BroughtBack:
    """Writes what the store lacks of some observations of a day, and of their predictions.

    They are never live, however fresh: nothing waits for them. A prediction comes back in the transaction of its
    observation, so that no model at work predicts it again; where none comes back, the models at work find it.

    Args:
        connection: Of the store's writer.
        writer: Where payloads go.
        day: Whose they are.
        batch: Some observations, in the order in which they were measured.

    Raises:
        BrokenStateError: The store holds other bytes under the same identity.
        TryAgainError: One that the store was seen to hold went meanwhile.
    """
    epoch_ids = _find_epochs(connection, day, {each.identity[0] for each in batch})
    held = _list_held(connection, epoch_ids, [each.identity for each in batch])
    _compare(day, batch, {identity: sha256 for identity, (_, sha256) in held.items()})
    new = [each for each in batch if each.identity not in held]
    if new:
        _insert(connection, writer, day, new, epoch_ids)
        _take_out_of_pruned(connection, epoch_ids, new)
        held |= _list_held(connection, epoch_ids, [each.identity for each in new])
    made, unknown = _choose_predictions(
        connection, day, batch, {identity: row_id for identity, (row_id, _) in held.items()}
    )
    if made:
        write_predictions(connection, made)
    payload_bytes = sum(each.payload_bytes for each in new)
    return BroughtBack(len(new), len(batch) - len(new), len(made), payload_bytes, unknown)


def _find_epochs(connection: Connection, day: InstrumentDay, names: set[str]) -> dict[str, int]:
    query = select(epochs.c.epoch, epochs.c.id).join(instruments, instruments.c.station_id == epochs.c.station_id)
    rows = connection.execute(query.where(instruments.c.id == day.instrument_id, epochs.c.epoch.in_(names)))
    return {row.epoch: row.id for row in rows}


def _list_held(
    connection: Connection, epoch_ids: dict[str, int], identities: Sequence[Identity]
) -> dict[Identity, tuple[int, bytes]]:
    """Row id and SHA-256 of those that the store holds."""
    held: dict[Identity, tuple[int, bytes]] = {}
    for epoch, epoch_id in epoch_ids.items():
        sequences = [sequence for name, sequence in identities if name == epoch]
        query = select(observations.c.sequence, observations.c.id, observations.c.sha256)
        here = (observations.c.epoch_id == epoch_id, observations.c.sequence.in_(sequences))
        held |= {(epoch, row.sequence): (row.id, row.sha256) for row in connection.execute(query.where(*here))}
    return held


def _compare(day: InstrumentDay, batch: Sequence[ArchivedObservation], held_sha256: dict[Identity, bytes]) -> None:
    for each in batch:
        here = held_sha256.get(each.identity)
        if here is not None and here != each.sha256:
            epoch, sequence = each.identity
            raise BrokenStateError(
                f"expected observation {epoch}-{sequence} of {day} with SHA-256 {each.sha256.hex()}, as the archive "
                f"has it, but the store holds other bytes under this identity, with {here.hex()}",
                hint="nothing of it was changed; restore the day to a folder and look which of the two is right",
            )
        if here is None and not each.record:
            raise TryAgainError(f"observations of {day} were let go while it was restored", hint="run again")


def _insert(
    connection: Connection,
    writer: SegmentWriter,
    day: InstrumentDay,
    new: Sequence[ArchivedObservation],
    epoch_ids: dict[str, int],
) -> None:
    segment, offsets = writer.append([each.record for each in new])
    segment_id = connection.scalar(select(segments.c.id).where(segments.c.name == segment))
    if segment_id is None:
        segment_id = connection.scalar(insert(segments).values(name=segment).returning(segments.c.id))
    assert segment_id is not None
    for epoch in dict.fromkeys(each.identity[0] for each in new):
        if epoch not in epoch_ids:  # the database is younger than the archive
            epoch_ids[epoch] = _insert_epoch(connection, day, epoch)
    rows = [
        ObservationRow(
            epoch_ids[each.identity[0]],
            each.identity[1],
            day.instrument_id,
            each.measure_unix_nanos,
            each.capture_unix_nanos,
            each.payload_bytes,
            each.sha256,
            segment_id,
            offset,
            len(each.record),
            False,
        )
        for each, offset in zip(new, offsets, strict=True)
    ]
    insert_observations(connection, rows)
    last, newest = instruments.c.last_measure_unix_nanos, max(each.measure_unix_nanos for each in new)
    connection.execute(
        update(instruments)
        .where(instruments.c.id == day.instrument_id)
        .values(
            observation_count=instruments.c.observation_count + len(new),
            last_measure_unix_nanos=case((last > newest, last), else_=newest),
        )
    )


def _insert_epoch(connection: Connection, day: InstrumentDay, epoch: str) -> int:
    station_id = select(instruments.c.station_id).where(instruments.c.id == day.instrument_id).scalar_subquery()
    made = insert(epochs).values(station_id=station_id, epoch=epoch).returning(epochs.c.id)
    return int(connection.execute(made).scalar_one())


def _take_out_of_pruned(connection: Connection, epoch_ids: dict[str, int], new: Sequence[ArchivedObservation]) -> None:
    """They are held again: an epoch promises as pruned only what is in the archive alone."""
    for epoch, epoch_id in epoch_ids.items():
        content = connection.scalar(select(epochs.c.pruned_ranges).where(epochs.c.id == epoch_id))
        if not content:
            continue
        ranges = receipt_pb2.Receipt.FromString(content).held_ranges
        pruned = RangeSet((each.first_sequence, each.last_sequence) for each in ranges)
        for each in new:
            if each.identity[0] == epoch:
                pruned.discard(each.identity[1])
        left = [receipt_pb2.SequenceRange(first_sequence=first, last_sequence=last) for first, last in pruned]
        content = receipt_pb2.Receipt(held_ranges=left).SerializeToString()
        connection.execute(update(epochs).where(epochs.c.id == epoch_id).values(pruned_ranges=content or None))


def _choose_predictions(
    connection: Connection, day: InstrumentDay, batch: Sequence[ArchivedObservation], row_ids: dict[Identity, int]
) -> tuple[list[NewPrediction], Counter[ModelName]]:
    """Those that lack here, and how many are of model versions that are not known here."""
    wanted = {each.model for observation in batch for each in observation.predictions}
    if not wanted:
        return [], Counter()
    columns = (model_versions.c.analysis, model_versions.c.version, model_versions.c.id)
    analyses = model_versions.c.analysis.in_({analysis for analysis, _ in wanted})
    rows = connection.execute(select(*columns).where(analyses))
    model_ids = {(analysis, version): row_id for analysis, version, row_id in rows}
    pairs = select(predictions.c.observation_id, predictions.c.model_version_id)
    ids = [row_ids[each.identity] for each in batch]
    there = set(connection.execute(pairs.where(predictions.c.observation_id.in_(ids))).tuples())
    chosen: list[NewPrediction] = []
    unknown: Counter[ModelName] = Counter()
    for observation in batch:
        row_id = row_ids[observation.identity]
        for each in observation.predictions:
            model_id = model_ids.get(each.model)
            if model_id is None:
                unknown[each.model] += 1
            elif (row_id, model_id) not in there:
                measured, made = observation.measure_unix_nanos, each.predict_unix_nanos
                about = (row_id, model_id, day.instrument_id, measured, made, each.content, each.is_failure)
                chosen.append(NewPrediction(*about, is_provisional=each.is_provisional))
    return chosen, unknown
