"""Payload segments in a folder and in an object store: what one promises, the other does."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import obstore
import pytest
from s3_support import S3Server, s3_server
from server_support import make_bundle, make_observation
from small_disk import small_disk
from sqlalchemy import select

from fieldpost.errors import BrokenStateError, InvalidRequestError, TryAgainError
from fieldpost.v1 import observation_pb2 as pb
from server.ingest.core import Ingest
from server.ingest.registry import RegisteredInstrument, RegisteredStation, register
from server.storage import segment_folder
from server.storage.records import list_headers
from server.storage.segment_folder import FolderReader, FolderWriter
from server.storage.segment_url import open_segments
from server.storage.segments import Place, SegmentReader, SegmentWriter
from server.storage.store import Store
from server.storage.tables import observations
from server.storage.tables import segments as segments_table

RECORDS = [b"first", b"", b"a third one"]


class Segments:
    """A writer and a reader of one kind, and how to spoil what they hold."""

    def __init__(self, folder: Path, s3: S3Server | None) -> None:
        self.folder = folder
        self.s3 = s3
        self.writer: SegmentWriter
        self.reader: SegmentReader
        self.writer, self.reader = open_segments(folder if s3 is None else s3.url("segments"))

    def sizes(self) -> dict[str, int]:
        """Bytes by segment."""
        if self.s3 is None:
            return {path.name: path.stat().st_size for path in self.folder.iterdir()}
        return self.s3.sizes("segments")

    def cut(self, name: str, size: int) -> None:
        """Leaves only the first bytes of a segment."""
        if self.s3 is None:
            os.truncate(self.folder / name, size)
            return
        objects = self.s3.objects("segments")
        obstore.put(objects, name, bytes(obstore.get(objects, name).bytes())[:size])

    def write(self, *records: bytes) -> list[Place]:
        """Appends and synchronises."""
        name, offsets = self.writer.append(records)
        self.writer.sync()
        return [Place(name, offset, len(record)) for offset, record in zip(offsets, records, strict=True)]


@pytest.fixture(params=["folder", "s3"])
def segments(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Segments]:
    s3 = request.getfixturevalue("s3") if request.param == "s3" else None
    segments = Segments(tmp_path / "segments", s3)
    yield segments
    segments.writer.close()
    segments.reader.close()


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    with s3_server(monkeypatch) as server:
        yield server


def test_what_was_written_is_read_again(segments: Segments) -> None:
    places = segments.write(*RECORDS) + segments.write(b"of the next group")
    assert [segments.reader.read(each) for each in places] == [*RECORDS, b"of the next group"]


def test_two_appends_before_a_sync_are_both_there_after_it(segments: Segments) -> None:
    name, (offset,) = segments.writer.append([b"one"])
    other_name, (other_offset,) = segments.writer.append([b"other"])
    segments.writer.sync()
    assert segments.reader.read(Place(name, offset, 3)) == b"one"
    assert segments.reader.read(Place(other_name, other_offset, 5)) == b"other"


def test_a_part_of_a_record_is_read_without_its_neighbours(segments: Segments) -> None:
    _, place, _ = segments.write(b"before", b"0123456789", b"after")
    assert segments.reader.read_range(place, 3, 4) == b"3456"
    assert segments.reader.read_range(place, 8, 100) == b"89"
    assert segments.reader.read_range(place, 10, 5) == b""
    with pytest.raises(InvalidRequestError, match="expected a range from 0"):
        segments.reader.read_range(place, -1, 5)


def test_a_segment_that_is_missing_is_named(segments: Segments) -> None:
    with pytest.raises(BrokenStateError, match=r"expected segment 0000\.seg in .*segments, but it is not there"):
        segments.reader.read(Place("0000.seg", 0, 4))


@pytest.mark.parametrize("left", [0, 3, 9])
def test_a_segment_that_was_cut_is_told_from_one_that_cannot_be_reached(segments: Segments, left: int) -> None:
    place = segments.write(b"0123456789")[0]
    segments.cut(place.segment, left)
    with pytest.raises(BrokenStateError, match=rf"expected 10 bytes at offset 0 of segment {place.segment}"):
        segments.reader.read(place)


def test_a_finished_file_becomes_a_segment_and_stays_where_it_is(segments: Segments, tmp_path: Path) -> None:
    path = tmp_path / "finished"
    content = os.urandom(9 * 1024 * 1024)  # more than one piece
    path.write_bytes(content)
    os.utime(path, (1, 1))
    name = segments.writer.adopt(path)
    assert segments.reader.read(Place(name, 0, len(content))) == content
    assert segments.reader.read_range(Place(name, 7, len(content) - 7), 8_388_600, 20) == content[8_388_607:8_388_627]
    assert path.read_bytes() == content
    assert list(segments.reader.list_names(time.time() - 3600)) == []  # old bytes, but a new segment


def test_a_removed_segment_is_gone_and_removing_it_again_is_no_error(segments: Segments) -> None:
    kept, gone = segments.write(b"kept")[0], None
    segments.writer.close()
    segments.writer, _ = open_segments(segments.folder if segments.s3 is None else segments.s3.url("segments"))
    gone = segments.write(b"gone")[0]
    assert segments.reader.read(gone) == b"gone"
    segments.reader.remove(gone.segment)
    segments.reader.remove(gone.segment)
    with pytest.raises(BrokenStateError, match="not there"):
        segments.reader.read(gone)
    assert segments.reader.read(kept) == b"kept"
    assert list(segments.sizes()) == [kept.segment]


def test_segments_are_listed_by_age(segments: Segments) -> None:
    name = segments.write(b"content")[0].segment
    assert list(segments.reader.list_names(time.time() + 60)) == [name]
    assert list(segments.reader.list_names(time.time() - 60)) == []


def test_an_object_is_made_for_each_group_and_none_for_an_empty_one(s3: S3Server, tmp_path: Path) -> None:
    segments = Segments(tmp_path, s3)
    segments.writer.sync()
    segments.write(b"a", b"b")
    segments.write(b"c")
    segments.writer.sync()
    assert sorted(segments.sizes().values()) == [1, 2]


def test_an_object_store_that_goes_away_refuses_and_one_that_comes_back_takes_again(
    s3: S3Server, tmp_path: Path
) -> None:
    segments = Segments(tmp_path, s3)
    before = segments.write(b"before")[0]
    s3.stop()
    name, _ = segments.writer.append([b"lost with its group"])
    with pytest.raises(OSError, match=r"s3://bucket-.*/segments did not take a segment"):
        segments.writer.sync()
    with pytest.raises(TryAgainError, match=r"s3://bucket-.*/segments did not answer"):
        segments.reader.read(before)
    s3.start()
    after = segments.write(b"after")[0]
    assert after.segment != name
    assert (segments.reader.read(before), segments.reader.read(after)) == (b"before", b"after")
    assert sorted(segments.sizes()) == sorted([before.segment, after.segment])  # nothing of the group that failed


def test_a_bucket_that_does_not_exist_is_an_error_of_writing(s3: S3Server) -> None:
    writer, _ = open_segments(f"s3://nowhere/segments?endpoint={s3.endpoint}")
    writer.append([b"content"])
    with pytest.raises(OSError, match="did not take"):
        writer.sync()


@pytest.mark.parametrize(
    "url",
    ["s3://bucket/x?aws_secret_access_key=hunter2", "s3://me:hunter2@bucket/x", "az://bucket/x?sas_token=hunter2"],
)
def test_a_url_with_a_credential_is_refused_and_does_not_repeat_it(url: str) -> None:
    with pytest.raises(InvalidRequestError, match="expected a URL that says at most") as caught:
        open_segments(url)
    assert "hunter2" not in f"{caught.value} {caught.value.hint}"
    assert "AWS_ACCESS_KEY_ID" in caught.value.hint


@pytest.mark.parametrize("url", ["ftp://host/folder", "memory://x", "s3:///prefix", "s3://bucket/x?nonsense=1"])
def test_a_url_that_is_no_payload_store_is_refused_with_an_example(url: str) -> None:
    with pytest.raises(InvalidRequestError, match="expected") as caught:
        open_segments(url)
    assert "s3://bucket/prefix" in caught.value.hint


def test_a_folder_may_be_written_as_a_url(tmp_path: Path) -> None:
    writer, reader = open_segments(f"file://{tmp_path}/with%20space")
    name, _ = writer.append([b"content"])
    writer.sync()
    assert (tmp_path / "with space" / name).read_bytes() == b"content"
    writer.close()
    reader.close()


def test_a_segment_that_is_full_is_followed_by_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segment_folder, "SEGMENT_BYTES_MAX", 10)
    segments = Segments(tmp_path, None)
    places = [segments.write(b"123456")[0] for _ in range(3)]
    assert len({place.segment for place in places}) == 2
    assert [segments.reader.read(each) for each in places] == [b"123456"] * 3
    segments.writer.close()
    segments.reader.close()


def test_the_segment_of_a_quiet_server_ends_after_a_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    segments = Segments(tmp_path, None)
    first = segments.write(b"today")[0]
    assert segments.write(b"today too")[0].segment == first.segment
    monkeypatch.setattr(segment_folder, "SEGMENT_AGE_S_MAX", 0)
    assert segments.write(b"tomorrow")[0].segment != first.segment
    segments.writer.close()
    segments.reader.close()


def test_a_segment_is_seen_to_be_written_from_another_process_until_the_writer_ends(tmp_path: Path) -> None:
    script = """
        import sys
        from pathlib import Path
        from server.storage.segment_folder import FolderWriter
        writer = FolderWriter(Path(sys.argv[1]))
        name, _ = writer.append([b"content"])
        print(name, flush=True)
        sys.stdin.read()
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        name = process.stdout.readline().strip()
        reader = FolderReader(tmp_path)
        assert reader.is_being_written(name)
        process.kill()
        process.wait()
        assert not reader.is_being_written(name)
        assert not reader.is_being_written("never-there.seg")


def test_a_writer_that_ends_a_segment_no_longer_holds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    segments = Segments(tmp_path, None)
    first = segments.write(b"1")[0].segment
    assert segments.reader.is_being_written(first)
    monkeypatch.setattr(segment_folder, "SEGMENT_BYTES_MAX", 1)
    second = segments.write(b"2")[0].segment
    assert [segments.reader.is_being_written(each) for each in (first, second)] == [False, True]
    segments.writer.close()
    segments.reader.close()


def test_a_group_that_a_full_disk_refused_leaves_its_segment_and_the_next_one_is_read(tmp_path: Path) -> None:
    writer, reader = FolderWriter(tmp_path), FolderReader(tmp_path)
    name, _ = writer.append([b"sound"])
    writer.sync()
    os.close(writer._file)
    writer._file = os.open("/dev/full", os.O_WRONLY)  # a real device that has no room
    with pytest.raises(OSError) as caught:
        writer.append([b"refused"])
    assert caught.value.errno == errno.ENOSPC
    next_name, _ = writer.append([b"taken"])
    writer.sync()
    assert next_name != name
    assert reader.read(Place(next_name, 0, 5)) == b"taken"
    writer.close()
    reader.close()


def test_a_file_of_another_file_system_is_copied(tmp_path: Path) -> None:
    elsewhere = Path("/dev/shm") / f"fieldpost-test-{os.getpid()}"
    if not elsewhere.parent.is_dir() or elsewhere.parent.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second file system at /dev/shm")
    writer, reader = FolderWriter(tmp_path), FolderReader(tmp_path)
    try:
        elsewhere.write_bytes(b"content")
        name = writer.adopt(elsewhere)
        assert reader.read(Place(name, 0, 7)) == b"content"
        assert [path.name for path in tmp_path.iterdir()] == [name]
    finally:
        elsewhere.unlink()
        writer.close()
        reader.close()


def test_an_ingest_over_an_object_store_refuses_while_it_is_away_and_stores_once_it_is_back(
    s3: S3Server, tmp_path: Path
) -> None:
    store = Store(f"sqlite:///{tmp_path / 'fieldpost.db'}", s3.url("segments"))
    instruments = [RegisteredInstrument(name="cl51", instrument_model="cl51")]
    station = RegisteredStation(name="lindenberg", instruments=instruments)
    store.write(lambda connection: register(connection, [station])).result(10)
    ingest = Ingest(store, payload_bytes_max=2**20, on_stored=lambda: None)
    assert ingest.submit(make_bundle(1, 2)).result(10).held_ranges[0].last_sequence == 2
    s3.stop()
    with pytest.raises(TryAgainError, match="did not take a segment"):
        ingest.submit(make_bundle(3, 4)).result(30)
    s3.start()
    receipt = ingest.submit(make_bundle(2, 3, 4)).result(10)
    assert (receipt.held_ranges[0].first_sequence, receipt.held_ranges[0].last_sequence) == (2, 4)
    assert receipt.duplicate_count == 1
    ingest.close()
    query = select(segments_table.c.name, observations.c.segment_offset, observations.c.stored_bytes)
    with store.read() as connection:
        places = [Place(*row) for row in connection.execute(query.join(observations).order_by(observations.c.sequence))]
    stored = [pb.Observation.FromString(store.read_segment(place)) for place in places]
    assert stored == [make_observation(each) for each in (1, 2, 3, 4)]
    assert len(s3.sizes("segments")) == 2  # an object for each group that was committed
    store.close()


def test_what_a_full_disk_took_of_a_refused_group_is_given_back(tmp_path: Path) -> None:
    with small_disk(tmp_path / "small", 1024 * 1024) as small:
        writer, reader = FolderWriter(small), FolderReader(small)
        name, _ = writer.append([bytes(100_000)])
        writer.sync()
        with pytest.raises(OSError) as caught:
            writer.append([bytes(2_000_000)])
        assert caught.value.errno == errno.ENOSPC
        next_name, offsets = writer.append([b"1" * 500_000])
        writer.sync()
        assert next_name != name
        assert reader.read(Place(name, 0, 100_000)) == bytes(100_000)
        assert reader.read(Place(next_name, offsets[0], 500_000)) == b"1" * 500_000
        writer.close()
        reader.close()


def test_a_segment_whose_name_may_not_be_on_the_disk_is_not_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = FolderWriter(tmp_path)
    real_sync = os.fsync
    failures = [OSError(errno.EIO, "Input/output error")]

    def failing_sync(file: int) -> None:
        if failures:
            raise failures.pop()
        real_sync(file)

    monkeypatch.setattr(os, "fsync", failing_sync)
    with pytest.raises(OSError, match="Input/output error"):
        writer.append([b"refused"])
    (doubtful,) = tmp_path.iterdir()
    name, _ = writer.append([b"taken"])
    writer.sync()
    assert name != doubtful.name
    writer.close()


def test_a_failed_sync_lets_go_of_the_file_only_when_nobody_is_at_work_on_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = FolderWriter(tmp_path)
    real_sync, may_fail, may_go = os.fdatasync, threading.Event(), threading.Event()
    synced: list[bool] = []

    def slow_sync(file: int) -> None:
        if not synced:
            synced.append(False)
            may_fail.wait(10)
            raise OSError(errno.EIO, "Input/output error")
        may_go.wait(10)
        real_sync(file)  # EBADF where the file was closed meanwhile
        synced.append(True)

    monkeypatch.setattr(os, "fdatasync", slow_sync)
    writer.append([b"one"])
    writer.append([b"two"])
    threading.Timer(0.1, may_go.set).start()
    may_fail.set()
    with pytest.raises(OSError, match="Input/output error"):
        writer.sync()
    writer.close()
    assert synced == [False, True]


def test_the_headers_of_a_segment_are_found_without_the_database_up_to_a_torn_end(segments: Segments) -> None:
    whole = [make_observation(sequence) for sequence in range(1, 4)]
    whole[1].ClearField("payload")  # an empty payload is left out of the record
    torn = make_observation(4).SerializeToString()[:-1]
    name, _ = segments.writer.append([*(each.SerializeToString() for each in whole), torn])
    segments.writer.sync()
    found = list_headers(segments.reader.read_range, name, segments.reader.length(name))
    assert list(found) == [each.header for each in whole]
