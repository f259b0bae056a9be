"""A database of the first Fieldpost, with rows in it, is brought to today's schema and loses nothing."""

from __future__ import annotations

import hashlib
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from server_support import EPOCH, START_NANOS, make_bundle, make_observation
from sqlalchemy import text

from fieldpost.v1 import observation_pb2 as pb
from server.ingest.core import Ingest
from server.queries.observations import ObservationFilter, list_observations
from server.queries.predictions import PredictionFilter, list_predictions
from server.storage.database import MIGRATIONS, connect_writer, open_engine
from server.storage.store import Store

COUNT = 300


def fill_first_version(database_url: str, segments: Path) -> None:
    """A database at revision 0001, with all that it can hold, and the segment that its rows name."""
    records = [make_observation(sequence).SerializeToString() for sequence in range(1, COUNT + 1)]
    segments.mkdir()
    (segments / "first.seg").write_bytes(b"".join(records))
    rows, offset = [], 0
    for sequence, record in enumerate(records, 1):
        header = pb.Observation.FromString(record).header
        at = START_NANOS + sequence * 15_000_000_000
        rows.append({"n": sequence, "at": at, "sha": header.sha256, "offset": offset, "bytes": len(record)})
        offset += len(record)
    engine = open_engine(database_url)
    connection = connect_writer(engine)
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["connection"] = connection
    with connection.begin():
        command.upgrade(config, "0001")
        for statement in (
            "insert into station (name) values ('lindenberg')",
            f"insert into epoch (station_id, epoch) values (1, '{EPOCH}')",
            "insert into segment (name) values ('first.seg')",
            "insert into instrument (station_id, name, instrument_model, observation_count) "
            f"values (1, 'cl51', 'cl51', {COUNT})",
            "insert into modelversion (analysis, version, is_active, settled_observation_id) "
            f"values ('boundary_layer', 1, false, 0), ('boundary_layer', 2, true, {COUNT})",
            "insert into bag (instrument_id, day, version, path, manifest_sha256, observation_count, prediction_count, "
            "archive_unix_nanos) values (1, '2025-06-15', 1, 'a/b', 'c', 1, 1, 1)",
        ):
            connection.execute(text(statement))
        connection.execute(
            text(
                "insert into observation (epoch_id, sequence, instrument_id, measure_unix_nanos, capture_unix_nanos, "
                "payload_bytes, sha256, segment_id, segment_offset, stored_bytes) "
                "values (1, :n, 1, :at, :at, 1, :sha, 1, :offset, :bytes)"
            ),
            rows,
        )
        connection.execute(
            text(
                "insert into prediction (observation_id, model_version_id, instrument_id, measure_unix_nanos, "
                "predict_unix_nanos, content, is_failure) select id, 2, 1, measure_unix_nanos, 5, :content, false "
                "from observation"
            ),
            {"content": b""},
        )
        assert MigrationContext.configure(connection).get_current_revision() == "0001"
    connection.detach()
    connection.close()
    engine.dispose()


def test_a_filled_database_of_the_first_version_is_migrated_and_loses_nothing(
    database_url: str, tmp_path: Path
) -> None:
    fill_first_version(database_url, tmp_path / "segments")
    store = Store(database_url, tmp_path / "segments")
    with store.read() as connection:
        listed, _ = list_observations(connection, ObservationFilter(), COUNT, "")
        predicted, _ = list_predictions(connection, PredictionFilter(), COUNT, "")
        states = connection.execute(text("select version, state, kind from modelversion order by version")).all()
        bag_count = connection.scalar(text("select count(*) from bag"))
    assert [each.header.sequence for each, _ in listed] == list(range(1, COUNT + 1))
    for message, place in listed:
        content = pb.Observation.FromString(store.read_segment(place))
        assert content == make_observation(message.header.sequence)
        assert hashlib.sha256(b"observation %d " % content.header.sequence * 20).digest() == message.header.sha256
    assert [each.sequence for each in predicted] == list(range(1, COUNT + 1))
    assert [tuple(each) for each in states] == [(1, "retired", "built-in"), (2, "active", "built-in")]
    assert bag_count == 1
    ingest = Ingest(store, payload_bytes_max=1 << 20, on_stored=lambda: None)
    receipt = ingest.submit(make_bundle(COUNT, COUNT + 1)).result(10)
    assert [(each.first_sequence, each.last_sequence) for each in receipt.held_ranges] == [(COUNT, COUNT + 1)]
    assert receipt.duplicate_count == 1
    ingest.close()
    store.close()
