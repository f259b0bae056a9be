"""When a bag is made, skipped, completed or made anew; and what is noticed before anything is recorded."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from pathlib import Path

import bagit
import pytest
from archive_support import (
    DAY,
    NOW_NANOS,
    archive_day,
    hash_tree,
    ingest_telegrams,
    make_archivist,
    model_row_id,
    open_site,
    parts,
    predict,
    read_csv,
    recorded,
)
from sqlalchemy import select, update

from fieldpost.errors import BrokenStateError, TryAgainError
from flows.archiving.archivist import Archivist, FailedDay, archive_days
from flows.bags.bag import Step
from server.archive.bags import newest_bag
from server.archive.disk import locked
from server.archive.retention import prune
from server.archive.shelf_folder import FolderShelf
from server.prediction.course import Course
from server.prediction.course_writes import StretchWrite, write_stretch
from server.queries.predictions import NewPrediction, encode_failure
from server.storage.store import Store
from server.storage.tables import model_versions, observations, predictions

V1 = "lindenberg/cl51/2025/2025-06-15.v1"
V2 = "lindenberg/cl51/2025/2025-06-15.v2"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = open_site(tmp_path / "data")
    ingest_telegrams(store, 1, 2, 3)
    predict(store, 1, 2)
    yield store
    store.close()


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return tmp_path / "archive"


@pytest.fixture
def archivist(store: Store, archive: Path) -> Archivist:
    return make_archivist(store, archive)


def make_again(store: Store, sequence: int) -> None:
    """A prediction that was provisional is replaced, as the follower does."""
    model_id = model_row_id(store, "boundary-layer-height", 1)
    with store.read() as connection:
        row = connection.execute(select(observations).where(observations.c.sequence == sequence)).one()
        is_before = (predictions.c.observation_id == row.id, predictions.c.model_version_id == model_id)
        before_id = connection.scalar(select(predictions.c.id).where(*is_before))
    content = encode_failure("another answer")
    facts = (row.id, model_id, row.instrument_id, row.measure_unix_nanos, NOW_NANOS + 5, content, False)
    wanted = StretchWrite(
        model_id, row.instrument_id, Course(0, 1 << 62), [NewPrediction(*facts)], [before_id], None, None, None
    )
    assert store.write(lambda connection: write_stretch(connection, wanted)).result(10) is None


def test_a_prediction_that_is_made_again_makes_a_new_version_and_is_not_let_go_before(
    store: Store, archivist: Archivist, archive: Path
) -> None:
    archive_day(archivist)
    make_again(store, 1)
    settle = update(model_versions).values(settled_observation_id=10)
    store.write(lambda connection: connection.execute(settle)).result(10)
    report = prune(
        store, FolderShelf(archive), hot_days=1, now_unix_nanos=NOW_NANOS + 5 * 86_400 * 10**9, is_dry_run=True
    )
    assert (report.observation_count, report.not_in_bag_count) == (2, 1)
    again = archive_day(archivist)
    assert (again.status, again.record.version, again.record.prediction_count) == ("archived", 2, 2)
    assert recorded(store) == [(V1, 1), (V2, 2)]
    report = prune(
        store, FolderShelf(archive), hot_days=1, now_unix_nanos=NOW_NANOS + 5 * 86_400 * 10**9, is_dry_run=True
    )
    assert (report.observation_count, report.not_in_bag_count) == (3, 0)


def test_a_day_whose_predictions_are_made_again_while_it_is_archived_is_tried_again(
    store: Store, archive: Path
) -> None:
    def meddle(step: Step, _: Path) -> None:
        if step is Step.LOOKED:
            make_again(store, 1)

    with pytest.raises(TryAgainError, match="made again"):
        archive_day(make_archivist(store, archive, on_step=meddle))
    assert not parts(archive) and not recorded(store)
    assert archive_day(make_archivist(store, archive)).status == "archived"


def test_a_day_that_is_archived_is_left_as_it_is(archivist: Archivist, archive: Path) -> None:
    archive_day(archivist)
    before = hash_tree(archive)
    again = archive_day(archivist, NOW_NANOS + 1)
    assert again.status == "present"
    assert (again.record.version, again.record.observation_count, again.record.prediction_count) == (1, 3, 2)
    assert hash_tree(archive) == before


def test_a_late_observation_makes_a_second_version_and_leaves_the_first(
    archivist: Archivist, archive: Path, store: Store
) -> None:
    archive_day(archivist)
    before = hash_tree(archive / V1)
    ingest_telegrams(store, 4)
    archived = archive_day(archivist)
    assert archived.record.path == V2
    assert [line["sequence"] for line in read_csv(archive / V2)] == ["1", "2", "3", "4"]
    assert hash_tree(archive / V1) == before
    assert recorded(store) == [(V1, 1), (V2, 2)]
    assert archive_day(archivist).status == "present"


def test_a_late_prediction_makes_a_second_version(archivist: Archivist, store: Store) -> None:
    archive_day(archivist)
    predict(store, 3)
    archived = archive_day(archivist)
    assert (archived.record.version, archived.record.prediction_count) == (2, 3)


def test_an_observation_of_another_day_changes_nothing(archivist: Archivist, store: Store) -> None:
    archive_day(archivist)
    ingest_telegrams(store, 24 * 60 * 4 + 1)  # a day later
    assert archive_day(archivist).status == "present"


@pytest.mark.parametrize("damage", ["folder gone", "manifest gone", "manifest of other data", "provenance changed"])
def test_a_bag_that_is_not_as_recorded_is_made_anew(
    archivist: Archivist, archive: Path, store: Store, damage: str
) -> None:
    archive_day(archivist)
    if damage == "folder gone":
        shutil.rmtree(archive / V1)
    elif damage == "manifest gone":
        (archive / V1 / "manifest-sha256.txt").unlink()
    elif damage == "manifest of other data":
        manifest = archive / V1 / "manifest-sha256.txt"
        lines = manifest.read_text().splitlines()
        manifest.write_text("\n".join("0" * 64 + line[64:] if ".tar.zst" in line else line for line in lines))
    else:
        (archive / V1 / "data" / "provenance.json").write_text("{}")
    archived = archive_day(archivist)
    assert (archived.status, archived.record.path) == ("archived", V2)
    assert bagit.Bag(str(archive / V2)).validate()


def test_a_bag_that_was_published_but_not_recorded_is_read_back_and_recorded(store: Store, archive: Path) -> None:
    class PowerFailureError(Exception):
        pass

    def fail(step: Step, folder: Path) -> None:
        if step is Step.PUBLISHED:
            raise PowerFailureError

    with pytest.raises(PowerFailureError):
        archive_day(make_archivist(store, archive, on_step=fail))
    assert recorded(store) == []
    before = hash_tree(archive)
    archived = archive_day(make_archivist(store, archive), NOW_NANOS + 99)
    assert (archived.status, archived.verified_count) == ("recorded", 3)
    assert archived.record.archive_unix_nanos == NOW_NANOS  # when it was made, not when it was found
    assert hash_tree(archive) == before
    with store.read() as connection:
        assert newest_bag(connection, archived.day) == archived.record


def test_a_published_bag_of_fewer_observations_is_never_edited(
    archivist: Archivist, archive: Path, store: Store, tmp_path: Path
) -> None:
    elsewhere = open_site(tmp_path / "elsewhere")
    ingest_telegrams(elsewhere, 1)
    archive_day(make_archivist(elsewhere, archive))
    elsewhere.close()
    before = hash_tree(archive / V1)
    assert archive_day(archivist).record.path == V2
    assert hash_tree(archive / V1) == before


@pytest.mark.parametrize(
    "name",
    [
        "data/observations.tar.zst",
        "data/observations.csv",
        "data/predictions-boundary-layer-height-v1.nc",
        "data/provenance.json",
        "manifest-sha256.txt",
        "bag-info.txt",
    ],
)
def test_a_byte_that_changes_between_writing_and_reading_back_is_noticed(
    store: Store, archive: Path, name: str
) -> None:
    def corrupt(step: Step, folder: Path) -> None:
        if step is Step.SYNCED:
            content = bytearray((folder / name).read_bytes())
            content[len(content) // 2] ^= 1
            (folder / name).write_bytes(content)

    with pytest.raises(BrokenStateError):
        archive_day(make_archivist(store, archive, on_step=corrupt))
    assert recorded(store) == []
    assert list(hash_tree(archive)) == ["lindenberg/cl51/.lock"]
    assert archive_day(make_archivist(store, archive)).record.path == V1


def test_a_byte_that_the_disk_changes_before_the_manifest_is_written_is_noticed(store: Store, archive: Path) -> None:
    def corrupt(step: Step, folder: Path) -> None:
        if step is Step.OBSERVATIONS_WRITTEN:
            table = folder / "data" / "observations.csv"
            table.write_bytes(table.read_bytes().replace(b"test#2", b"test#7"))

    with pytest.raises(BrokenStateError, match=r"data/observations\.csv"):
        archive_day(make_archivist(store, archive, on_step=corrupt))


@pytest.mark.parametrize("step", [Step.OBSERVATIONS_WRITTEN, Step.PREDICTIONS_WRITTEN, Step.TAGS_WRITTEN])
def test_a_full_disk_leaves_nothing_but_a_clear_error(store: Store, archive: Path, step: Step) -> None:
    def fill(reached: Step, folder: Path) -> None:
        if reached is step:
            raise OSError(errno.ENOSPC, "No space left on device", str(folder))

    with pytest.raises(TryAgainError, match="No space left on device") as caught:
        archive_day(make_archivist(store, archive, on_step=fill))
    assert "free space" in caught.value.hint
    assert recorded(store) == []
    assert not parts(archive)
    assert archive_day(make_archivist(store, archive)).record.path == V1


def test_where_locks_do_not_work_the_slower_run_gives_way(store: Store, archive: Path) -> None:
    def overtake(step: Step, folder: Path) -> None:
        if step is Step.VERIFIED:
            shutil.copytree(folder, archive / V1)

    with pytest.raises(TryAgainError, match="another run has published"):
        archive_day(make_archivist(store, archive, on_step=overtake))
    assert not parts(archive)
    assert archive_day(make_archivist(store, archive)).status == "recorded"


def test_a_lock_that_is_held_too_long_is_reported(store: Store, archive: Path) -> None:
    home = archive / "lindenberg" / "cl51"
    home.mkdir(parents=True)
    with locked(home / ".lock", 0), pytest.raises(TryAgainError, match="another run has held"):
        archive_day(make_archivist(store, archive, lock_wait_s=0))


def test_waiting_for_a_lock_ends_at_the_deadline(tmp_path: Path) -> None:
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    path = tmp_path / "lock"
    with (
        locked(path, 0),
        pytest.raises(TryAgainError),
        locked(path, 5, clock=lambda: now[0], sleep=sleep),
    ):
        pytest.fail("two held one lock")
    assert 5 <= now[0] < 6


def test_one_day_that_fails_does_not_keep_the_others(tmp_path: Path, archive: Path) -> None:
    store = open_site(tmp_path / "two", instruments=("cl31", "cl51"))
    ingest_telegrams(store, 1, instrument="cl31")
    ingest_telegrams(store, 2, instrument="cl51")
    archive.mkdir()
    (archive / "lindenberg").mkdir()
    (archive / "lindenberg" / "cl31").write_text("a file is in the way")
    archivist = make_archivist(store, archive)
    failed, archived = archive_days(archivist, archivist.find_days(DAY, DAY), lambda: NOW_NANOS)
    store.close()
    assert isinstance(failed, FailedDay)
    assert isinstance(failed.error, TryAgainError)
    assert not isinstance(archived, FailedDay)
    assert archived.record.path == V1
