"""The buffer on a real disk: torn writes, flipped bytes, full disks, lost side files; and a year of day files."""

from __future__ import annotations

import errno
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_agent.buffer import Buffer
from edge_agent.capture import Capture, observation_of
from edge_agent.storage.day_file import DayFile
from edge_agent.storage.inspection import check_file, list_files
from edge_agent.storage.records import pack_record
from edge_agent.storage.retention import RetentionPolicy, StoredFile, choose_expired
from fieldpost.errors import BrokenStateError, InvalidRequestError, TryAgainError
from fieldpost.payload import decode_checked
from fieldpost.v1 import observation_pb2 as pb

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC).timestamp()
DAY_S = 86400.0


@pytest.fixture
def open_buffer(tmp_path: Path) -> Iterator[Callable[..., Buffer]]:
    """Opens the one buffer of the test; closing the one before is the test's own act."""
    opened: list[Buffer] = []

    def open_it(**arguments: int) -> Buffer:
        opened.append(Buffer(tmp_path / "buffer", "magurele", **arguments))
        return opened[-1]

    yield open_it
    for buffer in opened:
        crash(buffer)


def crash(buffer: Buffer) -> None:
    """What kill -9 does to a buffer: its descriptors are closed, and nothing is saved or tidied up."""
    for file in (buffer._files._active, buffer._files._read_file):
        if file is not None:
            os.close(file._descriptor)
    buffer._files._active = buffer._files._read_file = None
    buffer._unlock()


def record_ends(folder: Path) -> list[int]:
    """Where the records of the newest day file end, in bytes."""
    file = DayFile(day_file(folder))
    ends = [record.end for record in file.read_all()]
    file.close()
    return ends


def content_of(number: int) -> bytes:
    return b"telegram %d " % number * 5


def observation(number: int) -> pb.Observation:
    return observation_of(
        Capture(
            "cl51",
            "vaisala-cl",
            content_of(number),
            origin_name="cl51:run",
            origin_index=number,
            clock=pb.CaptureClock(),
        )
    )


def append(buffer: Buffer, *numbers: int, now: float = NOW) -> range:
    return buffer.append([observation(number) for number in numbers], now)


def contents(buffer: Buffer) -> dict[int, bytes]:
    """Everything that can be read, by sequence."""
    found = buffer.read(1, buffer.last_sequence, max_bytes=1 << 30).observations
    return {o.header.sequence: decode_checked(o) for o in found}


def day_file(buffer_or_folder: Buffer | Path) -> Path:
    folder = buffer_or_folder.folder if isinstance(buffer_or_folder, Buffer) else buffer_or_folder
    return max((folder / "days").glob("*.obs"))


# --- ordinary life ---


def test_what_is_appended_is_read_again_with_its_identity(open_buffer: Callable[..., Buffer]) -> None:
    buffer = open_buffer()
    assert append(buffer, 1, 2, 3) == range(1, 4)
    (second,) = buffer.read(2, 2, max_bytes=1000).observations
    assert (second.header.station, second.header.epoch, second.header.sequence) == ("magurele", buffer.epoch, 2)
    assert decode_checked(second) == content_of(2)


def test_a_reopened_buffer_goes_on_with_the_same_epoch_and_the_next_sequence(
    open_buffer: Callable[..., Buffer],
) -> None:
    first = open_buffer()
    append(first, 1, 2)
    epoch = first.epoch
    first.close()
    second = open_buffer()
    assert second.epoch == epoch
    assert append(second, 3) == range(3, 4)
    assert contents(second) == {n: content_of(n) for n in (1, 2, 3)}


def test_a_read_stops_at_its_bound_of_bytes_but_reads_one_larger_observation(
    open_buffer: Callable[..., Buffer],
) -> None:
    buffer = open_buffer()
    append(buffer, *range(1, 11))
    size = len(buffer.read(1, 1, 1).observations[0].payload)
    assert len(buffer.read(1, 10, max_bytes=3 * size).observations) == 3
    assert len(buffer.read(1, 10, max_bytes=1).observations) == 1
    assert buffer.read(1, 10, max_bytes=1, first_max_bytes=size - 1).observations == []


def test_each_utc_day_and_each_full_file_begins_a_new_file_and_reads_go_across(
    open_buffer: Callable[..., Buffer],
) -> None:
    buffer = open_buffer(day_file_max_bytes=4096)
    append(buffer, 1)
    append(buffer, 2, now=NOW + DAY_S)
    for number in range(3, 60):
        append(buffer, number, now=NOW + DAY_S)
    names = sorted(path.name for path in (buffer.folder / "days").glob("*.obs"))
    assert names[:2] == ["000000000001-20260301.obs", "000000000002-20260302.obs"]
    assert len(names) > 3
    assert contents(buffer) == {n: content_of(n) for n in range(1, 60)}


def test_a_clock_that_steps_back_over_midnight_opens_no_new_file(open_buffer: Callable[..., Buffer]) -> None:
    buffer = open_buffer()
    midnight = NOW + DAY_S / 2
    append(buffer, 1, now=midnight + 1)
    append(buffer, 2, now=midnight - 1)
    append(buffer, 3, now=midnight - 400 * DAY_S)  # the clock had been wrong by more than a year
    assert [file.day for file in buffer.files()] == [date(2026, 3, 2), date(2025, 1, 26)]


def test_a_second_process_on_the_same_buffer_is_refused(open_buffer: Callable[..., Buffer]) -> None:
    buffer = open_buffer()
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        message = pool.apply(_open_and_say, (buffer.folder,))
    assert "another one holds its lock" in message


def _open_and_say(folder: Path) -> str:
    try:
        Buffer(folder, "magurele")
    except TryAgainError as error:
        return str(error)
    return "opened"


def test_the_buffer_of_another_station_is_refused(open_buffer: Callable[..., Buffer]) -> None:
    buffer = open_buffer()
    append(buffer, 1)
    buffer.close()
    with pytest.raises(InvalidRequestError, match="expected a buffer of station payerne"):
        Buffer(buffer.folder, "payerne")


# --- power cuts ---


def test_a_torn_last_record_is_cut_off_at_every_byte_and_the_rest_stays(open_buffer: Callable[..., Buffer]) -> None:
    buffer = open_buffer()
    append(buffer, 1, 2)
    append(buffer, 3)
    path, written = day_file(buffer), day_file(buffer).read_bytes()
    _, whole, end = record_ends(buffer.folder)
    crash(buffer)
    for size in range(whole, end):
        # In front of what was written there are the zeros of the space that was filled ahead.
        path.write_bytes(written[:size] + bytes(len(written) - size))
        buffer = open_buffer()
        assert buffer.last_sequence == 2
        assert contents(buffer) == {1: content_of(1), 2: content_of(2)}
        torn = written[whole:size].rstrip(b"\0")
        assert path.stat().st_size == whole or not torn
        kept = [p for p in (buffer.folder / "set-aside").iterdir() if p.read_bytes() == torn]
        assert kept or not torn, "the torn bytes are not kept"
        for part in (buffer.folder / "set-aside").iterdir():
            part.unlink()
        crash(buffer)
    buffer = open_buffer()
    assert append(buffer, 3) == range(3, 4)
    assert contents(buffer) == {n: content_of(n) for n in (1, 2, 3)}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_flipped_byte_costs_at_most_the_record_it_hit(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("flip") / "buffer"
    buffer = Buffer(folder, "magurele")
    for number in range(1, 7):
        append(buffer, number)
    ends = [0, *record_ends(folder)]
    buffer.close()
    content = bytearray(day_file(folder).read_bytes())
    position = data.draw(st.integers(0, len(content) - 1))
    content[position] ^= data.draw(st.integers(1, 255))
    day_file(folder).write_bytes(content)
    if data.draw(st.booleans()):
        day_file(folder).with_suffix(".idx").unlink()
    hit = next(n for n, end in enumerate(ends) if position < end)

    buffer = Buffer(folder, "magurele")
    survivors = {n: content_of(n) for n in range(1, 7) if n != hit}
    assert contents(buffer) == survivors
    if hit <= buffer.last_sequence:
        assert list(buffer.unreadable) == [(hit, hit)]
    following = append(buffer, 7)[0]
    assert contents(buffer) == {**survivors, following: content_of(7)}
    buffer.close()


@pytest.mark.parametrize("index", [b"", b"\0" * 8 * 5, b"\xff" * 8 * 5, b"rubbish", None])
def test_an_index_that_is_lost_or_wrong_is_written_anew(
    open_buffer: Callable[..., Buffer], index: bytes | None
) -> None:
    buffer = open_buffer()
    append(buffer, 1, 2, 3, 4, 5)
    path = day_file(buffer).with_suffix(".idx")
    buffer.close()
    right = path.read_bytes()
    if index is None:
        path.unlink()
    else:
        path.write_bytes(index)
    buffer = open_buffer()
    assert contents(buffer) == {n: content_of(n) for n in range(1, 6)}
    buffer.close()
    assert path.read_bytes() == right


def test_an_index_that_points_at_other_records_does_not_mislead(open_buffer: Callable[..., Buffer]) -> None:
    buffer = open_buffer()
    append(buffer, 1, 2, 3, 4, 5)
    path = day_file(buffer).with_suffix(".idx")
    buffer.close()
    right = path.read_bytes()
    path.write_bytes(right[8:16] + right[:8] + right[16:])
    assert contents(open_buffer()) == {n: content_of(n) for n in range(1, 6)}


def test_a_file_of_rubbish_is_set_aside_and_the_files_before_it_go_on(open_buffer: Callable[..., Buffer]) -> None:
    buffer = open_buffer()
    append(buffer, 1)
    append(buffer, 2, now=NOW + DAY_S)
    day_file(buffer).write_bytes(b"rubbish" * 100)
    crash(buffer)
    buffer = open_buffer()
    assert contents(buffer) == {1: content_of(1)}
    assert [p.read_bytes() for p in (buffer.folder / "set-aside").iterdir()] == [b"rubbish" * 100]
    assert append(buffer, 2) == range(2, 3)


def test_a_lost_day_file_is_reported_once_as_one_range_and_the_rest_is_read(open_buffer: Callable[..., Buffer]) -> None:
    buffer = open_buffer()
    for day in range(3):
        append(buffer, *range(1 + 10 * day, 11 + 10 * day), now=NOW + day * DAY_S)
    (buffer.folder / "days" / "000000000011-20260302.obs").unlink()
    found = buffer.read(1, 30, max_bytes=1 << 20)
    assert [o.header.sequence for o in found.observations] == [*range(1, 11), *range(21, 31)]
    assert found.missing == [(11, 20)]


def test_a_lost_epoch_is_found_again_in_the_records(open_buffer: Callable[..., Buffer]) -> None:
    buffer = open_buffer()
    append(buffer, 1)
    epoch = buffer.epoch
    buffer.close()
    (buffer.folder / "epoch").write_text("zzz")
    assert open_buffer().epoch == epoch
    assert (buffer.folder / "epoch").read_text() == f"{epoch}\n"


def test_a_hole_in_the_last_write_makes_the_sources_begin_again_behind_it(open_buffer: Callable[..., Buffer]) -> None:
    buffer = open_buffer()
    append(buffer, 1, 2)
    buffer.close()
    buffer = open_buffer()
    append(buffer, 3, 4)
    crash(buffer)
    content = bytearray(day_file(buffer).read_bytes())
    content[record_ends(buffer.folder)[2] - 20] ^= 1  # the first record of the last write did not reach the disk
    day_file(buffer).write_bytes(content)
    buffer = open_buffer()
    assert buffer.origins() == {"cl51:run": 2}
    assert contents(buffer) == {n: content_of(n) for n in (1, 2, 4)}


# --- full and broken disks ---


@pytest.mark.parametrize(
    ("number", "expected"),
    [(errno.ENOSPC, TryAgainError), (errno.EDQUOT, TryAgainError), (errno.EIO, BrokenStateError)],
)
def test_a_failed_write_appends_nothing_and_the_file_stays_usable(
    open_buffer: Callable[..., Buffer], monkeypatch: pytest.MonkeyPatch, number: int, expected: type[Exception]
) -> None:
    buffer = open_buffer()
    append(buffer, 1)
    size = record_ends(buffer.folder)[-1]

    def fail(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr("edge_agent.storage.day_file.os.fdatasync", fail)
        with pytest.raises(expected, match=os.strerror(number)):
            append(buffer, 2, 3)
    assert day_file(buffer).stat().st_size == size
    assert append(buffer, 2, 3) == range(2, 4)
    crash(buffer)
    assert contents(open_buffer()) == {n: content_of(n) for n in (1, 2, 3)}


def test_a_write_that_the_disk_takes_in_small_pieces_is_whole(
    open_buffer: Callable[..., Buffer], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.pwrite
    monkeypatch.setattr(
        "edge_agent.storage.day_file.os.pwrite", lambda fd, content, offset: real(fd, content[:7], offset)
    )
    buffer = open_buffer()
    append(buffer, 1, 2)
    monkeypatch.undo()
    crash(buffer)
    assert contents(open_buffer()) == {1: content_of(1), 2: content_of(2)}


# --- receipts, refusals, retention ---


def test_delivered_and_refused_survive_a_restart(open_buffer: Callable[..., Buffer]) -> None:
    buffer = open_buffer()
    append(buffer, *range(1, 11))
    buffer.deliver([(1, 4), (6, 7)])
    buffer.refuse(5, "UNKNOWN_INSTRUMENT", "register it")
    buffer.refuse(8, "INVALID", "no sha256")
    buffer.close()
    buffer = open_buffer()
    assert list(buffer.ledger.delivered) == [(1, 4), (6, 7)]
    assert buffer.ledger.refused_count() == 2
    assert list(buffer.settled()) == [(1, 4), (6, 8)], "an unknown instrument may be known by now"


def test_a_sequence_that_was_ever_receipted_is_never_used_again(open_buffer: Callable[..., Buffer]) -> None:
    buffer = open_buffer()
    append(buffer, 1, 2, 3)
    buffer.deliver([(1, 3)])
    buffer.close()
    for path in (buffer.folder / "days").iterdir():
        path.unlink()
    buffer = open_buffer()
    assert append(buffer, 4) == range(4, 5)
    assert contents(buffer) == {4: content_of(4)}
    assert not buffer.unreadable, "what was never used is not missing"


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"epoch": 5}', b'{"epoch":"x","delivered":[[3,1]]}', b"\xff\x00"]
)
def test_a_broken_ledger_is_set_aside_and_costs_only_duplicates(
    open_buffer: Callable[..., Buffer], content: bytes
) -> None:
    buffer = open_buffer()
    append(buffer, 1, 2)
    buffer.deliver([(1, 2)])
    buffer.close()
    (buffer.folder / "delivered.json").write_bytes(content)
    buffer = open_buffer()
    assert not buffer.ledger.delivered
    assert [p.read_bytes() for p in (buffer.folder / "set-aside").iterdir()] == [content]


def test_bytes_appended_again_have_a_new_sequence_and_the_same_content(open_buffer: Callable[..., Buffer]) -> None:
    buffer = open_buffer()
    append(buffer, 1, 2)
    assert [o.header.sequence for o in buffer.append_again(1, NOW)] == [3]
    assert contents(buffer)[3] == content_of(1)
    assert buffer.append_again(99, NOW) == []


def test_origins_survive_a_crash_a_restart_and_many_day_files(open_buffer: Callable[..., Buffer]) -> None:
    buffer = open_buffer()
    for number in range(1, 8):
        append(buffer, number, now=NOW + number * DAY_S)
    crash(buffer)
    buffer = open_buffer()
    assert buffer.origins() == {"cl51:run": 7}
    buffer.close()
    assert open_buffer().origins() == {"cl51:run": 7}


def test_retention_deletes_what_is_delivered_and_old_and_nothing_else(open_buffer: Callable[..., Buffer]) -> None:
    buffer = open_buffer()
    for number in range(1, 6):
        append(buffer, number, now=NOW + number * DAY_S)
    buffer.deliver([(1, 1), (3, 5)])
    deleted = buffer.delete_expired(NOW + 100 * DAY_S, RetentionPolicy(retention_days=98))
    assert [file.first_sequence for file in deleted] == [1]
    deleted = buffer.delete_expired(NOW + 1000 * DAY_S, RetentionPolicy(retention_days=98))
    assert [file.first_sequence for file in deleted] == [3, 4], "2 is not delivered, 5 is being written"
    assert contents(buffer) == {2: content_of(2), 5: content_of(5)}
    crash(buffer)
    buffer = open_buffer()
    assert buffer.last_sequence == 5
    assert list(buffer.held()) == [(2, 2), (5, 5)]
    assert list(buffer.settled()) == [(1, 1), (3, 5)]
    buffer.read(1, 5, 1 << 20)
    assert not buffer.unreadable, "what was deleted on purpose is not missing"


def stored(day: date, *, first: int = 1, is_delivered: bool = True) -> StoredFile:
    return StoredFile(first, first, day, 100, is_delivered)


def test_a_day_that_the_clock_cannot_have_meant_is_taken_from_the_next_file() -> None:
    now = datetime(2030, 1, 1, tzinfo=UTC).timestamp()
    policy = RetentionPolicy(retention_days=365)
    woke_in_1970, fresh, last = (
        stored(date(1970, 1, 1)),
        stored(date(2029, 12, 1), first=2),
        stored(date(2030, 1, 1), first=3),
    )
    assert choose_expired([woke_in_1970, fresh, last], now, policy) == []
    old = stored(date(2028, 1, 1), first=2)
    assert choose_expired([woke_in_1970, old, last], now, policy) == [woke_in_1970, old]
    from_the_future = stored(date(2099, 1, 1))
    assert choose_expired([from_the_future, last], now, policy) == []
    assert choose_expired([old, last], datetime(1970, 1, 2, tzinfo=UTC).timestamp(), policy) == []


# --- quarantine ---


def test_quarantine_keeps_the_bytes_and_the_reason_once(open_buffer: Callable[..., Buffer]) -> None:
    quarantine = open_buffer().quarantine
    arguments = {"instrument": "cl51", "source_name": "a.dat", "reason": "expected X, got Y", "now_unix_s": NOW}
    assert quarantine.put(b"noise", **arguments)
    assert not quarantine.put(b"noise", **arguments)
    assert quarantine.count() == 1
    assert [path.read_bytes() for path in quarantine.folder.glob("*.bin")] == [b"noise"]
    assert "expected X, got Y" in next(quarantine.folder.glob("*.json")).read_text()


# --- size ---


def test_a_year_of_telegrams_opens_in_well_under_a_second(tmp_path: Path) -> None:
    folder = tmp_path / "buffer"
    days = folder / "days"
    buffer = Buffer(folder, "magurele")
    epoch = buffer.epoch
    buffer.close()
    (folder / "origins.json").unlink()  # written at every new day file; without it the last two files tell
    per_day = 5760
    header = pb.ObservationHeader(station="magurele", epoch=epoch)
    for day in range(365):
        name = f"{1 + day * per_day:012d}-{datetime.fromtimestamp(NOW + day * DAY_S, UTC):%Y%m%d}.obs"
        header.sequence = (day + 1) * per_day
        # Only the last record of each file is really there: nothing else may be needed.
        record = pack_record(header.SerializeToString(), b"payload")
        (days / name).write_bytes(record)
        (days / name).with_suffix(".idx").write_bytes(b"\xff" * 8 * (per_day - 1) + bytes(8))
    begun = time.perf_counter()
    buffer = Buffer(folder, "magurele")
    took_s = time.perf_counter() - begun
    assert buffer.last_sequence == 365 * per_day
    assert buffer.read(365 * per_day, 365 * per_day, 1).observations
    buffer.close()
    assert took_s < 0.5


# --- looking in from outside ---


def test_a_check_from_outside_finds_the_damage_and_changes_nothing(open_buffer: Callable[..., Buffer]) -> None:
    buffer = open_buffer()
    append(buffer, 1, 2, 3)
    buffer.deliver([(1, 2)])
    buffer.save()
    (summary,) = list_files(buffer.folder)
    assert (summary.observation_count, summary.delivered_count) == (3, 2)
    assert check_file(buffer.folder, summary).damaged == []
    first, second, end = record_ends(buffer.folder)
    content = bytearray(day_file(buffer).read_bytes())
    content[(first + second) // 2] ^= 1
    content[end + 100 : end + 110] = b"half a rec"
    day_file(buffer).write_bytes(content)
    before = {path: path.read_bytes() for path in (buffer.folder / "days").iterdir()}
    (summary,) = list_files(buffer.folder)
    check = check_file(buffer.folder, summary)
    assert (check.good_count, check.damaged, check.tail_bytes) == (2, [(2, 2)], 110)
    assert {path: path.read_bytes() for path in (buffer.folder / "days").iterdir()} == before


def test_a_day_file_refuses_a_sequence_that_does_not_follow(tmp_path: Path) -> None:
    file = DayFile(tmp_path / "000000000001-20260301.obs", is_owned=True, is_new=True)
    with pytest.raises(BrokenStateError, match="expected sequence 1"):
        file.append(2, [pack_record(b"", b"")])
    file.close()
