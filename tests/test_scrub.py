"""Damage of every kind, on either shelf: it is found, named, and mended wherever a whole bag is left.

Run as a program, this file forks repairs that are killed at each of their steps.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import bagit
import obstore
import pytest
from archive_support import NOW_NANOS, archive_day, hash_tree, ingest_telegrams, make_archivist, make_site, predict
from archive_support import open_site as open_store
from s3_support import s3_server
from sqlalchemy import select

from fieldpost.errors import BrokenStateError, TryAgainError
from flows.archiving.second_copy import Copyist
from flows.scrubbing.look import Look, look
from flows.scrubbing.mending import MendStep
from flows.scrubbing.parameters import ScrubParams
from flows.scrubbing.scrubber import Outcome, ScrubbedBag, Scrubber, UnreadBag, ignore_bytes
from flows.site import Site, open_shelves
from server.archive.manifests import TAG_MANIFEST, parse_manifest
from server.archive.shelf_folder import FolderShelf
from server.settings import Settings
from server.storage.store import Store
from server.storage.tables import bags

ROOT = Path(__file__).resolve().parent.parent
V1 = "lindenberg/cl51/2025/2025-06-15.v1"
LATER_NANOS = NOW_NANOS + 86_400 * 10**9
ALL = ScrubParams()


@pytest.fixture(scope="module")
def archived(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with a day, its bag and the bag's copy."""
    base = tmp_path_factory.mktemp("archived")
    store = open_store(base / "data")
    ingest_telegrams(store, 1, 2, 3)
    predict(store, 1, 2)
    archive_day(make_archivist(store, base / "archive"))
    store.close()
    shutil.copytree(base / "archive", base / "copy")
    return base


@pytest.fixture
def base(archived: Path, tmp_path: Path) -> Path:
    """The same, to be damaged."""
    shutil.copytree(archived, tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def store(base: Path) -> Iterator[Store]:
    store = open_store(base / "data")
    yield store
    store.close()


def site_of(store: Store, base: Path, *, has_copy: bool = True) -> Site:
    return make_site(store, base / "archive", copy=base / "copy" if has_copy else None)


def scrub_once(site: Site, **options: Any) -> Outcome:
    """Scrubs the one bag that there is."""
    scrubber = Scrubber(site, lock_wait_s=0, **options)
    (bag,) = scrubber.plan(ALL, LATER_NANOS).due
    return scrubber.scrub(bag, LATER_NANOS)


def scrubbed(site: Site, **options: Any) -> ScrubbedBag:
    outcome = scrub_once(site, **options)
    assert isinstance(outcome, ScrubbedBag), outcome
    return outcome


def recorded(store: Store) -> Any:
    with store.read() as connection:
        return connection.execute(select(bags)).one()


def flip_bit(path: Path, random: Random) -> None:
    content = bytearray(path.read_bytes())
    content[random.randrange(len(content))] ^= 1 << random.randrange(8)
    path.write_bytes(content)


def look_at(folder: Path, manifest_sha256: str) -> Look:
    return look(FolderShelf(folder), V1, manifest_sha256, ignore_bytes)


def test_a_whole_archive_is_found_whole_and_its_check_is_recorded(store: Store, base: Path) -> None:
    outcome = scrubbed(site_of(store, base))
    sizes = [path.stat().st_size for path in (base / "archive" / V1).rglob("*") if path.is_file()]
    assert (outcome.byte_count, outcome.hash_count) == (2 * sum(sizes), 2 * len(sizes))
    assert (outcome.problems, outcome.damage, outcome.has_copy) == ((), "", True)
    row = recorded(store)
    assert (row.check_unix_nanos, row.copy_unix_nanos) == (LATER_NANOS, LATER_NANOS)
    assert (row.bag_bytes, row.damage) == (sum(sizes), "")


def test_a_flipped_bit_at_a_random_place_of_any_file_is_found_and_the_file_named(
    store: Store, base: Path, tmp_path: Path
) -> None:
    manifest_sha256, random = recorded(store).manifest_sha256, Random(6)
    names = [str(path.relative_to(base / "archive" / V1)) for path in (base / "archive" / V1).rglob("*.*")]
    assert len(names) >= 9
    for name in names:
        for _ in range(3):
            folder = tmp_path / "flipped"
            shutil.copytree(base / "archive", folder)
            flip_bit(folder / V1 / name, random)
            found = look_at(folder, manifest_sha256)
            assert not found.is_whole, name
            assert name in str(found) or name == TAG_MANIFEST, "that one blames the files whose hashes it has"
            shutil.rmtree(folder)


def test_no_flipped_bit_of_a_tag_manifest_goes_unnoticed(base: Path) -> None:
    content = (base / "archive" / V1 / TAG_MANIFEST).read_bytes()
    promised = parse_manifest(content, TAG_MANIFEST)
    for place in range(8 * len(content)):
        flipped = bytearray(content)
        flipped[place // 8] ^= 1 << place % 8
        with suppress(BrokenStateError):
            assert parse_manifest(bytes(flipped), TAG_MANIFEST) != promised


def test_a_file_that_is_missing_cut_or_too_much_is_found(store: Store, base: Path) -> None:
    manifest_sha256, bag = recorded(store).manifest_sha256, base / "archive" / V1
    (bag / "data" / "provenance.json").unlink()
    os.truncate(bag / "data" / "observations.csv", 10)
    (bag / "data" / "notes.txt").write_text("by hand")
    found = look_at(base / "archive", manifest_sha256)
    assert len(found.problems) == 3
    assert "data/provenance.json is not there" in found.problems
    assert "data/notes.txt does not belong to it" in found.problems
    assert "data/observations.csv has SHA-256" in str(found)


def test_a_sector_that_the_disk_cannot_read_is_damage(store: Store, base: Path) -> None:
    csv = base / "archive" / V1 / "data" / "observations.csv"
    csv.unlink()
    csv.symlink_to("/proc/self/mem")  # reading its first page is an EIO, as a bad sector is
    found = look_at(base / "archive", recorded(store).manifest_sha256)
    assert [each for each in found.problems if "Input/output error" in each and "observations.csv" in each]


def test_a_manifest_that_fits_its_files_but_not_the_record_is_found(store: Store, base: Path) -> None:
    bag = bagit.Bag(str(base / "archive" / V1))
    (base / "archive" / V1 / "data" / "observations.csv").write_text("another day\n")
    bag.save(manifests=True)
    bagit.Bag(str(base / "archive" / V1)).validate()
    assert "expected manifest-sha256.txt with SHA-256" in str(
        look_at(base / "archive", recorded(store).manifest_sha256)
    )


@pytest.mark.parametrize(("damaged", "whole"), [("archive", "copy"), ("copy", "archive")])
@pytest.mark.parametrize("is_missing", [False, True], ids=["damaged", "missing"])
def test_the_damaged_side_is_replaced_by_the_whole_one_and_kept_aside(
    store: Store, base: Path, damaged: str, whole: str, is_missing: bool
) -> None:
    site = site_of(store, base)
    scrubbed(site)  # from now on the copy is expected
    good = hash_tree(base / whole / V1)
    flip_bit(base / damaged / V1 / "data" / "observations.tar.zst", Random(1))
    bad = hash_tree(base / damaged / V1)
    if is_missing:
        shutil.rmtree(base / damaged / V1)
    outcome = scrubbed(site)
    assert (outcome.is_repaired, outcome.damage, len(outcome.problems)) == (True, "", 1)
    assert hash_tree(base / damaged / V1) == hash_tree(base / whole / V1) == good
    bagit.Bag(str(base / damaged / V1)).validate()
    aside = list((base / damaged).rglob(".damaged-*"))
    assert [hash_tree(each) for each in aside] == ([] if is_missing else [bad])
    assert len(outcome.set_aside) == len(aside)
    assert not list(base.rglob(".part-*"))
    assert scrubbed(site).problems == ()


def test_without_repair_damage_is_told_and_recorded_and_nothing_is_touched(store: Store, base: Path) -> None:
    flip_bit(base / "archive" / V1 / "data" / "observations.csv", Random(2))
    before = hash_tree(base / "archive") | {"copy": str(hash_tree(base / "copy"))}
    outcome = scrubbed(site_of(store, base), is_repairing=False)
    assert "observations.csv has SHA-256" in outcome.damage
    assert "one side is whole: run scrub with Repair on" in outcome.advice
    assert hash_tree(base / "archive") | {"copy": str(hash_tree(base / "copy"))} == before
    row = recorded(store)
    assert (row.damage, row.copy_unix_nanos) == (outcome.damage, LATER_NANOS)
    assert row.check_unix_nanos != LATER_NANOS, "it was not found whole"
    assert scrubbed(site_of(store, base)).is_repaired
    assert recorded(store).damage == ""


def test_where_both_sides_are_damaged_nothing_is_touched(store: Store, base: Path) -> None:
    for side, name in (("archive", "observations.tar.zst"), ("copy", "provenance.json")):
        flip_bit(base / side / V1 / "data" / name, Random(3))
    before = [hash_tree(base / side) for side in ("archive", "copy")]
    outcome = scrubbed(site_of(store, base))
    assert [hash_tree(base / side) for side in ("archive", "copy")] == before
    assert str(base / "archive") in outcome.damage
    assert str(base / "copy") in outcome.damage
    assert "the store still holds the day: run archive for lindenberg/cl51 of 2025-06-15" in outcome.advice
    assert recorded(store).damage == outcome.damage


def test_a_damaged_bag_without_a_copy_whose_day_the_store_still_holds_gets_a_new_version(
    store: Store, base: Path
) -> None:
    flip_bit(base / "archive" / V1 / "data" / "observations.tar.zst", Random(4))
    site = site_of(store, base, has_copy=False)
    assert "it makes a new version" in scrubbed(site).advice
    again = archive_day(make_archivist(store, base / "archive"), LATER_NANOS)
    assert (again.status, again.record.version) == ("archived", 2)
    assert archive_day(make_archivist(store, base / "archive"), LATER_NANOS).status == "present"
    scrubber = Scrubber(site)
    outcomes = [scrubber.scrub(bag, LATER_NANOS) for bag in scrubber.plan(ALL, LATER_NANOS).due]
    advice = {each.bag.version: each.advice for each in outcomes if isinstance(each, ScrubbedBag)}
    assert advice == {1: "nothing is lost: a later version of the day holds all that this one did", 2: ""}


def test_bags_that_lie_on_a_shelf_and_are_not_recorded_are_named(store: Store, base: Path) -> None:
    shutil.copytree(base / "archive" / V1, base / "archive" / V1.replace(".v1", ".v2"))
    shutil.copytree(base / "archive" / V1, base / "copy" / V1.replace("cl51/", "chm15k/"))
    scrubber = Scrubber(site_of(store, base))
    both = [f"{V1[:-1]}2 in {base / 'archive'}", f"{V1.replace('cl51/', 'chm15k/')} in {base / 'copy'}"]
    assert scrubber.find_unrecorded(ALL) == both
    assert scrubber.find_unrecorded(ScrubParams(instrument="chm15k")) == both[1:]


def test_an_archive_that_went_away_is_no_damage_and_nothing_is_written_into_its_mount_point(
    store: Store, base: Path
) -> None:
    site = site_of(store, base)
    (base / "archive").rename(base / "away")
    (base / "archive").mkdir()
    outcome = scrub_once(site)
    assert isinstance(outcome, UnreadBag)
    assert isinstance(outcome.error, TryAgainError)
    assert "mount the storage" in outcome.error.hint
    assert list((base / "archive").iterdir()) == []
    assert recorded(store).damage == ""


def test_a_second_place_that_is_away_does_not_keep_the_first_from_being_read(store: Store, base: Path) -> None:
    scrubbed(site_of(store, base))
    shutil.rmtree(base / "copy")
    (base / "copy").mkdir()
    site = site_of(store, base)
    outcome = scrubbed(site)
    assert "mount the storage" in str(outcome.copy_error and outcome.copy_error.hint)
    assert (outcome.damage, outcome.byte_count) == ("", recorded(store).bag_bytes)
    flip_bit(base / "archive" / V1 / "data" / "observations.csv", Random(8))
    scrubber = Scrubber(site)
    (bag,) = scrubber.plan(ALL, LATER_NANOS).due
    for words in ("nothing at all lies there", "nothing at all", "nothing at all", "did not answer 3 times in a row"):
        outcome = scrubber.scrub(bag, LATER_NANOS + 1)  # type: ignore[assignment]
        assert "its copy could not be read now" in outcome.advice
        assert words in outcome.advice
    assert list((base / "copy").iterdir()) == []
    assert recorded(store).check_unix_nanos == LATER_NANOS


def test_a_repair_waits_for_a_run_on_the_same_instrument_and_its_damage_is_told(store: Store, base: Path) -> None:
    flip_bit(base / "archive" / V1 / "data" / "observations.csv", Random(5))
    site = site_of(store, base)
    with FolderShelf(base / "archive").lock("lindenberg/cl51", 0):
        outcome = scrubbed(site)
    assert "it could not be repaired: another run has held" in outcome.damage
    assert scrubbed(site).is_repaired


def test_a_damaged_copy_in_an_object_store_is_replaced_and_kept_aside(
    store: Store, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with s3_server(monkeypatch) as s3:
        settings = Settings(
            data_folder=base / "data", archive_folder=str(base / "archive"), archive_copy_folder=s3.url("copy")
        )
        site = Site(settings, store, *open_shelves(settings))
        copyist = Copyist(site)
        copyist.copy(copyist.find_missing(1)[0], NOW_NANOS)
        assert scrubbed(site).problems == ()
        name = f"{V1}/data/observations.csv"
        obstore.put(s3.objects("copy"), name, b"damaged")
        outcome = scrubbed(site)
        assert (outcome.is_repaired, len(outcome.set_aside)) == (True, 1)
        content = bytes(obstore.get(s3.objects("copy"), name).bytes())
        assert content == (base / "archive" / name).read_bytes()
        assert "damaged" in {each.rpartition("/.")[2].partition("-")[0] for each in outcome.set_aside}
        assert scrubbed(site).problems == ()


def kill_repairs(base: Path) -> None:
    """For each step, and each damaged side, a repair that is killed after it."""
    for side in ("archive", "copy"):
        for step in MendStep:
            site = base / side / step
            shutil.copytree(base / "site", site)
            flip_bit(site / side / V1 / "data" / "observations.tar.zst", Random(7))
            child = os.fork()
            if child == 0:
                store = open_store(site / "data")

                def kill(reached: MendStep, step: MendStep = step) -> None:
                    if reached is step:
                        os.kill(os.getpid(), signal.SIGKILL)

                scrub_once(site_of(store, site), on_step=kill)
                os._exit(1)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL, step


@pytest.fixture(scope="module")
def killed(archived: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sites in which a repair was killed, at side/step."""
    base = tmp_path_factory.mktemp("killed")
    shutil.copytree(archived, base / "site")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests")))}
    subprocess.run([sys.executable, __file__, str(base)], check=True, env=environment, timeout=100)
    return base


@pytest.mark.parametrize("side", ["archive", "copy"])
@pytest.mark.parametrize("step", MendStep)
def test_a_repair_killed_at_any_step_leaves_a_whole_bag_and_the_next_scrub_ends_it(
    killed: Path, side: str, step: MendStep
) -> None:
    base = killed / side / step
    other = "copy" if side == "archive" else "archive"
    bagit.Bag(str(base / other / V1)).validate()
    store = open_store(base / "data")
    scrubbed(site_of(store, base))
    if side == "copy" and step is MendStep.SET_ASIDE:
        assert not (base / side / V1).exists(), "a copy that was never recorded is the archive flow's to bring"
    else:
        assert hash_tree(base / side / V1) == hash_tree(base / other / V1)
    assert recorded(store).damage == ""
    assert not list(base.rglob(".part-*")) or step is MendStep.SET_ASIDE
    store.close()


if __name__ == "__main__":
    kill_repairs(Path(sys.argv[1]))
