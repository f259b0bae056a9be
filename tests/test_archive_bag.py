"""What lies in a bag: the instrument's bytes as they were, everything about them, and a manifest that holds."""

from __future__ import annotations

import csv
import io
import json
import shutil
import subprocess
import tracemalloc
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from random import Random

import bagit
import pytest
from archive_support import (
    DAY,
    NOW_NANOS,
    archive_day,
    ingest_all,
    ingest_telegrams,
    make_archivist,
    model_row_id,
    open_site,
    predict,
    read_csv,
    read_tar,
    recorded,
)
from hypothesis import given
from hypothesis import strategies as st
from server_support import EPOCH, START_NANOS, make_observation

from fieldpost.errors import BrokenStateError
from fieldpost.v1 import observation_pb2 as pb
from flows.archiving.archivist import Archivist
from flows.bags.day import PAGE_ROWS, DayReader
from flows.bags.observations_file import COLUMNS, csv_line, format_instant, verify_observations, write_observations
from server.queries.predictions import NewPrediction, write_predictions
from server.storage.store import Store
from server.storage.tables import bags


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = open_site(tmp_path / "data")
    yield store
    store.close()


@pytest.fixture
def archivist(store: Store, tmp_path: Path) -> Archivist:
    return make_archivist(store, tmp_path / "archive")


def test_a_bag_has_its_place_and_is_valid(archivist: Archivist, store: Store) -> None:
    ingest_telegrams(store, 1, 2, 3)
    predict(store, 1, 2, 3)
    archived = archive_day(archivist)
    assert archived.status == "archived"
    assert archived.record.path == "lindenberg/cl51/2025/2025-06-15.v1"
    bag = bagit.Bag(str(Path(archivist.site.shelf.url) / archived.record.path))
    assert bag.validate()
    assert bag.info["External-Identifier"] == "lindenberg/cl51/2025-06-15.v1"
    assert bag.info["Bagging-Date"] == "2025-06-16"
    assert sorted(bag.payload_entries()) == [
        "data/observations.csv",
        "data/observations.tar.zst",
        "data/predictions-boundary-layer-height-v1.nc",
        "data/products-boundary-layer-height-v1-10min.nc",
        "data/products-boundary-layer-height-v1-1h.nc",
        "data/provenance.json",
    ]
    assert archived.verified_count == 3


def test_the_record_holds_the_hash_of_the_manifest(archivist: Archivist, store: Store) -> None:
    ingest_telegrams(store, 1, 2)
    archived = archive_day(archivist)
    manifest = Path(archivist.site.shelf.url) / archived.record.path / "manifest-sha256.txt"
    with store.read() as connection:
        row = connection.execute(bags.select()).one()
    assert row.manifest_sha256 == sha256(manifest.read_bytes()).hexdigest()
    assert (row.day, row.version, row.observation_count, row.prediction_count) == ("2025-06-15", 1, 2, 0)
    assert row.archive_unix_nanos == NOW_NANOS


@pytest.mark.skipif(not (shutil.which("tar") and shutil.which("zstd")), reason="needs the commands tar and zstd")
def test_plain_tar_gives_back_every_byte_of_real_instruments(
    archivist: Archivist, store: Store, shared_data: Path, tmp_path: Path
) -> None:
    files = sorted((shared_data / "ceilometer" / "vaisala").iterdir())
    contents = [file.read_bytes() for file in files]
    ingest_all(store, [make_observation(place, content) for place, content in enumerate(contents, 1)])
    bag = Path(archivist.site.shelf.url) / archive_day(archivist).record.path
    target = tmp_path / "by-hand"
    target.mkdir()
    packed = str(bag / "data" / "observations.tar.zst")
    subprocess.run(["tar", "--zstd", "-xf", packed, "-C", str(target)], check=True)
    unpacked = sorted(target.iterdir())
    assert [each.name for each in unpacked] == [f"{EPOCH[:8]}-{place:012d}.dat" for place in range(1, len(files) + 1)]
    assert [each.read_bytes() for each in unpacked] == contents
    assert [each.stat().st_mtime for each in unpacked] == [
        START_NANOS // 10**9 + 15 * place for place in range(1, len(files) + 1)
    ]


def test_the_extension_is_that_of_the_payload_format(archivist: Archivist, store: Store) -> None:
    sent = [make_observation(sequence) for sequence in (1, 2, 3)]
    for observation, payload_format in zip(sent, ("vaisala-cl", "netcdf", "file"), strict=True):
        observation.header.payload_format = payload_format
    ingest_all(store, sent)
    members = read_tar(Path(archivist.site.shelf.url) / archive_day(archivist).record.path)
    assert [name.rpartition(".")[2] for name in members] == ["dat", "nc", "bin"]


def test_observations_stand_in_order_of_measure_time_then_sequence(archivist: Archivist, store: Store) -> None:
    late, early, same = make_observation(1), make_observation(2), make_observation(3)
    late.header.measure_time.FromNanoseconds(START_NANOS + 90 * 10**9)
    early.header.measure_time.FromNanoseconds(START_NANOS + 30 * 10**9)
    same.header.measure_time.FromNanoseconds(START_NANOS + 30 * 10**9)
    ingest_all(store, [same])  # first in the table, last but one in the day
    ingest_all(store, [late, early])
    lines = read_csv(Path(archivist.site.shelf.url) / archive_day(archivist).record.path)
    assert [line["sequence"] for line in lines] == ["2", "3", "1"]


def test_the_table_holds_all_that_the_header_said(archivist: Archivist, store: Store) -> None:
    observation = make_observation(7)
    clock = observation.header.capture_clock
    clock.boot_id, clock.monotonic_nanos, clock.clock_sync = "b" * 32, 123_456_789, pb.CLOCK_SYNC_UNSYNCHRONISED
    clock.wall_time.FromNanoseconds(START_NANOS + 123_456_789)
    observation.header.origin = 'C5061500.DAT,"new"\r\nline#7'
    ingest_all(store, [observation])
    (line,) = read_csv(Path(archivist.site.shelf.url) / archive_day(archivist).record.path)
    told = {
        "member": f"{EPOCH[:8]}-000000000007.dat",
        "epoch": EPOCH,
        "sequence": "7",
        "measure_time": "2025-06-15T15:08:25.000000000Z",
        "measure_time_source": "station",
        "capture_time": "2025-06-15T15:06:40.123456789Z",
        "capture_time_source": "station",
        "clock_sync": "unsynchronised",
        "boot_id": "b" * 32,
        "monotonic_nanos": "123456789",
        "origin": 'C5061500.DAT,"new"\r\nline#7',
        "payload_format": "vaisala-cl",
        "payload_encoding": "zstd",
        "payload_bytes": str(observation.header.payload_bytes),
        "sha256": observation.header.sha256.hex(),
    }
    assert {name: line[name] for name in told} == told
    assert tuple(line) == COLUMNS


def test_a_time_that_the_station_did_not_say_is_named_as_the_capture_time(archivist: Archivist, store: Store) -> None:
    observation = make_observation(1)
    observation.header.ClearField("measure_time")
    ingest_all(store, [observation])
    (line,) = read_csv(Path(archivist.site.shelf.url) / archive_day(archivist).record.path)
    assert line["measure_time"] == line["capture_time"]
    assert line["measure_time_source"] == "capture_time"


def test_a_time_that_was_found_in_the_payload_is_named_so(archivist: Archivist, store: Store) -> None:
    observation = make_observation(1)
    observation.header.ClearField("measure_time")
    ingest_all(store, [observation])
    found = observation.header.capture_clock.wall_time.ToNanoseconds() - 60 * 10**9
    model_id = model_row_id(store, "height", 1)
    new = NewPrediction(1, model_id, 1, found, found, b"", is_failure=False, is_time_news=True)
    store.write(lambda connection: write_predictions(connection, [new])).result(10)
    (line,) = read_csv(Path(archivist.site.shelf.url) / archive_day(archivist).record.path)
    assert (line["measure_time"], line["measure_time_source"]) == (format_instant(found), "payload")


def test_epochs_that_begin_alike_do_not_share_names(archivist: Archivist, store: Store) -> None:
    other = EPOCH[:8] + "f" * 24
    ingest_all(store, [make_observation(1), make_observation(1, b"another", epoch=other)])
    members = read_tar(Path(archivist.site.shelf.url) / archive_day(archivist).record.path)
    assert set(members) == {f"{EPOCH}-000000000001.dat", f"{other}-000000000001.dat"}


def test_the_same_observations_make_the_same_bytes(archivist: Archivist, store: Store, tmp_path: Path) -> None:
    ingest_telegrams(store, *range(1, 40))
    once = Path(archivist.site.shelf.url) / archive_day(archivist).record.path
    (tmp_path / "elsewhere" / "lindenberg" / "cl51").mkdir(parents=True)
    (tmp_path / "elsewhere" / "lindenberg" / "cl51" / ".lock").touch()  # an archive that is in use
    again = make_archivist(store, tmp_path / "elsewhere")
    twice = Path(again.site.shelf.url) / archive_day(again, NOW_NANOS + 5).record.path
    for name in ("observations.tar.zst", "observations.csv"):
        assert (once / "data" / name).read_bytes() == (twice / "data" / name).read_bytes()


def test_provenance_names_the_instrument_as_it_was_registered(archivist: Archivist, store: Store) -> None:
    ingest_telegrams(store, 1, 2)
    predict(store, 1)
    bag = Path(archivist.site.shelf.url) / archive_day(archivist).record.path
    provenance = json.loads((bag / "data" / "provenance.json").read_text())
    assert provenance["instrument"] == {
        "station": "lindenberg",
        "instrument": "cl51",
        "instrument_model": "cl51",
        "latitude_deg": 52.21,
        "longitude_deg": 14.12,
        "altitude_m": 103.0,
        "calibration": None,
    }
    assert provenance["observations"]["observation_count"] == 2
    assert provenance["observations"]["epochs"] == [EPOCH]
    assert [each["prediction_count"] for each in provenance["predictions"]] == [1]


def test_a_day_of_many_pages_is_complete_and_in_order(archivist: Archivist, store: Store) -> None:
    sent = [make_observation(sequence) for sequence in range(1, 2 * PAGE_ROWS + 51)]
    for observation in sent[: PAGE_ROWS + 20]:  # a page ends among observations of one instant
        observation.header.measure_time.FromNanoseconds(START_NANOS)
    ingest_all(store, sent)
    archived = archive_day(archivist)
    assert archived.verified_count == len(sent)
    lines = read_csv(Path(archivist.site.shelf.url) / archived.record.path)
    assert [int(line["sequence"]) for line in lines] == list(range(1, len(sent) + 1))


def test_a_member_that_differs_from_its_row_is_noticed(archivist: Archivist, store: Store, tmp_path: Path) -> None:
    ingest_telegrams(store, 1, 2, 3)
    (day,) = archivist.find_days(DAY, DAY)
    reader = DayReader(store, day)
    rows = list(reader.observations(reader.look().extent))
    contents = [(row, *reader.read(row)) for row in rows]
    write_observations(tmp_path, contents, 8)
    assert verify_observations(tmp_path, rows) == 3
    with pytest.raises(BrokenStateError, match="number 4 is not in observations"):
        verify_observations(tmp_path, [*rows, rows[0]])
    other = tmp_path / "other"
    other.mkdir()
    row, header, content = contents[1]
    write_observations(other, [contents[0], (row, header, content[::-1]), contents[2]], 8)
    with pytest.raises(BrokenStateError, match=f"expected sequence 2 with SHA-256 {row.sha256.hex()}"):
        verify_observations(other, rows)


def test_memory_stays_flat_however_much_a_day_holds(archivist: Archivist, store: Store) -> None:
    random = Random(1)
    observation_bytes, count = 512 * 1024, 40
    ingest_all(store, [make_observation(each, random.randbytes(observation_bytes)) for each in range(1, count + 1)])
    (day,) = archivist.find_days(DAY, DAY)
    tracemalloc.start()
    try:
        archived = archivist.archive(day, NOW_NANOS)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert archived.record.payload_bytes == count * observation_bytes
    assert peak < count * observation_bytes / 2


def test_a_damaged_segment_is_named_and_nothing_is_archived(archivist: Archivist, store: Store, tmp_path: Path) -> None:
    ingest_telegrams(store, 1, 2, 3)
    (segment,) = (tmp_path / "data" / "segments").iterdir()
    content = bytearray(segment.read_bytes())
    content[-5] ^= 1  # in the payload of the last one
    segment.write_bytes(content)
    with pytest.raises(BrokenStateError, match=f"{EPOCH}-3 at offset .* of segment {segment.name}"):
        archive_day(archivist)
    assert recorded(store) == []
    assert not list(Path(archivist.site.shelf.url).rglob("*.v1"))


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=2, max_size=5))
def test_any_text_comes_back_from_the_table(texts: list[str]) -> None:
    line = csv_line(texts).decode()
    assert list(csv.reader(io.StringIO(line, newline=""))) == [texts]


@given(st.integers(0, 2**62))
def test_an_instant_keeps_its_nanoseconds(unix_nanos: int) -> None:
    text = format_instant(unix_nanos)
    assert text.endswith(f".{unix_nanos % 10**9:09d}Z")
    assert len(text) == 30


def test_every_line_has_every_column(archivist: Archivist, store: Store) -> None:
    ingest_telegrams(store, 1, 2)
    for line in read_csv(Path(archivist.site.shelf.url) / archive_day(archivist).record.path):
        assert tuple(line) == COLUMNS
        assert None not in line.values()
