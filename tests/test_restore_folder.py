"""A day in a folder: the instrument's own files for other programs, whole or not there at all."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest
from archive_support import DAY, archive_day, hash_tree, ingest_all, ingest_telegrams, make_site, open_site, predict
from restore_support import LATER_NANOS, archive_and_let_go, make_archivist_of
from server_support import EPOCH, make_observation
from small_disk import small_disk

from fieldpost.errors import BrokenStateError, TryAgainError
from flows.restoring.outcomes import RestoredDay
from flows.restoring.restorer import Restorer
from flows.site import Site
from server.storage.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = open_site(tmp_path / "data")
    yield store
    store.close()


@pytest.fixture
def site(store: Store, tmp_path: Path) -> Site:
    return make_site(store, tmp_path / "archive")


def restore(site: Site, folder: Path) -> RestoredDay:
    restorer = Restorer(site)
    (day,) = restorer.find_days(DAY, DAY)
    return restorer.restore_to_folder(day, folder)


def hash_day(folder: Path) -> dict[str, str]:
    """All files that a person sees."""
    return {name: digest for name, digest in hash_tree(folder).items() if not name.endswith("/.lock")}


def test_a_day_becomes_the_files_of_its_instrument(site: Site, store: Store, tmp_path: Path) -> None:
    sent = [make_observation(1), make_observation(2, b"\0\xff" * 900), make_observation(3, b"")]
    sent[1].header.payload_format = "netcdf"
    ingest_all(store, sent)
    predict(store, 1)
    archive_and_let_go(site)
    restored = restore(site, tmp_path / "out")
    day = tmp_path / "out" / "lindenberg" / "cl51" / "2025-06-15"
    names = [f"{EPOCH[:8]}-{each:012d}.{kind}" for each, kind in ((1, "dat"), (2, "nc"), (3, "dat"))]
    assert sorted(each.name for each in day.iterdir() if not each.name.startswith("pr")) == [*names, "observations.csv"]
    assert [sha256((day / name).read_bytes()).digest() for name in names] == [each.header.sha256 for each in sent]
    assert (day / names[0]).stat().st_mtime_ns == sent[0].header.measure_time.ToNanoseconds()
    assert {"provenance.json", "predictions-boundary-layer-height-v1.nc"} < {each.name for each in day.iterdir()}
    assert (restored.observation_count, restored.payload_bytes) == (3, sum(e.header.payload_bytes for e in sent))
    bag = Path(site.shelf.url) / "lindenberg/cl51/2025/2025-06-15.v1/data"
    assert (day / "observations.csv").read_bytes() == (bag / "observations.csv").read_bytes()


def test_a_day_that_is_there_is_compared_and_left_alone(site: Site, store: Store, tmp_path: Path) -> None:
    ingest_telegrams(store, 1, 2)
    archive_and_let_go(site)
    restore(site, tmp_path / "out")
    before = hash_tree(tmp_path / "out")
    again = restore(site, tmp_path / "out")
    assert (again.observation_count, again.present_count) == (0, 2)
    assert hash_tree(tmp_path / "out") == before
    changed = tmp_path / "out/lindenberg/cl51/2025-06-15" / f"{EPOCH[:8]}-000000000002.dat"
    changed.write_bytes(b"edited")
    with pytest.raises(BrokenStateError, match=rf"{changed.name} with SHA-256 .*, as the archive has it, but it has"):
        restore(site, tmp_path / "out")
    assert changed.read_bytes() == b"edited"
    changed.unlink()
    with pytest.raises(BrokenStateError, match="is not there"):
        restore(site, tmp_path / "out")


def test_an_older_version_is_beside_only_where_it_has_what_the_newer_lacks(
    site: Site, store: Store, tmp_path: Path
) -> None:
    ingest_telegrams(store, 1)
    archive_day(make_archivist_of(site), LATER_NANOS)
    ingest_telegrams(store, 2)
    archive_and_let_go(site)  # version 2 holds both
    ingest_telegrams(store, 3)
    archive_and_let_go(site)  # version 3 holds the last alone
    restored = restore(site, tmp_path / "out")
    day = tmp_path / "out/lindenberg/cl51/2025-06-15"
    files = sorted(each.relative_to(day).as_posix() for each in day.rglob("*.dat"))
    assert files == [f"{EPOCH[:8]}-000000000003.dat"] + [f"v2/{EPOCH[:8]}-{each:012d}.dat" for each in (1, 2)]
    assert (restored.versions, restored.observation_count) == ((3, 2, 1), 3)
    assert restore(site, tmp_path / "out").present_count == 3


@pytest.mark.parametrize("is_there", [False, True])
def test_a_damaged_bag_leaves_nothing_in_the_folder(site: Site, store: Store, tmp_path: Path, is_there: bool) -> None:
    ingest_telegrams(store, 1, 2)
    archive_and_let_go(site)
    if is_there:
        restore(site, tmp_path / "out")
    before = hash_day(tmp_path / "out")
    bag = Path(site.shelf.url) / "lindenberg/cl51/2025/2025-06-15.v1"
    (bag / "data" / "observations.csv").chmod(0o644)
    with (bag / "data" / "observations.csv").open("ab") as table:
        table.write(b"x")
    with pytest.raises(BrokenStateError, match=r"observations\.csv with SHA-256"):
        restore(site, tmp_path / "out")
    assert hash_day(tmp_path / "out") == before


def test_a_full_disk_leaves_nothing_in_the_folder_and_says_so(site: Site, store: Store, tmp_path: Path) -> None:
    ingest_all(store, [make_observation(1, bytes(600_000)), make_observation(2)])
    archive_and_let_go(site)
    with small_disk(tmp_path / "small", 256 * 1024) as disk:
        with pytest.raises(TryAgainError, match="No space left"):
            restore(site, disk / "out")
        assert [each for each in disk.rglob("*") if each.is_file() and each.name != ".lock"] == []
        assert not list(disk.rglob(".part-*"))
