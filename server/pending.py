"""What is still to be predicted: observations x active model versions - predictions. A query, not a queue."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from google.protobuf.message import DecodeError
from sqlalchemy import Connection, exists, insert, select, update

from fieldpost.errors import BrokenStateError
from fieldpost.v1 import observation_pb2 as pb
from server.analyses import AnalysisCard
from server.jobs import WorkItem
from server.models.card import ModelKind, ModelState
from server.segments import Place
from server.tables import instruments, model_versions, observations, predictions, segments


@dataclass(frozen=True, slots=True)
class ActiveModel:
    """A model version that predicts everything that comes.

    Attributes:
        row_id: In the database.
        card: What is known of it.
        settled_observation_id: Nothing up to this observation waits for it.
    """

    row_id: int
    card: AnalysisCard
    settled_observation_id: int


@dataclass(frozen=True, slots=True)
class PendingObservation:
    """An observation without its prediction."""

    observation_id: int
    instrument_id: int
    measure_unix_nanos: int
    place: Place
    instrument_model: str
    calibration: float | None
    is_time_known: bool = True
    """False where only the payload tells when it was measured; until then measure_unix_nanos is the capture time."""


def activate_models(connection: Connection, cards: list[AnalysisCard]) -> list[ActiveModel]:
    """Makes sure that each of these model versions has its row, the newest of each analysis active."""
    newest = {card.name: card.version for card in sorted(cards, key=lambda each: each.version)}
    for card in cards:
        here = (model_versions.c.analysis == card.name, model_versions.c.version == card.version)
        if connection.scalar(select(model_versions.c.id).where(*here)) is None:
            is_active = newest[card.name] == card.version
            connection.execute(
                insert(model_versions).values(
                    analysis=card.name,
                    version=card.version,
                    state=ModelState.ACTIVE if is_active else ModelState.READY,
                    kind=ModelKind.BUILT_IN,
                    first_active_unix_nanos=0 if is_active else None,
                )
            )
    by_key = {(card.name, card.version): card for card in cards}
    rows = connection.execute(select(model_versions).where(model_versions.c.state == ModelState.ACTIVE)).all()
    return [
        ActiveModel(row.id, by_key[row.analysis, row.version], row.settled_observation_id)
        for row in rows
        if (row.analysis, row.version) in by_key
    ]


def find_pending(connection: Connection, model: ActiveModel, after_id: int, limit: int) -> list[PendingObservation]:
    """The first observations after after_id that wait for the model, by id."""
    is_predicted = exists().where(
        predictions.c.observation_id == observations.c.id, predictions.c.model_version_id == model.row_id
    )
    query = (
        select(
            observations.c.id,
            observations.c.instrument_id,
            observations.c.measure_unix_nanos,
            segments.c.name,
            observations.c.segment_offset,
            observations.c.stored_bytes,
            instruments.c.instrument_model,
            instruments.c.calibration,
        )
        .join(instruments, instruments.c.id == observations.c.instrument_id)
        .join(segments, segments.c.id == observations.c.segment_id)
        .where(
            observations.c.id > after_id,
            instruments.c.instrument_model.in_(sorted(model.card.instrument_models)),
            ~is_predicted,
        )
        .order_by(observations.c.id)
        .limit(limit)
    )
    return [
        PendingObservation(row[0], row[1], row[2], Place(row[3], row[4], row[5]), row[6], row[7])
        for row in connection.execute(query)
    ]


def load_items(
    pending: Iterable[PendingObservation], read_segment: Callable[[Place], bytes]
) -> list[tuple[PendingObservation, WorkItem | BrokenStateError]]:
    """Reads the payloads; where a segment is damaged, the error takes the payload's place."""
    loaded: list[tuple[PendingObservation, WorkItem | BrokenStateError]] = []
    for each in pending:
        try:
            observation = pb.Observation.FromString(read_segment(each.place))
        except BrokenStateError as error:
            loaded.append((each, error))
            continue
        except DecodeError as error:
            where = f"at offset {each.place.offset} of segment {each.place.segment}"
            loaded.append((each, BrokenStateError(f"expected an observation {where}, but got: {error}")))
            continue
        header = observation.header
        each = replace(each, is_time_known=header.HasField("measure_time"))
        item = WorkItem(
            observation.payload,
            header.payload_encoding,
            header.payload_bytes,
            each.instrument_model,
            each.measure_unix_nanos,
            each.calibration,
        )
        loaded.append((each, item))
    return loaded


def read_settled(connection: Connection, model_row_id: int) -> int:
    """The settled mark as it stands in the database, where registering may have set it back."""
    query = select(model_versions.c.settled_observation_id).where(model_versions.c.id == model_row_id)
    return int(connection.scalar(query) or 0)


def write_settled(connection: Connection, model_row_id: int, expected: int, settled: int) -> bool:
    """Moves the mark, unless somebody set it back meanwhile; returns whether it moved."""
    here = (model_versions.c.id == model_row_id, model_versions.c.settled_observation_id == expected)
    result = connection.execute(update(model_versions).where(*here).values(settled_observation_id=settled))
    return result.rowcount == 1
