"""Shelves of both kinds hold bags alike: whole or not at all, never overwritten, and found again by name."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import bagit
import obstore
import pytest
from archive_support import (
    NOW_NANOS,
    archive_day,
    hash_tree,
    ingest_telegrams,
    make_site,
    open_site,
    read_csv,
    recorded,
)
from s3_support import S3Server, s3_server
from server_support import make_observation

from fieldpost.errors import BrokenStateError, FieldpostError, InvalidRequestError, TryAgainError
from flows.archiving.archivist import Archivist
from flows.archiving.copies import copy_bags, copy_now
from flows.bags.bag import Step
from flows.bags.bag_format import write_tag_files
from flows.bags.durable import write_file
from flows.site import Site, open_shelves
from server.archive import shelf_objects
from server.archive.retention import prune
from server.archive.shelf import Shelf, open_shelf
from server.archive.shelf_objects import ObjectShelf
from server.settings import Settings, load_settings
from server.storage.store import Store

ROOT = Path(__file__).resolve().parent.parent
HOME = "lindenberg/cl51"
V1 = f"{HOME}/2025/2025-06-15.v1"
PUT_COUNT = 7
"""Objects of a bag without predictions: three files, three that BagIt asks for, and one about these."""
KILLED_AT = (1, 2, 4, 6, PUT_COUNT)
"""After so many: only claimed, with some of the rest, with all but the one that makes it visible, and with that too."""


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    with s3_server(monkeypatch) as server:
        yield server


@pytest.fixture(params=["folder", "s3"])
def shelf(request: pytest.FixtureRequest, tmp_path: Path) -> Shelf:
    place = tmp_path / "bags" if request.param == "folder" else request.getfixturevalue("s3").url("bags")
    return open_shelf(place, tmp_path / "staging")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = open_site(tmp_path / "data")
    ingest_telegrams(store, 1, 2, 3)
    yield store
    store.close()


def site_on(store: Store, shelf: Shelf, tmp_path: Path) -> Site:
    return Site(Settings(data_folder=tmp_path / "data"), store, shelf, None)


def put_bag(shelf: Shelf, path: str, content: bytes = b"observations") -> None:
    """A bag of one file."""
    with shelf.stage(path) as part:
        (part / "data").mkdir()
        digest = write_file(part / "data" / "observations.csv", content)
        write_tag_files(part, {"observations.csv": digest}, {"Bagging-Date": "2025-06-16"})
        shelf.publish(part, path)


def test_a_bag_is_made_found_and_read_on_either_shelf(shelf: Shelf, store: Store, tmp_path: Path) -> None:
    assert shelf.is_empty()
    archivist = Archivist(site_on(store, shelf, tmp_path))
    record = archive_day(archivist).record
    assert not shelf.is_empty()
    assert list(shelf.list_paths()) == list(shelf.list_paths(HOME)) == [V1] == [record.path]
    assert shelf.has(V1) and not shelf.has(V1.replace("v1", "v2"))
    with shelf.open(V1) as folder:
        bagit.Bag(str(folder)).validate()
        assert [line["sequence"] for line in read_csv(folder)] == ["1", "2", "3"]
        table = (folder / "data" / "observations.csv").read_bytes()
        sizes = sorted((str(each.relative_to(folder)), each.stat().st_size) for each in folder.rglob("*.*"))
    assert shelf.list_files(V1) == sizes
    assert record.bag_bytes == sum(size for _, size in sizes)
    payload_bytes = sum(make_observation(each).header.payload_bytes for each in (1, 2, 3))
    assert (record.payload_bytes, record.check_unix_nanos) == (payload_bytes, NOW_NANOS)
    assert b"".join(shelf.read(V1, "data/observations.csv", 10)) == table[10:]
    assert archive_day(archivist).status == "present"
    ingest_telegrams(store, 4)
    assert archive_day(archivist).record.path.endswith("v2")
    report = prune(store, shelf, hot_days=1, now_unix_nanos=NOW_NANOS + 5 * 86_400 * 10**9)
    assert (report.observation_count, report.errors) == (4, [])


def test_bags_are_listed_by_day_and_version(shelf: Shelf) -> None:
    versions = [f"{HOME}/2025/2025-06-15.v{version}" for version in (10, 2, 1)]
    for path in ("payerne/chm15k/2024/2024-12-31.v1", f"{HOME}/2025/2025-06-14.v1", *versions):
        put_bag(shelf, path)
    assert list(shelf.list_paths(HOME)) == [f"{HOME}/2025/2025-06-14.v1", *reversed(versions)]
    assert len(list(shelf.list_paths())) == 5
    assert list(shelf.list_paths("lindenberg/cl5")) == []


def test_a_bag_is_never_overwritten(shelf: Shelf) -> None:
    put_bag(shelf, V1)
    with pytest.raises(TryAgainError, match="another run has published"):
        put_bag(shelf, V1, b"other observations")
    assert b"".join(shelf.read(V1, "data/observations.csv")) == b"observations"


def test_a_damaged_bag_is_set_aside_and_makes_room(shelf: Shelf) -> None:
    put_bag(shelf, V1, b"damaged")
    aside = shelf.set_aside(V1)
    assert aside.startswith(f"{HOME}/2025/.damaged-2025-06-15.v1-")
    assert list(shelf.list_paths()) == [] and not shelf.has(V1)
    assert b"".join(shelf.read(aside, "data/observations.csv")) == b"damaged"
    put_bag(shelf, V1)
    assert shelf.has(V1)


def enter(shelf: Shelf) -> None:
    with ExitStack() as stack:
        stack.enter_context(shelf.open(V1))


@pytest.mark.parametrize(
    "ask",
    [lambda shelf: shelf.set_aside(V1), lambda shelf: list(shelf.read(V1, "bagit.txt")), enter],
)
def test_what_is_not_there_is_named(shelf: Shelf, ask: Callable[[Shelf], object]) -> None:
    with pytest.raises(BrokenStateError, match=V1):
        ask(shelf)


@pytest.mark.parametrize("place", ["ftp://array/bags", "s3://bucket/bags?secret_access_key=abc"])
def test_a_place_that_is_none_is_refused(place: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError):
        open_shelf(place, tmp_path)


def test_a_time_zone_that_is_none_is_refused() -> None:
    assert load_settings(time_zone="Europe/Berlin").time_zone == "Europe/Berlin"
    with pytest.raises(InvalidRequestError, match=r"expected the IANA name of a time zone.* 'Europe/Atlantis'"):
        load_settings(time_zone="Europe/Atlantis")


def test_the_second_place_cannot_be_the_first_one(tmp_path: Path) -> None:
    settings = Settings(archive_folder=str(tmp_path), archive_copy_folder=str(tmp_path))
    with pytest.raises(InvalidRequestError, match="the same"):
        open_shelves(settings)


@pytest.mark.parametrize("kinds", [("folder", "s3"), ("s3", "folder")])
def test_a_copy_is_brought_from_either_kind_of_shelf_to_the_other(
    store: Store, s3: S3Server, tmp_path: Path, kinds: tuple[str, str]
) -> None:
    first, second = (s3.url(f"bags-{kind}") if kind == "s3" else str(tmp_path / f"bags-{kind}") for kind in kinds)
    settings = Settings(data_folder=tmp_path / "data", archive_folder=first, archive_copy_folder=second)
    site = Site(settings, store, *open_shelves(settings))
    assert site.copy is not None
    archived = archive_day(Archivist(site))
    copies = copy_bags(site, [archived], copy_now(lambda: NOW_NANOS))
    assert (len(copies.outcomes), copies.missing_count) == (1, 0)
    with site.shelf.open(V1) as bag, site.copy.open(V1) as copy:
        assert hash_tree(bag) == hash_tree(copy)


def test_two_machines_at_once_make_one_bag(store: Store, s3: S3Server, tmp_path: Path) -> None:
    def archivist(machine: str, on_step: Callable[[Step, Path], None]) -> Archivist:
        return Archivist(site_on(store, ObjectShelf(s3.url("bags"), tmp_path / machine), tmp_path), on_step=on_step)

    def overtake(step: Step, _: Path) -> None:
        if step is Step.VERIFIED:
            assert archive_day(archivist("second", lambda step, path: None)).status == "archived"

    with pytest.raises(TryAgainError, match="another run has published"):
        archive_day(archivist("first", overtake), NOW_NANOS + 1)
    assert archive_day(archivist("first", lambda step, path: None)).status == "present"
    assert recorded(store) == [(V1, 1)]


def test_the_claim_of_another_machine_stands_until_it_is_a_day_old(
    store: Store, s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    obstore.put(s3.objects("bags"), f"{V1}/manifest-sha256.txt", b"0" * 64 + b"  data/observations.csv\n")
    obstore.put(s3.objects("bags"), f"{V1}/data/observations.csv", b"half of it")
    before = s3.sizes("bags")
    shelf = ObjectShelf(s3.url("bags"), tmp_path / "staging")
    with pytest.raises(TryAgainError, match="another run is bringing"):
        archive_day(Archivist(site_on(store, shelf, tmp_path)))
    assert s3.sizes("bags") == before
    assert recorded(store) == []
    monkeypatch.setattr(shelf_objects, "CLAIM_STALE_S", -3600.0)
    assert archive_day(Archivist(site_on(store, shelf, tmp_path))).record.path == V1
    with shelf.open(V1) as folder:
        bagit.Bag(str(folder)).validate()


def test_a_bag_that_takes_too_long_to_bring_is_given_up_before_its_claim_is_stale(s3: S3Server, tmp_path: Path) -> None:
    seconds = iter(range(0, 10**9, int(shelf_objects.CLAIM_HOLD_S / 3)))
    shelf = ObjectShelf(s3.url("bags"), tmp_path / "staging", clock=lambda: float(next(seconds)))
    with pytest.raises(TryAgainError, match="within 12 h"):
        put_bag(shelf, V1)
    assert s3.sizes("bags") == {}


def test_a_file_that_comes_back_different_makes_no_bag(s3: S3Server, tmp_path: Path) -> None:
    obstore.put(s3.objects("bags"), f"{V1}/data/observations.csv", b"something else")
    shelf = ObjectShelf(s3.url("bags"), tmp_path / "staging")
    with pytest.raises(BrokenStateError, match="came back different"):
        put_bag(shelf, V1)
    assert list(shelf.list_paths()) == []
    put_bag(shelf, V1)


def test_a_large_file_is_sent_in_parts(s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shelf_objects, "CREATED_BYTES_MAX", 1024)
    shelf = ObjectShelf(s3.url("bags"), tmp_path / "staging")
    content = bytes(range(256)) * 36_000  # 9 MB: more than a part, and than one range when it is read
    put_bag(shelf, V1, content)
    assert b"".join(shelf.read(V1, "data/observations.csv")) == content


def test_what_readers_that_died_left_is_swept_and_what_others_still_read_is_not(s3: S3Server, tmp_path: Path) -> None:
    shelf = ObjectShelf(s3.url("bags"), tmp_path / "staging")
    put_bag(shelf, V1)
    left = tmp_path / "staging" / HOME / ".open-2025-06-15.v1-0badcafe"
    left.mkdir()
    with shelf.open(V1) as folder, shelf.lock(HOME, 0):
        shelf.sweep(HOME)
        assert (folder / "bagit.txt").exists()
    assert sorted(each.name for each in left.parent.iterdir()) == [".lock"]


def archive_in(folder: Path, url: str, kill_after_put: int = 0) -> str:
    """Archives the one day of a site into an object store; ends with the put of this number, from 1 on."""
    counted, put = 0, obstore.put

    def put_and_die(*arguments: object, **options: object) -> object:
        nonlocal counted
        counted += 1
        result = put(*arguments, **options)  # type: ignore[arg-type]
        if counted == kill_after_put:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    if kill_after_put:
        obstore.put = put_and_die  # type: ignore[assignment]
    store = open_site(folder / "data")
    try:
        shelf = ObjectShelf(url, folder / "staging")
        return archive_day(Archivist(site_on(store, shelf, folder))).status
    except FieldpostError as error:
        return f"{type(error).__name__}: {error}"
    finally:
        store.close()


def test_a_run_killed_at_any_object_leaves_no_half_bag_and_the_next_one_completes(s3: S3Server, tmp_path: Path) -> None:
    sites = [tmp_path / str(number) for number in KILLED_AT]
    store = open_site(tmp_path / "site" / "data")
    ingest_telegrams(store, 1, 2, 3)
    store.close()
    for site in sites:
        shutil.copytree(tmp_path / "site", site)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests")))}
    command = [sys.executable, __file__, *(f"{site}={s3.url(site.name)}" for site in sites)]
    subprocess.run(command, check=True, env=environment, timeout=100)
    for number, site in zip(KILLED_AT, sites, strict=True):
        shelf = ObjectShelf(s3.url(site.name), site / "staging")
        assert len(s3.sizes(site.name)) == number
        assert list(shelf.list_paths()) == ([V1] if number == PUT_COUNT else [])
        assert shelf.has(V1) == (number == PUT_COUNT)
        assert archive_in(site, s3.url(site.name)) == ("recorded" if number == PUT_COUNT else "archived")
        with shelf.open(V1) as folder:
            bagit.Bag(str(folder)).validate()
        assert len(s3.sizes(site.name)) == PUT_COUNT
        assert list(hash_tree(site / "staging")) == [f"{HOME}/.lock"]


def test_an_object_store_that_does_not_answer_is_named(s3: S3Server, tmp_path: Path) -> None:
    shelf = ObjectShelf(s3.url("bags"), tmp_path / "staging")
    s3.stop()
    with pytest.raises(TryAgainError, match=f"the archive s3://{s3.bucket}/bags could not be written or read"):
        shelf.has(V1)


def test_a_reader_of_the_settings_finds_the_same_shelf(store: Store, tmp_path: Path) -> None:
    site = make_site(store, tmp_path / "archive", copy=tmp_path / "copy")
    assert (site.shelf.url, site.copy and site.copy.url) == (str(tmp_path / "archive"), str(tmp_path / "copy"))


if __name__ == "__main__":
    for number, (site_folder, _, url) in zip(KILLED_AT, (each.partition("=") for each in sys.argv[1:]), strict=True):
        child = os.fork()
        if child == 0:
            archive_in(Path(site_folder), url, kill_after_put=number)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL, number
