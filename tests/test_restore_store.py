"""A day comes back from the archive as it was, bit for bit, and nothing that is here is changed."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest
from archive_support import DAY, NOW_NANOS, archive_day, ingest_all, ingest_telegrams, make_site, open_site, predict
from restore_support import (
    KEEP_UNTIL_NANOS,
    LATER_NANOS,
    VARIETY_COUNT,
    archive_and_let_go,
    ingest_variety,
    make_archivist_of,
    predict_variety,
    prune_now,
    pruned_of,
    read_predictions,
    read_state,
    restore_day,
    sequences,
)
from s3_support import s3_server
from server_support import EPOCH, make_observation
from sqlalchemy import delete, select, update

from fieldpost.errors import BrokenStateError
from flows.archiving.archivist import Archivist
from flows.restoring.restorer import Restorer
from flows.site import Site
from server.archive.holds import drop_hold, is_held, write_hold
from server.archive.shelf import open_shelf
from server.models.card import ModelCard, ModelKind, ModelState
from server.prediction.pending import Span, find_pending, last_observation_id
from server.settings import Settings
from server.storage.store import Store
from server.storage.tables import bags, model_versions, observations, predictions
from server.workers.jobs import ModelKey


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = open_site(tmp_path / "data")
    yield store
    store.close()


@pytest.fixture
def site(store: Store, tmp_path: Path) -> Site:
    return make_site(store, tmp_path / "archive")


def edit_bag(site: Site, store: Store, path: str, columns_gone: tuple[str, ...]) -> None:
    """Makes a bag as an older version of the software made it: without some columns, and recorded so."""
    folder = Path(site.shelf.url) / path
    table = folder / "data" / "observations.csv"
    with table.open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [name for name in lines[0] if name not in columns_gone], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(lines)
    manifest = folder / "manifest-sha256.txt"
    kept = [line for line in manifest.read_text().splitlines() if not line.endswith("observations.csv")]
    kept.append(f"{sha256(table.read_bytes()).hexdigest()}  data/observations.csv")
    manifest.write_text("\n".join(kept) + "\n")
    values = {"manifest_sha256": sha256(manifest.read_bytes()).hexdigest(), "payload_bytes": None}
    store.write(lambda connection: connection.execute(update(bags).values(**values))).result(10)


def test_a_day_of_every_kind_comes_back_bit_for_bit(site: Site, store: Store) -> None:
    ingest_variety(store)
    predict_variety(store)
    before = read_state(store)
    archive_and_let_go(site)
    restored = restore_day(site)
    assert read_state(store) == before
    assert (restored.observation_count, restored.present_count) == (VARIETY_COUNT, 0)
    assert restored.prediction_count == len(before[1]) > VARIETY_COUNT
    assert pruned_of(store) == [None, None]
    assert archive_day(make_archivist_of(site), LATER_NANOS).status == "present"


def test_a_day_of_many_pages_and_commits_comes_back(site: Site, store: Store) -> None:
    ingest_telegrams(store, *range(1, 561))
    predict(store, 1, 512, 513)
    before = read_state(store)
    archive_and_let_go(site)
    restore_day(site)
    assert read_state(store) == before


def test_what_is_here_is_left_alone_and_only_what_lacks_comes_back(site: Site, store: Store) -> None:
    ingest_telegrams(store, 1, 2, 3, 4)
    predict(store, 1, 2)
    before = read_state(store)
    archive_day(make_archivist_of(site), LATER_NANOS)
    assert restore_day(site).present_count == 4
    store.write(lambda connection: connection.execute(delete(predictions))).result(10)
    gone = observations.c.sequence.in_([2, 3])
    store.write(lambda connection: connection.execute(delete(observations).where(gone))).result(10)
    restored = restore_day(site)
    assert (restored.observation_count, restored.present_count, restored.prediction_count) == (2, 2, 2)
    assert read_state(store)[:2] == before[:2]


def test_a_prediction_that_is_here_is_not_replaced(site: Site, store: Store) -> None:
    ingest_telegrams(store, 1)
    predict(store, 1, predict_nanos=NOW_NANOS)
    archive_day(make_archivist_of(site), LATER_NANOS)
    store.write(lambda connection: connection.execute(delete(predictions))).result(10)
    predict(store, 1, predict_nanos=NOW_NANOS + 5)
    assert restore_day(site).prediction_count == 0
    assert [each[6] for each in read_predictions(store)] == [NOW_NANOS + 5]


def test_other_bytes_under_the_same_identity_are_named_and_nothing_is_changed(site: Site, store: Store) -> None:
    ingest_telegrams(store, 1, 2)
    archive_and_let_go(site)
    store.write(lambda connection: connection.exec_driver_sql("UPDATE epoch SET pruned_ranges = NULL")).result(10)
    other = make_observation(2, b"other bytes")
    ingest_all(store, [other])
    before = read_state(store)
    archived = make_observation(2).header.sha256.hex()
    with pytest.raises(BrokenStateError, match=f"{EPOCH}-2 .*{archived}.*other bytes.*{other.header.sha256.hex()}"):
        restore_day(site)
    assert read_state(store) == before


def test_what_only_an_older_version_has_comes_back_too(site: Site, store: Store) -> None:
    ingest_telegrams(store, 1, 2)
    predict(store, 1, 2)
    before = read_state(store)
    archive_and_let_go(site)
    ingest_telegrams(store, 3)
    archive_and_let_go(site)  # version 2 holds what came late alone
    restored = restore_day(site)
    assert (restored.versions, sequences(store)) == ((2, 1), [1, 2, 3])
    assert read_state(store)[1] == before[1]
    assert Restorer(site).plan(Restorer(site).find_days(DAY, DAY))[0].payload_bytes == sum(
        make_observation(each).header.payload_bytes for each in (1, 2, 3)
    )


def test_predictions_of_a_version_that_is_not_known_are_counted_and_named(site: Site, store: Store) -> None:
    ingest_telegrams(store, 1, 2, 3)
    predict(store, 1, 2, version=7)
    predict(store, 3, version=8)
    archive_and_let_go(site)
    unknown = model_versions.c.version == 7
    store.write(lambda connection: connection.execute(delete(model_versions).where(unknown))).result(10)
    restored = restore_day(site)
    assert restored.prediction_count == 1
    assert restored.unknown == {("boundary-layer-height", 7): 2}


def test_a_restored_day_is_predicted_again_only_where_no_prediction_came_back(site: Site, store: Store) -> None:
    ingest_telegrams(store, 1, 2, 3)
    predict(store, 1, 2)
    with store.read() as connection:
        last_id = last_observation_id(connection)
        model_id = connection.scalar(select(model_versions.c.id))
    archive_and_let_go(site)
    restore_day(site)
    key = ModelKey("boundary-layer-height", 1)
    card = ModelCard(model_id or 0, key, ModelState.ACTIVE, ModelKind.BUILT_IN, frozenset({"cl51"}))
    with store.read() as connection:
        live, _ = find_pending(connection, card, Span(True, 0, 0), 10)
        backlog, _ = find_pending(connection, card, Span(False, 0, last_id), 10, with_provisional=True)
    assert live == []
    assert [each.measure_unix_nanos for each in backlog] == [make_observation(3).header.measure_time.ToNanoseconds()]


def test_without_predictions_the_models_at_work_find_the_whole_day(site: Site, store: Store) -> None:
    ingest_telegrams(store, 1, 2)
    predict(store, 1, 2)
    archive_and_let_go(site)
    assert restore_day(site, with_predictions=False).prediction_count == 0
    assert read_predictions(store) == []
    assert restore_day(site).prediction_count == 2


def test_a_restored_day_stays_until_its_time_is_over(site: Site, store: Store) -> None:
    ingest_telegrams(store, 1, 2)
    archive_and_let_go(site)
    restore_day(site)
    assert prune_now(site, KEEP_UNTIL_NANOS - 1).held_days == 1
    assert sequences(store) == [1, 2]
    assert prune_now(site, KEEP_UNTIL_NANOS).observation_count == 2
    assert sequences(store) == []


def test_a_hold_is_only_ever_made_longer(store: Store) -> None:
    def hold(until: int) -> None:
        store.write(lambda connection: write_hold(connection, 1, DAY, until)).result(10)

    def held(now: int) -> bool:
        with store.read() as connection:
            return is_held(connection, 1, DAY, now)

    assert not held(0)
    hold(100)
    hold(50)
    assert (held(99), held(100)) == (True, False)
    hold(200)
    assert held(100)
    store.write(lambda connection: drop_hold(connection, 1, DAY)).result(10)
    assert not held(100)


def test_a_bag_of_an_older_format_gives_what_it_says(site: Site, store: Store) -> None:
    ingest_telegrams(store, 1, 2)
    archive_and_let_go(site)
    news = ("station_time", "corrected_time", "quick_look_model", "quick_look_height_m", "quick_look_quality")
    edit_bag(site, store, "lindenberg/cl51/2025/2025-06-15.v1", (*news, "quick_look_duration_ms"))
    restorer = Restorer(site)
    (plan,) = restorer.plan(restorer.find_days(DAY, DAY))
    assert plan.payload_bytes == sum(make_observation(each).header.payload_bytes for each in (1, 2))
    restore_day(site)
    assert [row["header"] for row in read_state(store)[0]] == [make_observation(each).header for each in (1, 2)]


def test_a_day_comes_back_from_an_object_store(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with s3_server(monkeypatch) as s3:
        site = Site(Settings(data_folder=tmp_path), store, open_shelf(s3.url("bags"), tmp_path / "staging"), None)
        ingest_telegrams(store, 1, 2)
        before = read_state(store)
        archive_day(Archivist(site), LATER_NANOS)
        prune_now(site)
        assert sequences(store) == []
        restore_day(site)
        assert read_state(store) == before
        assert [each.name for each in (tmp_path / "staging").rglob("*") if each.is_file()] == [".lock"]


def test_a_damaged_bag_is_taken_from_its_copy(store: Store, tmp_path: Path) -> None:
    site = make_site(store, tmp_path / "archive", copy=tmp_path / "copy")
    ingest_telegrams(store, 1, 2)
    before = read_state(store)
    archive_and_let_go(site)
    shutil.copytree(tmp_path / "archive", tmp_path / "copy", dirs_exist_ok=True)
    damage(tmp_path / "archive")
    restored = restore_day(site)
    assert restored.places == {"copy"}
    assert read_state(store) == before


def test_a_bag_that_is_damaged_in_both_places_is_named_and_nothing_of_it_comes_back(
    store: Store, tmp_path: Path
) -> None:
    site = make_site(store, tmp_path / "archive", copy=tmp_path / "copy")
    ingest_telegrams(store, 1, 2)
    archive_and_let_go(site)
    damage(tmp_path / "archive")
    with pytest.raises(BrokenStateError, match=r"observations\.tar\.zst with SHA-256 .* nor is its copy whole"):
        restore_day(site)
    assert sequences(store) == []


def test_whole_versions_come_back_although_another_is_damaged(site: Site, store: Store, tmp_path: Path) -> None:
    ingest_telegrams(store, 1, 2)
    archive_and_let_go(site)
    ingest_telegrams(store, 3)
    archive_and_let_go(site)
    damage(tmp_path / "archive", version=2)
    with pytest.raises(BrokenStateError, match="1 of 2 versions"):
        restore_day(site)
    assert sequences(store) == [1, 2]


def damage(archive: Path, version: int = 1) -> None:
    """Flips a bit in the middle of a bag's tar."""
    path = archive / f"lindenberg/cl51/2025/2025-06-15.v{version}/data/observations.tar.zst"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)
