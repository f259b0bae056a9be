"""The ingest core on a real database and real segments."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from server_support import EPOCH, make_bundle, make_observation, open_store
from sqlalchemy import Connection, delete, func, select, update

from fieldpost.errors import BrokenStateError, InvalidObservationError, TryAgainError
from fieldpost.payload import decode_checked
from fieldpost.v1 import observation_pb2 as pb
from fieldpost.v1 import receipt_pb2
from server.ingest import core
from server.ingest.admission import check_bundle
from server.ingest.core import Ingest
from server.ingest.ledger import Ledger
from server.ingest.registry import RegisteredInstrument, RegisteredStation, register
from server.storage.database import libpq_url
from server.storage.segment_url import open_segments
from server.storage.segments import Place, SegmentWriter
from server.storage.store import Store
from server.storage.tables import epochs, instruments, observations, segments

MAX = 1024 * 1024


@pytest.fixture
def store(tmp_path: Path, database_url: str) -> Iterator[Store]:
    store = open_store(tmp_path, database_url=database_url)
    yield store
    store.close()


@pytest.fixture
def ingest(store: Store) -> Iterator[Ingest]:
    ingest = Ingest(store, payload_bytes_max=MAX, on_stored=lambda: None)
    yield ingest
    ingest.close()


def held(receipt: receipt_pb2.Receipt) -> list[tuple[int, int]]:
    return [(each.first_sequence, each.last_sequence) for each in receipt.held_ranges]


def stored(store: Store) -> dict[int, bytes]:
    """Every stored observation's bytes by sequence, read back through row and segment, checked."""
    query = select(observations.c.sequence, segments.c.name, observations.c.segment_offset, observations.c.stored_bytes)
    content = {}
    with store.read() as connection:
        for sequence, *place in connection.execute(query.join(segments)):
            observation = pb.Observation.FromString(store.read_segment(Place(*place)))
            assert observation.header.sequence == sequence
            content[sequence] = decode_checked(observation)
    return content


def test_what_a_receipt_promises_can_be_read_back(ingest: Ingest, store: Store) -> None:
    receipt = ingest.submit(make_bundle(1, 2, 3, 7)).result(10)
    assert held(receipt) == [(1, 3), (7, 7)]
    assert (receipt.station, receipt.epoch) == ("lindenberg", EPOCH)
    assert stored(store) == {i: b"observation %d " % i * 20 for i in (1, 2, 3, 7)}


def test_a_time_that_the_station_corrected_is_the_time_of_capture(ingest: Ingest, store: Store) -> None:
    bundle = make_bundle(1)
    header = bundle.observations[0].header
    header.ClearField("measure_time")
    header.capture_clock.wall_time.FromSeconds(1000)
    header.corrected_wall_time.FromSeconds(1_780_000_000)
    ingest.submit(bundle).result(10)
    with store.read() as connection:
        times = connection.execute(select(observations.c.capture_unix_nanos, observations.c.measure_unix_nanos)).one()
    assert tuple(times) == (1_780_000_000 * 10**9,) * 2


def test_a_duplicate_is_dropped_counted_and_promised_again(ingest: Ingest, store: Store) -> None:
    ingest.submit(make_bundle(1, 2)).result(10)
    receipt = ingest.submit(make_bundle(2, 3)).result(10)
    assert held(receipt) == [(2, 3)]
    assert receipt.duplicate_count == 1
    assert sorted(stored(store)) == [1, 2, 3]
    assert ingest.counts["lindenberg", "cl51"].duplicates == 1


def test_the_same_bundle_many_times_at_once_is_stored_once(ingest: Ingest, store: Store) -> None:
    futures = [ingest.submit(make_bundle(*range(1, 33))) for _ in range(20)]
    receipts = [future.result(10) for future in futures]
    assert all(held(receipt) == [(1, 32)] for receipt in receipts)
    assert sum(receipt.duplicate_count for receipt in receipts) == 19 * 32
    with store.read() as connection:
        assert connection.scalar(select(func.count()).select_from(observations)) == 32


def test_other_bytes_under_a_held_identity_are_refused_and_the_first_stay(ingest: Ingest, store: Store) -> None:
    ingest.submit(make_bundle(1)).result(10)
    receipt = ingest.submit(pb.Bundle(observations=[make_observation(1, b"forged"), make_observation(2)])).result(10)
    assert held(receipt) == [(2, 2)]
    assert [each.reason for each in receipt.rejections] == [receipt_pb2.REJECTION_REASON_IDENTITY_CONFLICT]
    assert stored(store)[1] == b"observation 1 " * 20


def test_an_unregistered_instrument_is_refused_until_it_is_registered(ingest: Ingest, store: Store) -> None:
    unknown = make_bundle(1, instrument="cl31")
    receipt = ingest.submit(unknown).result(10)
    assert [each.reason for each in receipt.rejections] == [receipt_pb2.REJECTION_REASON_UNKNOWN_INSTRUMENT]
    station = RegisteredStation(
        name="lindenberg", instruments=[RegisteredInstrument(name="cl31", instrument_model="cl31")]
    )
    assert store.write(lambda connection: register(connection, [station])).result(10) == 1
    assert held(ingest.submit(unknown).result(10)) == [(1, 1)]


def test_an_unknown_station_is_refused_and_leaves_no_trace(ingest: Ingest, store: Store) -> None:
    receipt = ingest.submit(make_bundle(1, station="atlantis")).result(10)
    assert [each.reason for each in receipt.rejections] == [receipt_pb2.REJECTION_REASON_UNKNOWN_INSTRUMENT]
    assert stored(store) == {}


int64 = st.one_of(st.integers(-(2**63), 2**63 - 1), st.sampled_from([0, 1, -1, 2**53, 2**63 - 1, -(2**63)]))
headers = st.builds(
    lambda **fields: pb.ObservationHeader(
        **{key: value for key, value in fields.items() if key not in ("seconds", "nanos")},
        measure_time={"seconds": fields["seconds"], "nanos": fields["nanos"]},
    ),
    station=st.sampled_from(["lindenberg", "payerne", "", "LINDENBERG", "a/b"]),
    instrument=st.sampled_from(["cl51", "cl31", "", "+", "x" * 200]),
    epoch=st.sampled_from([EPOCH, "f" * 32, "", "F" * 32]),
    sequence=int64,
    sha256=st.binary(max_size=40),
    payload_bytes=int64,
    payload_encoding=st.integers(-5, 5),
    payload_format=st.text(max_size=20),
    origin=st.text(max_size=20),
    seconds=int64,
    nanos=st.integers(-(2**31), 2**31 - 1),
)
strange = st.builds(pb.Observation, header=headers, payload=st.binary(max_size=60))


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)  # one store for all examples: what one leaves behind must not harm the next
@given(observations_=st.lists(strange, max_size=4))
def test_whatever_a_bundle_holds_it_gets_an_answer_and_harms_no_other(
    ingest: Ingest, observations_: list[pb.Observation]
) -> None:
    bad = ingest.submit(pb.Bundle(observations=observations_))
    good = ingest.submit(make_bundle(1, 2, 3))
    assert held(good.result(10)) == [(1, 3)]
    error = bad.exception(10)
    assert error is None or isinstance(error, InvalidObservationError), error


def test_a_flood_of_refusals_is_one_line_in_the_log_and_every_one_is_counted(
    ingest: Ingest, caplog: pytest.LogCaptureFixture
) -> None:
    for first in range(1, 100, 10):
        ingest.submit(make_bundle(*range(first, first + 10), instrument="cl31")).result(10)
    assert [record.message for record in caplog.records].count("observations refused") == 1
    assert ingest.counts["lindenberg", "cl31"].rejected == 100


def test_a_bundle_without_identity_is_an_error_and_disturbs_no_other(ingest: Ingest) -> None:
    bad = ingest.submit(pb.Bundle())
    good = ingest.submit(make_bundle(1))
    with pytest.raises(InvalidObservationError):
        bad.result(10)
    assert held(good.result(10)) == [(1, 1)]


def test_counts_and_last_time_of_an_instrument_follow_its_observations(ingest: Ingest, store: Store) -> None:
    ingest.submit(make_bundle(5, 6)).result(10)
    ingest.submit(make_bundle(1, 2, 6)).result(10)  # history that arrives late
    with store.read() as connection:
        row = connection.execute(select(instruments)).one()
    assert row.observation_count == 4
    assert row.last_measure_unix_nanos == make_observation(6).header.measure_time.ToNanoseconds()


def test_several_stations_that_send_at_once_get_their_own_receipts(ingest: Ingest) -> None:
    results: dict[str, list[tuple[int, int]]] = {}

    def send(epoch: str) -> None:
        receipts = [ingest.submit(make_bundle(i, i + 1, epoch=epoch)) for i in range(1, 40, 2)]
        results[epoch] = [pair for receipt in receipts for pair in held(receipt.result(10))]

    threads = [threading.Thread(target=send, args=(f"{i:032x}",)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(ranges == [(i, i + 1) for i in range(1, 40, 2)] for ranges in results.values())
    assert len(results) == 4


def test_a_disk_that_refuses_gives_no_receipt_and_the_next_attempt_succeeds(
    store: Store, ingest: Ingest, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_write = os.write
    is_full = True

    def full_disk(file: int, content: memoryview) -> int:
        if is_full and threading.current_thread().name == "store-writer":
            raise OSError(errno.ENOSPC, "No space left on device")
        return real_write(file, content)

    monkeypatch.setattr(os, "write", full_disk)
    with pytest.raises(TryAgainError, match="No space left"):
        ingest.submit(make_bundle(1, 2)).result(10)
    assert stored(store) == {}
    is_full = False
    assert held(ingest.submit(make_bundle(1, 2)).result(10)) == [(1, 2)]
    assert sorted(stored(store)) == [1, 2]


def test_a_disk_that_fails_to_sync_gives_no_receipt_and_its_segment_is_never_trusted_again(
    store: Store, ingest: Ingest, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_sync = os.fdatasync
    failures = [OSError(errno.EIO, "Input/output error")]

    def failing_sync(file: int) -> None:
        if failures:
            raise failures.pop()
        real_sync(file)

    ingest.submit(make_bundle(1)).result(10)
    monkeypatch.setattr(os, "fdatasync", failing_sync)
    with pytest.raises(TryAgainError, match="Input/output error"):
        ingest.submit(make_bundle(2, 3)).result(10)
    assert sorted(stored(store)) == [1]
    assert held(ingest.submit(make_bundle(2, 3)).result(10)) == [(2, 3)]
    assert sorted(stored(store)) == [1, 2, 3]
    with store.read() as connection:
        assert connection.scalar(select(func.count()).select_from(segments)) == 2


def test_a_missing_segment_is_named(tmp_path: Path) -> None:
    _, reader = open_segments(tmp_path)
    with pytest.raises(BrokenStateError, match=r"gone\.seg"):
        reader.read(Place("gone.seg", 0, 10))


def test_a_cut_segment_is_named_with_what_was_expected(tmp_path: Path) -> None:
    writer, reader = open_segments(tmp_path)
    name, (offset,) = writer.append([b"0123456789"])
    writer.sync()
    writer.close()
    (tmp_path / name).write_bytes(b"01234")
    with pytest.raises(BrokenStateError, match=r"expected 10 bytes.*got 5"):
        reader.read(Place(name, offset, 10))
    reader.close()


def test_two_stores_on_one_database_write_without_refusing_each_other(tmp_path: Path, database_url: str) -> None:
    first, second = (open_store(tmp_path, database_url=database_url) for _ in range(2))
    one, two = (Ingest(each, payload_bytes_max=MAX, on_stored=lambda: None) for each in (first, second))
    futures = [
        each.submit(make_bundle(i, epoch=f"{n:032x}")) for i in range(1, 30) for n, each in enumerate((one, two))
    ]
    assert all(held(future.result(20)) for future in futures)
    for part in (one, two, first, second):
        part.close()


def test_what_another_server_stored_since_is_a_duplicate_and_not_stored_again(
    tmp_path: Path, database_url: str
) -> None:
    stores = [open_store(tmp_path, database_url=database_url) for _ in range(2)]
    one, two = (Ingest(each, payload_bytes_max=MAX, on_stored=lambda: None) for each in stores)
    one.submit(make_bundle(1, 2)).result(10)  # it knows from now on how far this epoch has come
    two.submit(make_bundle(3, 4)).result(10)
    receipt = one.submit(make_bundle(3, 4, 5)).result(10)
    assert (held(receipt), receipt.duplicate_count) == ([(3, 5)], 2)
    conflict = two.submit(pb.Bundle(observations=[make_observation(5, b"forged")])).result(10)
    assert [each.reason for each in conflict.rejections] == [receipt_pb2.REJECTION_REASON_IDENTITY_CONFLICT]
    assert sorted(stored(stores[0])) == [1, 2, 3, 4, 5]
    for part in (one, two, *stores):
        part.close()


@pytest.mark.parametrize("is_restarted", [False, True])
def test_what_was_pruned_after_archiving_is_promised_again_and_not_stored(
    store: Store, ingest: Ingest, tmp_path: Path, database_url: str, is_restarted: bool
) -> None:
    ingest.submit(make_bundle(*range(1, 7))).result(10)
    pruned = receipt_pb2.Receipt(held_ranges=[{"first_sequence": 1, "last_sequence": 3}, {"first_sequence": 6}])
    pruned.held_ranges[1].last_sequence = 6

    def prune(connection: Connection) -> None:
        connection.execute(delete(observations).where(observations.c.sequence.in_([1, 2, 3, 6])))
        connection.execute(update(epochs).values(pruned_ranges=pruned.SerializeToString()))

    store.write(prune).result(10)
    other = open_store(tmp_path, database_url=database_url)
    second = Ingest(other, payload_bytes_max=MAX, on_stored=lambda: None)
    receipt = (second if is_restarted else ingest).submit(make_bundle(2, 3, 4, 6, 7)).result(10)
    assert (held(receipt), receipt.duplicate_count) == ([(2, 4), (6, 7)], 4)
    assert sorted(stored(store)) == [4, 5, 7]
    second.close()
    other.close()


def test_a_record_that_lies_in_a_segment_of_its_own_is_stored_once_and_can_be_read_back(
    store: Store, ingest: Ingest, tmp_path: Path
) -> None:
    observation = make_observation(1, b"a volume " * 1000)
    (tmp_path / "upload").write_bytes(observation.SerializeToString())
    place = Place(store.segments.adopt(tmp_path / "upload"), 0, observation.ByteSize())
    assert held(ingest.submit_record(observation.header, place).result(10)) == [(1, 1)]
    again = ingest.submit_record(observation.header, place).result(10)
    assert (held(again), again.duplicate_count) == ([(1, 1)], 1)
    assert stored(store) == {1: b"a volume " * 1000}
    unknown = make_observation(2, instrument="cl31")
    refused = ingest.submit_record(unknown.header, place).result(10)
    assert [each.reason for each in refused.rejections] == [receipt_pb2.REJECTION_REASON_UNKNOWN_INSTRUMENT]


def test_the_load_counts_what_came_and_what_waits(ingest: Ingest, store: Store) -> None:
    ingest.submit(make_bundle(1, 2)).result(10)
    ingest.submit(make_bundle(2, 3)).result(10)
    ingest.submit(make_bundle(9, instrument="cl31")).result(10)
    may_go = threading.Event()
    blocker = store.write(lambda _: may_go.wait(10))
    bundle = make_bundle(4, 5)
    waiting = [ingest.submit(bundle) for _ in range(5)]
    load = ingest.load()
    assert (load.stored_count, load.duplicate_count, load.rejected_count, load.last_minute_count) == (3, 1, 1, 3)
    assert (load.waiting_bundle_count, load.waiting_bytes) == (5, 5 * bundle.ByteSize())
    may_go.set()
    blocker.result(10)
    for each in waiting:
        each.result(10)
    load = ingest.load()
    assert (load.stored_count, load.last_minute_count, load.waiting_bundle_count, load.waiting_bytes) == (5, 5, 0, 0)


KILLED_WRITER = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from server_support import make_bundle, open_store
from server.ingest.core import Ingest
step, folder, database_url = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
store = open_store(folder, database_url=database_url)
ingest = Ingest(store, payload_bytes_max=1 << 20, on_stored=lambda: None)
print(ingest.submit(make_bundle(1, 2)).result(10).held_ranges, flush=True)
die = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
def after(real):
    def run(*a, **k):
        real(*a, **k)
        die()
    return run
if step == "before append": store.segments.append = die
if step == "after append": store.segments.append = after(store.segments.append)
if step == "before sync": store.segments.sync = die
if step == "after sync": store.segments.sync = after(store.segments.sync)
if step == "after commit": ingest._finish = die
ingest.submit(make_bundle(3, 4)).result(10)
"""


@pytest.mark.parametrize("step", ["before append", "after append", "before sync", "after sync", "after commit"])
def test_killed_at_any_step_of_a_commit_nothing_promised_is_lost_and_nothing_is_stored_twice(
    tmp_path: Path, database_url: str, step: str
) -> None:
    script = KILLED_WRITER.format(tests=str(Path(__file__).parent))
    command = [sys.executable, "-c", script, step, str(tmp_path), database_url]
    done = subprocess.run(command, stdout=subprocess.PIPE, timeout=60)
    assert done.returncode == -signal.SIGKILL
    store = open_store(tmp_path, database_url=database_url)
    ingest = Ingest(store, payload_bytes_max=MAX, on_stored=lambda: None)
    receipt = ingest.submit(make_bundle(1, 2, 3, 4)).result(10)  # what a station does that got no receipt
    assert held(receipt) == [(1, 4)]
    assert receipt.duplicate_count == (4 if step == "after commit" else 2)
    assert stored(store) == {i: b"observation %d " % i * 20 for i in (1, 2, 3, 4)}
    ingest.close()
    store.close()


def test_names_that_do_not_exist_are_counted_together_once_there_are_many(
    ingest: Ingest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(core, "NAMES_MAX", 50)
    for first in range(0, 200, 20):
        names = [make_observation(1 + first + i, instrument=f"noise-{first + i}") for i in range(20)]
        ingest.submit(pb.Bundle(observations=names)).result(10)
    ingest.submit(make_bundle(1000)).result(10)
    load = ingest.load()
    assert (load.stored_count, load.rejected_count) == (1, 200)
    assert len(ingest.counts) == 51
    assert ingest.counts["lindenberg", "cl51"].stored == 1


def test_large_bundles_are_written_in_groups_that_memory_can_hold(
    ingest: Ingest, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(core, "GROUP_BYTES_MAX", 2 * MAX)
    bundles = [pb.Bundle(observations=[make_observation(i, os.urandom(MAX))]) for i in range(1, 13)]
    may_go = threading.Event()
    blocker = store.write(lambda _: may_go.wait(10))
    waiting = [ingest.submit(each, timeout_s=0) for each in bundles]
    time.sleep(0.3)  # more would be taken now, if nothing kept them
    left = len(ingest._queue._items)
    may_go.set()
    assert left >= 6  # two groups of at most two wait for the disk, a third one for its turn
    assert [held(each.result(20)) for each in waiting] == [[(i, i)] for i in range(1, 13)]
    blocker.result(10)


class _RefusesOnce:
    """The real segments, but that the first group is refused by something that is neither disk nor database."""

    def __init__(self, segments: SegmentWriter) -> None:
        self._segments = segments
        self._is_first = True

    def append(self, records: Sequence[bytes]) -> tuple[str, list[int]]:
        if self._is_first:
            self._is_first = False
            raise MemoryError("no room for the group")
        return self._segments.append(records)


def test_what_a_refused_group_made_is_forgotten_by_the_next_one_of_the_same_transaction(store: Store) -> None:
    ledger = Ledger(_RefusesOnce(store.segments))  # type: ignore[arg-type]
    first, second = "1" * 32, "2" * 32
    group = [check_bundle(make_bundle(1, epoch=first), MAX)]
    both = [check_bundle(make_bundle(1, epoch=first), MAX), check_bundle(make_bundle(2, epoch=second), MAX)]
    may_go = threading.Event()
    blocker = store.write(lambda _: may_go.wait(10))
    refused = store.write(lambda connection: ledger.write(connection, group))
    taken = store.write(lambda connection: ledger.write(connection, both))
    may_go.set()
    with pytest.raises(MemoryError):
        refused.result(10)
    assert len(taken.result(10)) == 2
    blocker.result(10)
    assert by_epoch(store) == {(first, 1), (second, 2)}


def test_a_database_that_was_restored_from_its_backup_gets_each_observation_under_its_own_epoch(
    postgres_url: str, tmp_path: Path
) -> None:
    """The rows since the backup are gone, and their numbers are given again: to others."""
    stores = [open_store(tmp_path / name, database_url=postgres_url) for name in ("one", "two")]
    ingests = [Ingest(each, payload_bytes_max=MAX, on_stored=lambda: None) for each in stores]
    first, second = "1" * 32, "2" * 32
    ingests[0].submit(make_bundle(1, epoch=first)).result(10)
    with psycopg.connect(str(libpq_url(postgres_url)), autocommit=True) as operator:
        operator.execute("truncate observation, epoch, segment restart identity cascade")
        operator.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity "
            "where pid <> pg_backend_pid() and datname = current_database()"
        )
    for each in stores:
        with pytest.raises(TryAgainError):
            each.write(lambda connection: connection.exec_driver_sql("select 1")).result(10)
    ingests[1].submit(make_bundle(1, epoch=second)).result(10)
    ingests[0].submit(make_bundle(2, epoch=first)).result(10)
    assert by_epoch(stores[0]) == {(second, 1), (first, 2)}
    for part in (*ingests, *stores):
        part.close()


def by_epoch(store: Store) -> set[tuple[str, int]]:
    query = select(epochs.c.epoch, observations.c.sequence).join(epochs, epochs.c.id == observations.c.epoch_id)
    with store.read() as connection:
        return {(row.epoch, row.sequence) for row in connection.execute(query)}
