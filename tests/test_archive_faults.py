"""What happens to the archive and its copy when a disk refuses, fills up, or goes away under a run."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import bagit
import pytest
from archive_support import (
    NOW_NANOS,
    archive_day,
    hash_tree,
    ingest_telegrams,
    make_archivist,
    make_site,
    open_site,
    parts,
    predict,
    recorded,
)
from small_disk import small_disk
from sqlalchemy import update

from fieldpost.errors import BrokenStateError, TryAgainError
from flows.archiving.archivist import ArchivedDay, Archivist
from flows.archiving.copies import OWED_BAGS_MAX, Copies, choose_bags, copy_bags, copy_now
from flows.archiving.report import to_error, to_rows, to_text
from flows.archiving.second_copy import CopiedBag, Copyist, FailedCopy
from flows.bags.bag import Step
from flows.site import Site
from server.archive.bag_copies import count_uncopied_bags
from server.archive.bags import newest_bag
from server.archive.retention import prune
from server.archive.shelf_folder import FolderShelf
from server.storage.store import Store
from server.storage.tables import bags, model_versions

V1 = "lindenberg/cl51/2025/2025-06-15.v1"
V2 = "lindenberg/cl51/2025/2025-06-15.v2"
BEFORE_PUBLISHED = [step for step in Step if step not in (Step.PUBLISHED, Step.RECORDED)]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = open_site(tmp_path / "data")
    ingest_telegrams(store, 1, 2, 3)
    predict(store, 1, 2)
    yield store
    store.close()


def remount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)


def run_copies(site: Site, *outcomes: ArchivedDay, is_new_place: bool = False) -> Copies:
    return copy_bags(site, outcomes, copy_now(lambda: NOW_NANOS + 7), is_new_place=is_new_place)


def test_an_array_that_is_full_leaves_nothing_behind_wherever_it_fills_up(store: Store, tmp_path: Path) -> None:
    with small_disk(tmp_path / "array", 4096 * 8) as array:
        archivist = make_archivist(store, array)
        for kib in (20, 32, 64, 96, 128):
            remount(array, f"size={kib}k")
            with pytest.raises(TryAgainError, match="could not be written"):
                archive_day(archivist)
            assert list(hash_tree(array)) == ["lindenberg/cl51/.lock"], kib
            assert recorded(store) == []
        remount(array, "size=1m")
        assert archive_day(archivist).status == "archived"
        bagit.Bag(str(array / V1)).validate()


def test_an_array_that_is_read_only_keeps_what_it_has_and_takes_the_rest_later(store: Store, tmp_path: Path) -> None:
    with small_disk(tmp_path / "array", 1 << 20) as array:
        archivist = make_archivist(store, array)
        record = archive_day(archivist).record
        before = hash_tree(array)
        ingest_telegrams(store, 4)
        remount(array, "ro")
        with pytest.raises(TryAgainError, match=f"the archive {array} .* Read-only file system") as caught:
            archive_day(archivist)
        assert "writable" in caught.value.hint
        assert (hash_tree(array), recorded(store)) == (before, [(V1, 1)])
        settled = update(model_versions).values(settled_observation_id=10)
        store.write(lambda connection: connection.execute(settled)).result(10)
        report = prune(store, FolderShelf(array), hot_days=1, now_unix_nanos=NOW_NANOS + 5 * 86_400 * 10**9)
        assert (report.observation_count, report.errors) == (record.observation_count, [])
        remount(array, "rw")
        again = archive_day(archivist)
        assert (again.record.path, again.record.observation_count) == (V2, 1)


@pytest.mark.parametrize("step", BEFORE_PUBLISHED)
def test_an_array_that_goes_away_in_the_middle_leaves_its_mount_point_empty(
    store: Store, tmp_path: Path, step: Step
) -> None:
    archive, away = tmp_path / "archive", tmp_path / "away"

    def unmount(reached: Step, _: Path) -> None:
        if reached is step:
            archive.rename(away)
            archive.mkdir()

    with pytest.raises(TryAgainError):
        archive_day(make_archivist(store, archive, on_step=unmount))
    assert list(archive.rglob("*")) == []
    assert recorded(store) == []
    archive.rmdir()
    away.rename(archive)
    assert archive_day(make_archivist(store, archive)).record.path == V1
    assert not parts(archive)
    bagit.Bag(str(archive / V1)).validate()


def test_a_bag_that_was_published_is_recorded_though_the_array_has_gone_since(store: Store, tmp_path: Path) -> None:
    archive, away = tmp_path / "archive", tmp_path / "away"

    def unmount(reached: Step, _: Path) -> None:
        if reached is Step.PUBLISHED:
            archive.rename(away)

    record = archive_day(make_archivist(store, archive, on_step=unmount)).record
    away.rename(archive)
    assert record.bag_bytes == sum(each.stat().st_size for each in (archive / V1).rglob("*.*"))
    assert archive_day(make_archivist(store, archive)).status == "present"


def test_an_array_that_goes_between_two_days_is_not_taken_for_a_new_one(store: Store, tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    archivist = make_archivist(store, archive)
    archive_day(archivist)
    ingest_telegrams(store, 4)
    archive.rename(tmp_path / "away")
    archive.mkdir()
    with pytest.raises(BrokenStateError, match="but it holds none"):
        archive_day(archivist)
    assert list(archive.iterdir()) == []


def test_a_new_bag_and_those_that_are_owed_are_copied_file_by_file(store: Store, tmp_path: Path) -> None:
    archive, copy = tmp_path / "archive", tmp_path / "copy"
    archive_day(make_archivist(store, archive))  # at a time when there was no second place
    ingest_telegrams(store, 4)
    site = make_site(store, archive, copy=copy)
    archived = archive_day(Archivist(site))
    copies = run_copies(site, archived)
    assert [each.bag.record.path for each in copies.outcomes] == [V2, V1]
    assert (copies.missing_count, copies.error, to_error([archived], copies)) == (0, None, None)
    assert hash_tree(copy) == hash_tree(archive)
    with store.read() as connection:
        newest = newest_bag(connection, archived.day)
    assert newest is not None and newest.copy_unix_nanos == NOW_NANOS + 7
    assert [(row["outcome"], row["copy"]) for row in to_rows([archived], copies)] == [
        ("archived", "copied"),
        ("copied", "copied"),
    ]
    assert run_copies(site).outcomes == ()


def test_a_copy_that_cannot_be_written_keeps_nothing_back_and_is_made_by_the_next_run(
    store: Store, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "second", 1 << 20) as second:
        site = make_site(store, tmp_path / "archive", copy=second)
        remount(second, "ro")
        archived = archive_day(Archivist(site))
        copies = run_copies(site, archived)
        assert recorded(store) == [(V1, 1)]
        assert copies.missing_count == 1
        error = to_error([archived], copies)
        assert isinstance(error, TryAgainError)
        assert "1 bag without a copy" in str(error) and "Read-only" in str(error)
        assert "without a copy" in to_text([archived], copies)
        remount(second, "rw,size=16k")
        assert isinstance(run_copies(site).outcomes[0], FailedCopy)
        assert list(hash_tree(second)) == ["lindenberg/cl51/.lock"]
        remount(second, "size=1m")
        assert isinstance(run_copies(site).outcomes[0], CopiedBag)
        assert hash_tree(second) == hash_tree(tmp_path / "archive")


def test_a_second_place_that_is_not_mounted_is_not_filled_and_a_new_one_is_when_told_so(
    store: Store, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    site = make_site(store, tmp_path / "archive", copy=copy)
    archive_day(Archivist(site))
    run_copies(site)
    copy.rename(tmp_path / "old disk")
    copies = run_copies(site)
    assert isinstance(to_error([], copies), TryAgainError)
    assert "holds none" in str(copies.error) and not copy.exists()
    assert len(run_copies(site, is_new_place=True).outcomes) == 1
    assert hash_tree(copy) == hash_tree(tmp_path / "archive")


@pytest.mark.parametrize("name", ["data/observations.csv", "manifest-sha256.txt"])
def test_a_bag_that_is_damaged_is_not_copied_and_the_others_are(store: Store, tmp_path: Path, name: str) -> None:
    archive, copy = tmp_path / "archive", tmp_path / "copy"
    site = make_site(store, archive, copy=copy)
    archive_day(Archivist(site))
    ingest_telegrams(store, 4)
    archive_day(Archivist(site))
    content = bytearray((archive / V1 / name).read_bytes())
    content[len(content) // 2] ^= 1
    (archive / V1 / name).write_bytes(content)
    copies = run_copies(site)
    assert [type(each) for each in copies.outcomes] == [FailedCopy, CopiedBag]
    assert isinstance(to_error([], copies), BrokenStateError)
    assert list(FolderShelf(copy).list_paths()) == [V2]
    assert not parts(copy)
    told = update(bags).where(bags.c.path == V1).values(damage="a flipped bit")
    store.write(lambda connection: connection.execute(told)).result(10)
    assert run_copies(site).outcomes == ()


def test_a_copy_that_was_not_recorded_is_read_back_and_a_damaged_one_is_set_aside(store: Store, tmp_path: Path) -> None:
    archive, copy = tmp_path / "archive", tmp_path / "copy"
    site = make_site(store, archive, copy=copy)
    archive_day(Archivist(site))
    shutil.copytree(archive, copy)
    before = (copy / V1 / "bagit.txt").stat().st_ino
    run_copies(site)
    assert (copy / V1 / "bagit.txt").stat().st_ino == before
    (copy / V1 / "data" / "observations.csv").write_bytes(b"damaged")
    Copyist(site).forget_all()
    run_copies(site)
    assert hash_tree(copy / V1) == hash_tree(archive / V1)
    (aside,) = copy.glob("*/*/*/.damaged-*")
    assert (aside / "data" / "observations.csv").read_bytes() == b"damaged"


def test_the_copies_of_another_archive_are_left_alone(store: Store, tmp_path: Path) -> None:
    other = open_site(tmp_path / "other")
    ingest_telegrams(other, 9)
    archive_day(make_archivist(other, tmp_path / "copy"))
    other.close()
    before = hash_tree(tmp_path / "copy")
    site = make_site(store, tmp_path / "archive", copy=tmp_path / "copy")
    archive_day(Archivist(site))
    (failed,) = run_copies(site).outcomes
    assert isinstance(failed, FailedCopy) and "another content" in str(failed.error)
    assert hash_tree(tmp_path / "copy") == before
    with store.read() as connection:
        assert count_uncopied_bags(connection) == 1


def test_a_bag_of_this_run_is_copied_once_and_before_those_that_are_owed(store: Store, tmp_path: Path) -> None:
    site = make_site(store, tmp_path / "archive", copy=tmp_path / "copy")
    archive_day(Archivist(site))
    ingest_telegrams(store, 4)
    archived = archive_day(Archivist(site))
    owed = Copyist(site).find_missing(OWED_BAGS_MAX)
    assert [each.record.path for each in owed] == [V1, V2]
    assert [each.record.path for each in choose_bags([archived], owed)] == [V2, V1]
    assert [each.record.path for each in Copyist(site).find_missing(1)] == [V1]
