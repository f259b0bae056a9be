"""What is old goes once the archive surely has it, and not a row or a byte before."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from archive_support import (
    DAY,
    NOW_NANOS,
    archive_day,
    fail_prediction,
    ingest_all,
    ingest_telegrams,
    make_archivist,
    open_site,
    predict,
    recorded,
)
from s3_support import s3_server
from server_support import EPOCH, START_NANOS, make_bundle, make_observation, open_store
from sqlalchemy import delete, func, select, update

from fieldpost.v1 import observation_pb2 as pb
from fieldpost.v1 import receipt_pb2
from flows.archiving.archivist import Archivist
from server.archive import retention
from server.archive.bag_contents import BagContents, Column, read_contents
from server.archive.bags import DayObservation
from server.archive.holds import write_hold
from server.archive.hot_rows import HotPrediction
from server.archive.retention import PruneReport, Retention, choose, last_old_day, prune
from server.archive.shelf_folder import FolderShelf
from server.ingest.core import Ingest
from server.ingest.registry import RegisteredInstrument, RegisteredStation, register
from server.storage.segments import Place
from server.storage.store import Store
from server.storage.tables import epochs, instruments, model_versions, observations, predictions, segments

LATER_NANOS = NOW_NANOS + 40 * 86_400 * 10**9


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = open_site(tmp_path / "data", instruments=("cl51", "cl61"))
    ingest_telegrams(store, 1, 2, 3)
    predict(store, 1, 2)
    settle(store)
    yield store
    store.close()


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return tmp_path / "archive"


@pytest.fixture
def archivist(store: Store, archive: Path) -> Archivist:
    return make_archivist(store, archive)


def settle(store: Store, observation_id: int = 10**6) -> None:
    """Nothing up to this observation waits for a prediction."""
    values = {"settled_observation_id": observation_id}
    store.write(lambda connection: connection.execute(update(model_versions).values(**values))).result(10)


def open_on(database_url: str, segments_url: str) -> Store:
    """A store on any database and any payload store, in which station lindenberg is registered."""
    store = Store(database_url, segments_url)
    station = RegisteredStation(
        name="lindenberg", instruments=[RegisteredInstrument(name="cl51", instrument_model="cl51")]
    )
    store.write(lambda connection: register(connection, [station])).result(10)
    return store


def prune_now(store: Store, archive: Path, **options: bool) -> PruneReport:
    return prune(store, FolderShelf(archive), hot_days=30, now_unix_nanos=LATER_NANOS, **options)


def sequences(store: Store) -> list[int]:
    with store.read() as connection:
        return sorted(connection.scalars(select(observations.c.sequence)))


def count(store: Store, table: object) -> int:
    with store.read() as connection:
        return int(connection.scalar(select(func.count()).select_from(table)) or 0)  # type: ignore[arg-type]


def pruned_ranges(store: Store) -> list[tuple[int, int]]:
    with store.read() as connection:
        content = connection.scalar(select(epochs.c.pruned_ranges)) or b""
    ranges = receipt_pb2.Receipt.FromString(content).held_ranges
    return [(each.first_sequence, each.last_sequence) for each in ranges]


def test_a_day_that_is_archived_goes_with_its_predictions_and_stays_promised(
    store: Store, archive: Path, archivist: Archivist
) -> None:
    archive_day(archivist)
    report = prune_now(store, archive)
    assert (report.observation_count, report.prediction_count, report.errors) == (3, 2, [])
    assert report.stored_bytes == sum(make_observation(each).ByteSize() for each in (1, 2, 3))
    assert (sequences(store), count(store, predictions), pruned_ranges(store)) == ([], 0, [(1, 3)])
    with store.read() as connection:
        counts = dict(connection.execute(select(instruments.c.name, instruments.c.observation_count)).tuples().all())
    assert counts == {"cl51": 0, "cl61": 0}


def test_what_was_pruned_is_promised_again_and_not_stored_again(
    store: Store, archive: Path, archivist: Archivist
) -> None:
    archive_day(archivist)
    prune_now(store, archive)
    ingest = Ingest(store, payload_bytes_max=2**20, on_stored=lambda: None)
    receipt = ingest.submit(pb.Bundle(observations=[make_observation(each) for each in (2, 3, 4)])).result(10)
    ingest.close()
    assert [(each.first_sequence, each.last_sequence) for each in receipt.held_ranges] == [(2, 4)]
    assert (receipt.duplicate_count, sequences(store)) == (2, [4])


def test_a_dry_run_says_the_same_and_does_nothing(store: Store, archive: Path, archivist: Archivist) -> None:
    archive_day(archivist)
    dry = prune_now(store, archive, is_dry_run=True)
    assert sequences(store) == [1, 2, 3]
    real = prune_now(store, archive)
    assert (dry.observation_count, dry.prediction_count, dry.stored_bytes) == (
        real.observation_count,
        real.prediction_count,
        real.stored_bytes,
    )


def test_a_day_without_a_bag_stays(store: Store, archive: Path) -> None:
    assert prune_now(store, archive).unarchived_days == 1
    assert sequences(store) == [1, 2, 3]


def test_a_day_is_old_only_when_it_has_been_over_for_as_long(store: Store, archive: Path, archivist: Archivist) -> None:
    archive_day(archivist)
    midnight_nanos = (START_NANOS // (86_400 * 10**9) + 31) * 86_400 * 10**9
    assert last_old_day(midnight_nanos - 1, 30) == DAY - timedelta(days=1)
    assert last_old_day(midnight_nanos, 30) == DAY
    assert prune(store, FolderShelf(archive), hot_days=30, now_unix_nanos=midnight_nanos - 1).observation_count == 0
    assert prune(store, FolderShelf(archive), hot_days=30, now_unix_nanos=midnight_nanos).observation_count == 3


def test_a_late_observation_stays_until_a_newer_bag_has_it(store: Store, archive: Path, archivist: Archivist) -> None:
    archive_day(archivist)
    ingest_telegrams(store, 4)
    report = prune_now(store, archive)
    assert (report.observation_count, report.not_in_bag_count, sequences(store)) == (3, 1, [4])
    archive_day(archivist)
    assert [path[-2:] for path, _ in recorded(store)] == ["v1", "v2"]
    assert prune_now(store, archive).observation_count == 1
    assert (sequences(store), pruned_ranges(store)) == ([], [(1, 4)])


def test_an_observation_whose_prediction_came_after_the_bag_stays_with_it(
    store: Store, archive: Path, archivist: Archivist
) -> None:
    archive_day(archivist)
    predict(store, 3)
    predict(store, 1, version=2)
    settle(store)
    report = prune_now(store, archive)
    assert (report.observation_count, report.not_in_bag_count, sequences(store)) == (1, 2, [1, 3])
    archive_day(archivist)
    assert prune_now(store, archive).prediction_count == 3


def test_a_prediction_that_was_made_again_after_the_bag_stays(
    store: Store, archive: Path, archivist: Archivist
) -> None:
    fail_prediction(store, 3, "the model could not")
    archive_day(archivist)
    failed = predictions.c.is_failure.is_(True)
    store.write(lambda connection: connection.execute(delete(predictions).where(failed))).result(10)
    predict(store, 3, predict_nanos=NOW_NANOS + 10**9)
    assert prune_now(store, archive).not_in_bag_count == 1
    assert sequences(store) == [3]


def test_an_observation_that_a_model_waits_for_stays(store: Store, archive: Path, archivist: Archivist) -> None:
    archive_day(archivist)
    settle(store, 2)
    report = prune_now(store, archive)
    assert (report.observation_count, report.waiting_count, sequences(store)) == (2, 1, [3])
    retired = {"state": "retired"}
    store.write(lambda connection: connection.execute(update(model_versions).values(**retired))).result(10)
    assert prune_now(store, archive).observation_count == 1


def test_an_observation_whose_time_was_found_in_its_payload_afterwards_stays_where_no_bag_has_it(
    store: Store, archive: Path, archivist: Archivist
) -> None:
    archive_day(archivist)
    ingest_telegrams(store, 10_000)  # two days later
    moved = {"measure_unix_nanos": START_NANOS}
    here = observations.c.sequence == 10_000
    store.write(lambda connection: connection.execute(update(observations).where(here).values(**moved))).result(10)
    prune_now(store, archive)
    assert sequences(store) == [10_000]  # of a day that has a bag, with an id below the newest, and in no bag


@pytest.mark.parametrize("name", ["data/observations.csv", "data/observations.tar.zst", "manifest-sha256.txt"])
def test_nothing_goes_when_the_bag_is_damaged(store: Store, archive: Path, archivist: Archivist, name: str) -> None:
    bag = archive / archive_day(archivist).record.path
    content = bytearray((bag / name).read_bytes())
    content[len(content) // 2] ^= 1
    (bag / name).write_bytes(content)
    (error,) = prune_now(store, archive).errors
    assert "lindenberg/cl51 of 2025-06-15: expected" in error
    assert sequences(store) == [1, 2, 3]


def test_nothing_goes_when_the_archive_is_not_mounted(store: Store, archive: Path, archivist: Archivist) -> None:
    archive_day(archivist)
    archive.rename(archive.with_name("elsewhere"))
    (error,) = prune_now(store, archive).errors
    assert "cannot be read" in error
    assert sequences(store) == [1, 2, 3]


def test_a_day_that_somebody_brought_back_stays_until_its_hold_ends(
    store: Store, archive: Path, archivist: Archivist
) -> None:
    archive_day(archivist)
    hold(store, LATER_NANOS + 1)
    report = prune_now(store, archive)
    assert (report.observation_count, report.held_days, sequences(store)) == (0, 1, [1, 2, 3])
    assert any("brought back" in line for line in report.lines())
    shelf = FolderShelf(archive)
    assert prune(store, shelf, hot_days=30, now_unix_nanos=LATER_NANOS + 1).observation_count == 3


def test_a_day_that_is_brought_back_while_it_is_pruned_keeps_what_is_still_here(
    store: Store, archive: Path, archivist: Archivist, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive_day(archivist)
    monkeypatch.setattr(retention, "PAGE_ROWS", 1)
    count = retention._Pruning._count

    def count_and_hold(self: retention._Pruning, page: object) -> None:
        count(self, page)  # type: ignore[arg-type]
        hold(store, LATER_NANOS + 1)

    monkeypatch.setattr(retention._Pruning, "_count", count_and_hold)
    assert prune_now(store, archive).observation_count == 1
    assert (sequences(store), pruned_ranges(store)) == ([2, 3], [(1, 1)])


def hold(store: Store, until_unix_nanos: int) -> None:
    """Keeps the one day, as bringing it back does."""
    with store.read() as connection:
        instrument_id = connection.scalar(select(instruments.c.id).where(instruments.c.name == "cl51"))
    assert instrument_id is not None
    store.write(lambda connection: write_hold(connection, instrument_id, DAY, until_unix_nanos)).result(10)


def test_what_a_bag_holds_is_found_in_any_order_and_of_any_epoch(store: Store, archive: Path) -> None:
    others = [make_observation(each, epoch="f" * 32) for each in (9, 4, 7)]
    for place, each in enumerate(others):
        each.header.measure_time.FromNanoseconds(START_NANOS + place * 10**9)
    ingest_all(store, others)
    predict(store, 9, 7)
    record = archive_day(make_archivist(store, archive)).record
    contents = read_contents(archive / record.path, record.manifest_sha256)
    predict_s = NOW_NANOS / 1e9 % 86_400 + 86_400
    for each in others:
        header = each.header
        assert contents.has_observation("f" * 32, header.sequence, header.sha256)
        assert not contents.has_observation(EPOCH, header.sequence, header.sha256)
        assert not contents.has_observation("f" * 32, header.sequence, header.sha256[::-1])
        is_predicted = contents.has_prediction("boundary-layer-height", 1, "f" * 32, header.sequence, predict_s)
        assert is_predicted == (header.sequence != 4)
    assert contents.has_prediction("boundary-layer-height", 1, EPOCH, 1, predict_s)
    assert not contents.has_prediction("boundary-layer-height", 2, EPOCH, 1, predict_s)


def test_a_bag_that_lacks_something_is_not_read_again_before_there_is_a_newer_one(
    store: Store, archive: Path, archivist: Archivist
) -> None:
    bag = archive_day(archivist).record.path
    ingest_telegrams(store, 4)
    looked_at: dict[object, str] = {}
    prune(store, FolderShelf(archive), hot_days=30, now_unix_nanos=LATER_NANOS, looked_at=looked_at)  # type: ignore[arg-type]
    (archive / bag).rename(archive / "hidden")
    again = prune(store, FolderShelf(archive), hot_days=30, now_unix_nanos=LATER_NANOS, looked_at=looked_at)  # type: ignore[arg-type]
    assert (again.errors, again.not_in_bag_count) == ([], 1)
    archive_day(archivist)
    last = prune(store, FolderShelf(archive), hot_days=30, now_unix_nanos=LATER_NANOS, looked_at=looked_at)  # type: ignore[arg-type]
    assert (last.errors, last.observation_count, looked_at) == ([], 1, {})


def test_a_segment_goes_with_its_last_row_unless_it_is_still_written(tmp_path: Path, archive: Path) -> None:
    store = open_site(tmp_path / "data")
    folder = tmp_path / "data" / "segments"
    ingest_telegrams(store, 1, 2)
    store.close()  # which ends the segment
    store = open_site(tmp_path / "data")
    ingest_telegrams(store, 3)
    first, second = sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns)
    archive_day(make_archivist(store, archive))
    assert prune_now(store, archive).segment_count == 1
    assert (list(folder.iterdir()), count(store, segments)) == ([second], 1)
    ingest_telegrams(store, 4)
    with store.read() as connection:
        place = connection.execute(select(segments.c.name, observations.c.segment_offset).join(segments)).one()
    assert place.name == second.name != first.name
    store.close()


def test_a_segment_that_others_still_need_stays(store: Store, archive: Path, archivist: Archivist) -> None:
    ingest_telegrams(store, 10, instrument="cl61")
    archive_day(archivist)
    report = prune_now(store, archive)
    assert (report.observation_count, report.segment_count, report.unarchived_days) == (3, 0, 1)
    with store.read() as connection:
        query = select(segments.c.name, observations.c.segment_offset, observations.c.stored_bytes).join(segments)
        place = Place(*connection.execute(query).one())
    assert pb.Observation.FromString(store.read_segment(place)) == make_observation(10, instrument="cl61")


def test_an_old_file_that_no_row_names_is_swept_and_a_young_one_is_not(
    store: Store, archive: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "data" / "segments"
    now_s = LATER_NANOS / 1e9
    for name, age_s in (("old.seg", 90_000), ("broken.part", 90_000), ("young.seg", 60), ("other.txt", 90_000)):
        (folder / name).write_bytes(b"bytes")
        os.utime(folder / name, (now_s - age_s, now_s - age_s))
    named = {path.name for path in folder.iterdir()} - {"old.seg", "broken.part"}
    assert prune_now(store, archive, is_dry_run=True).orphan_count == 2
    assert (folder / "old.seg").exists()
    assert prune_now(store, archive).orphan_count == 2
    assert {path.name for path in folder.iterdir()} == named


def test_senders_are_served_while_pages_are_pruned(
    tmp_path: Path, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "PAGE_ROWS", 10)
    store = open_site(tmp_path / "data")
    ingest_telegrams(store, *range(1, 201))
    archive_day(make_archivist(store, archive))
    ingest = Ingest(store, payload_bytes_max=2**20, on_stored=lambda: None)
    pages = 0
    original = retention._Pruning._count

    def count_and_send(self: retention._Pruning, page: object) -> None:
        nonlocal pages
        original(self, page)  # type: ignore[arg-type]
        pages += 1
        receipt = ingest.submit(pb.Bundle(observations=[make_observation(10_000 + pages)])).result(10)
        assert receipt.held_ranges[0].first_sequence == 10_000 + pages

    monkeypatch.setattr(retention._Pruning, "_count", count_and_send)
    report = prune_now(store, archive)
    ingest.close()
    assert (report.observation_count, pages, pruned_ranges(store)) == (200, 21, [(1, 200)])
    assert sequences(store) == [10_000 + page for page in range(1, 22)]
    store.close()


@pytest.mark.parametrize("kind", ["folder", "s3"])
def test_either_database_and_either_payload_store_is_pruned(
    database_url: str, kind: str, tmp_path: Path, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with s3_server(monkeypatch) as s3:
        url = s3.url("segments") if kind == "s3" else str(tmp_path / "segments")
        store = open_on(database_url, url)
        ingest_telegrams(store, 1, 2, 3)
        predict(store, 1, 2)
        settle(store)
        store.close()
        store = open_on(database_url, url)
        archive_day(make_archivist(store, archive))
        ingest_telegrams(store, 4)
        report = prune_now(store, archive)
        assert (report.observation_count, report.prediction_count, report.segment_count) == (3, 2, 1)
        assert (report.not_in_bag_count, report.errors, sequences(store)) == (1, [], [4])
        assert (pruned_ranges(store), count(store, segments)) == ([(1, 3)], 1)
        left = s3.sizes("segments") if kind == "s3" else list((tmp_path / "segments").iterdir())
        assert len(left) == 1
        store.close()


SCRIPT = """
    import os, signal, sys
    from pathlib import Path
    from server.archive import hot_rows
    from server.archive import retention
    from server.archive.shelf_folder import FolderShelf
    from server.storage.segment_folder import FolderReader
    from server.storage.store import Store

    folder, archive, step, now = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    store = Store(f"sqlite:///{folder / 'fieldpost.db'}", folder / "segments")
    retention.PAGE_ROWS = 2

    def killed(owner, name, *, after=True):
        whole = getattr(owner, name)
        def die(*arguments):
            result = whole(*arguments) if after else None
            os.kill(os.getpid(), signal.SIGKILL)
            return result
        setattr(owner, name, die)

    if step == "inside a transaction":
        killed(retention, "let_go")
    elif step == "after a page":
        killed(retention._Pruning, "_count")
    elif step == "inside the segment's transaction":
        killed(retention, "forget_segments")
    elif step == "before the file":
        killed(FolderReader, "remove", after=False)
    elif step == "after the file":
        killed(FolderReader, "remove")
    retention.prune(store, FolderShelf(archive), hot_days=30, now_unix_nanos=now)
"""
STEPS = [
    "inside a transaction",
    "after a page",
    "inside the segment's transaction",
    "before the file",
    "after the file",
]


@pytest.mark.parametrize("step", STEPS)
def test_a_run_that_is_killed_anywhere_is_completed_by_the_next(tmp_path: Path, archive: Path, step: str) -> None:
    folder = tmp_path / "data"
    store = open_site(folder)
    ingest_telegrams(store, 1, 2, 3)
    predict(store, 1, 2)
    settle(store)
    archive_day(make_archivist(store, archive))
    store.close()
    command = [sys.executable, "-c", textwrap.dedent(SCRIPT), str(folder), str(archive), step, str(LATER_NANOS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == -signal.SIGKILL, done.stderr

    store = open_site(folder)
    left = sequences(store)
    assert left == {"inside a transaction": [1, 2, 3], "after a page": [3]}.get(step, [])
    assert pruned_ranges(store) == {"inside a transaction": [], "after a page": [(1, 2)]}.get(step, [(1, 3)])
    for path in (folder / "segments").iterdir():
        os.utime(path, (0, 0))
    prune_now(store, archive)
    assert (sequences(store), pruned_ranges(store), count(store, predictions)) == ([], [(1, 3)], 0)
    assert (count(store, segments), list((folder / "segments").iterdir())) == (0, [])
    store.close()


def test_retention_runs_by_itself_and_ends_when_it_is_cancelled(
    store: Store, archive: Path, archivist: Archivist
) -> None:
    archive_day(archivist)

    async def run() -> None:
        task = asyncio.create_task(Retention(store, FolderShelf(archive), hot_days=1).run())
        deadline = time.monotonic() + 10
        while sequences(store) and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(run())
    assert sequences(store) == []


def test_the_decision_needs_identity_and_bytes_to_be_the_same() -> None:
    def row(observation_id: int, epoch: str, sequence: int, sha256: bytes) -> DayObservation:
        return DayObservation(observation_id, epoch, sequence, 0, 0, 1, 32 * sha256, Place("a.seg", 0, 1))

    def column(*sequences: int) -> Column:
        digests = [np.full(32, sequence, np.uint8) for sequence in sequences]
        return Column.sort(np.array(sequences, np.int64), np.array(digests))

    predicted = Column(np.array([2], np.int64), np.array([5.0]))
    contents = BagContents({"a": column(2, 1), "b": column(3)}, {("height", 1, "a"): predicted})
    rows = [row(1, "a", 1, b"\x01"), row(2, "a", 2, b"\x02"), row(3, "a", 3, b"\x03"), row(4, "b", 3, b"\x09")]
    made = [HotPrediction(2, "height", 1, 5 * 10**9)]
    chosen = choose(rows, made, contents, 0, None)
    assert [each.observation_id for each in chosen.gone] == [1, 2]
    assert (chosen.not_in_bag_count, chosen.waiting_count) == (2, 0)
    assert [each.observation_id for each in choose(rows, made, contents, 0, 1).gone] == [1]
    made_again = [HotPrediction(2, "height", 1, 6 * 10**9)]
    assert [each.observation_id for each in choose(rows, made_again, contents, 0, None).gone] == [1]


def submit(store: Store, bundle: pb.Bundle) -> None:
    ingest = Ingest(store, payload_bytes_max=1 << 20, on_stored=lambda: None)
    assert ingest.submit(bundle).result(10).held_ranges
    ingest.close()


def test_a_segment_that_a_restored_database_does_not_know_is_kept_and_told(tmp_path: Path, archive: Path) -> None:
    store = open_store(tmp_path)
    submit(store, make_bundle(*range(1, 40)))
    store.close()
    (segment,) = (tmp_path / "segments").iterdir()
    content = segment.read_bytes()
    os.utime(segment, (0, 0))
    for path in tmp_path.glob("fieldpost.db*"):
        path.unlink()  # its backup is older than the segment; here, as old as can be
    store = open_store(tmp_path)
    report = prune_now(store, archive)
    assert (report.orphan_count, report.unknown_count) == (0, 1)
    assert any("does not know" in line for line in report.lines())
    assert segment.read_bytes() == content
    submit(store, make_bundle(*range(1, 40)))  # its station had them still
    report = prune_now(store, archive)
    assert (report.orphan_count, report.unknown_count, segment.exists()) == (1, 0, False)
    store.close()
