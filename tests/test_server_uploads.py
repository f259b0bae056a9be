"""Large observations in pieces: resumed after a cut, checked before they are promised, stored once."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard
from s3_support import s3_server
from server_support import EPOCH, make_observation, open_store
from small_disk import small_disk
from sqlalchemy import func, select

from fieldpost.errors import InvalidObservationError, InvalidRequestError, OverloadedError, TryAgainError
from fieldpost.v1 import observation_pb2 as pb
from fieldpost.v1 import receipt_pb2
from server.ingest.core import Ingest
from server.ingest.registry import RegisteredInstrument, RegisteredStation, register
from server.ingest.uploads import Upload, Uploads
from server.storage.segments import Place
from server.storage.store import Store
from server.storage.tables import epochs, observations, segments

PIECE = 64 * 1024
CONTENT = os.urandom(5 * PIECE + 17)


class Site:
    """A server's parts that an upload touches."""

    def __init__(self, folder: Path, store: Store | None = None, payload_bytes_max: int = 2**24) -> None:
        self.folder = folder
        self.store = store or open_store(folder)
        self.stored_count = 0
        self.ingest = Ingest(self.store, payload_bytes_max=2**20, on_stored=self._count)
        self.uploads = Uploads(folder / "uploads", self.store, self.ingest, payload_bytes_max=payload_bytes_max)

    def _count(self) -> None:
        self.stored_count += 1

    def close(self) -> None:
        self.ingest.close()
        self.store.close()

    def upload(self, observation: pb.Observation, *, until: int | None = None) -> Upload:
        """Sends what the server does not hold yet, in pieces, up to a byte; leaves the upload open."""
        upload = self.uploads.open(observation.header, len(observation.payload))
        stop = 0 if upload.receipt else len(observation.payload) if until is None else until
        for start in range(upload.held_bytes, stop, PIECE):
            upload.write(start, observation.payload[start : min(start + PIECE, stop)])
        return upload

    def finish(self, observation: pb.Observation) -> receipt_pb2.Receipt:
        """The whole upload."""
        upload = self.upload(observation)
        try:
            return upload.receipt or upload.finish()
        finally:
            upload.close()

    def read(self, sequence: int) -> pb.Observation:
        """A stored observation, as the workers read it."""
        query = select(segments.c.name, observations.c.segment_offset, observations.c.stored_bytes).join(segments)
        with self.store.read() as connection:
            place = Place(*connection.execute(query.where(observations.c.sequence == sequence)).one())
        return pb.Observation.FromString(self.store.read_segment(place))

    def count(self) -> int:
        """How many observations are stored."""
        with self.store.read() as connection:
            return int(connection.scalar(select(func.count()).select_from(observations)) or 0)

    def spooled(self) -> list[str]:
        """What lies in the spool."""
        return sorted(path.suffix for path in (self.folder / "uploads").iterdir())


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    yield site
    site.close()


@pytest.fixture
def large() -> pb.Observation:
    return make_observation(7, CONTENT)


def held(receipt: receipt_pb2.Receipt) -> list[tuple[int, int]]:
    return [(each.first_sequence, each.last_sequence) for each in receipt.held_ranges]


def test_an_upload_is_stored_bit_for_bit_and_its_spool_is_gone(site: Site, large: pb.Observation) -> None:
    receipt = site.finish(large)
    assert (held(receipt), receipt.duplicate_count, list(receipt.rejections)) == ([(7, 7)], 0, [])
    assert site.read(7) == large
    assert site.spooled() == []
    assert (site.stored_count, site.ingest.load().stored_count) == (1, 1)


def test_either_database_promises_an_upload_once(database_url: str, tmp_path: Path, large: pb.Observation) -> None:
    site = Site(tmp_path, open_store(tmp_path, database_url=database_url))
    first, again = site.finish(large), site.finish(large)
    assert [(held(each), each.duplicate_count) for each in (first, again)] == [([(7, 7)], 0), ([(7, 7)], 1)]
    assert (site.read(7), site.count()) == (large, 1)
    site.close()


def test_a_compressed_upload_is_unpacked_to_be_checked(site: Site) -> None:
    content = b"a day of the same " * 100_000
    observation = make_observation(1, content)
    assert observation.header.payload_encoding == pb.PAYLOAD_ENCODING_ZSTD
    assert held(site.finish(observation)) == [(1, 1)]
    assert zstandard.decompress(site.read(1).payload) == content


def test_an_upload_to_an_object_store_is_one_object(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with s3_server(monkeypatch) as s3:
        store = Store(f"sqlite:///{tmp_path / 'fieldpost.db'}", s3.url("segments"))
        station = RegisteredStation(
            name="lindenberg", instruments=[RegisteredInstrument(name="cl51", instrument_model="cl51")]
        )
        store.write(lambda connection: register(connection, [station])).result(10)
        site = Site(tmp_path, store)
        observation = make_observation(1, os.urandom(9 * 1024 * 1024))  # two pieces of an object
        assert held(site.finish(observation)) == [(1, 1)]
        assert site.read(1) == observation
        assert list(s3.sizes("segments").values()) == [observation.ByteSize()]
        s3.stop()
        with pytest.raises(TryAgainError, match="did not take"):
            site.finish(make_observation(2, CONTENT))
        s3.start()
        upload = site.uploads.open(make_observation(2, CONTENT).header, len(CONTENT))
        assert upload.held_bytes == len(CONTENT)  # nothing is sent a second time
        assert held(upload.finish()) == [(2, 2)]
        upload.close()
        site.close()


def test_an_upload_that_was_cut_goes_on_where_it_was_synchronised(site: Site, large: pb.Observation) -> None:
    upload = site.upload(large, until=2 * PIECE)
    assert upload.sync() == 2 * PIECE
    upload.write(2 * PIECE, large.payload[2 * PIECE : 3 * PIECE])
    upload.close()  # the third piece was never synchronised, and nobody was told of it
    again = site.uploads.open(large.header, len(large.payload))
    assert again.held_bytes == 2 * PIECE
    again.close()
    assert held(site.finish(large)) == [(7, 7)]
    assert site.read(7) == large


def test_a_torn_end_after_a_power_cut_is_cut_off(site: Site, large: pb.Observation) -> None:
    upload = site.upload(large, until=2 * PIECE)
    upload.sync()
    upload.close()
    (part,) = (site.folder / "uploads").glob("*.part")
    with part.open("ab") as file:
        file.write(b"\0" * 5000)  # the length came to the disk, the bytes did not
    assert held(site.finish(large)) == [(7, 7)]
    assert site.read(7) == large


def test_a_mark_that_the_power_cut_took_costs_a_new_beginning_and_no_byte(site: Site, large: pb.Observation) -> None:
    upload = site.upload(large, until=2 * PIECE)
    upload.sync()
    upload.close()
    (mark,) = (site.folder / "uploads").glob("*.held")
    mark.write_bytes(b"")
    again = site.uploads.open(large.header, len(large.payload))
    assert again.held_bytes == 0
    again.close()
    assert held(site.finish(large)) == [(7, 7)]


def test_another_header_for_the_same_bytes_begins_anew(site: Site, large: pb.Observation) -> None:
    upload = site.upload(large, until=2 * PIECE)
    upload.sync()
    upload.close()
    large.header.origin = "told better"
    again = site.uploads.open(large.header, len(large.payload))
    assert again.held_bytes == 0
    again.close()
    assert held(site.finish(large)) == [(7, 7)]
    assert site.read(7).header.origin == "told better"


def test_two_uploads_of_one_observation_exclude_each_other(site: Site, large: pb.Observation) -> None:
    first = site.upload(large, until=PIECE)
    with pytest.raises(OverloadedError, match="by somebody else"):
        site.uploads.open(large.header, len(large.payload))
    first.close()
    site.uploads.open(large.header, len(large.payload)).close()


@pytest.mark.parametrize("offset", [0, PIECE - 1, PIECE + 1])
def test_a_piece_at_the_wrong_place_is_refused_and_the_right_one_is_taken(
    site: Site, large: pb.Observation, offset: int
) -> None:
    upload = site.upload(large, until=PIECE)
    with pytest.raises(InvalidRequestError, match=f"expected the piece at {PIECE}"):
        upload.write(offset, b"somewhere")
    upload.write(PIECE, large.payload[PIECE:])
    assert held(upload.finish()) == [(7, 7)]
    upload.close()


def test_more_bytes_than_were_announced_are_refused(site: Site, large: pb.Observation) -> None:
    upload = site.upload(large)
    with pytest.raises(InvalidRequestError, match="bytes in all, but this piece reaches to"):
        upload.write(len(large.payload), b"x")
    upload.close()


def test_an_upload_that_ends_early_is_told_what_is_missing_and_kept(site: Site, large: pb.Observation) -> None:
    upload = site.upload(large, until=PIECE)
    with pytest.raises(InvalidRequestError, match=f"expected {len(CONTENT)} bytes of payload, but got {PIECE}"):
        upload.finish()
    upload.close()
    assert site.spooled() == [".held", ".part"]
    assert site.count() == 0


@pytest.mark.parametrize("encoded", [CONTENT, zstandard.compress(b"x" * 300_000)], ids=["identity", "zstd"])
def test_bytes_with_another_hash_are_rejected_and_let_go(site: Site, encoded: bytes) -> None:
    observation = make_observation(7, CONTENT if encoded is CONTENT else b"x" * 300_000)
    observation.header.sha256 = hashlib.sha256(b"others").digest()
    receipt = site.finish(observation)
    assert [each.reason for each in receipt.rejections] == [receipt_pb2.REJECTION_REASON_CHECKSUM_MISMATCH]
    assert held(receipt) == []
    assert (site.spooled(), site.count()) == ([], 0)


def test_a_frame_that_unpacks_to_more_than_its_header_says_is_rejected_before_it_is_unpacked(site: Site) -> None:
    bomb = zstandard.compress(b"\0" * 50_000_000)
    observation = make_observation(7, b"\0" * 40_000)
    observation.payload = bomb
    receipt = site.finish(observation)
    assert [each.reason for each in receipt.rejections] == [receipt_pb2.REJECTION_REASON_CHECKSUM_MISMATCH]
    assert "its header says 50000000" in receipt.rejections[0].detail


@pytest.mark.parametrize("spoil", ["cut", "garbage", "length"])
def test_a_broken_frame_is_rejected(site: Site, spoil: str) -> None:
    observation = make_observation(7, b"some words " * 50_000)
    if spoil == "cut":
        observation.payload = observation.payload[:-10]
    elif spoil == "garbage":
        observation.payload = b"not a frame at all, but longer than a header"
    else:
        observation.header.payload_bytes += 1
    receipt = site.finish(observation)
    assert [each.reason for each in receipt.rejections] == [receipt_pb2.REJECTION_REASON_CHECKSUM_MISMATCH]


def test_what_needs_no_payload_to_be_refused_is_refused_at_once(site: Site, large: pb.Observation) -> None:
    def first_reason(observation: pb.Observation) -> int:
        upload = site.uploads.open(observation.header, len(observation.payload))
        upload.close()
        assert upload.receipt is not None
        return upload.receipt.rejections[0].reason

    unknown, too_large, wrong, short, nothing = (pb.Observation.FromString(large.SerializeToString()) for _ in range(5))
    unknown.header.instrument = "never-registered"
    too_large.header.payload_bytes = 2**25
    wrong.header.payload_encoding = pb.PAYLOAD_ENCODING_UNSPECIFIED
    short.header.payload_bytes -= 1
    nothing.header.sequence = 0
    assert [first_reason(each) for each in (unknown, too_large, wrong, short, nothing)] == [
        receipt_pb2.REJECTION_REASON_UNKNOWN_INSTRUMENT,
        receipt_pb2.REJECTION_REASON_TOO_LARGE,
        receipt_pb2.REJECTION_REASON_INVALID,
        receipt_pb2.REJECTION_REASON_INVALID,
        receipt_pb2.REJECTION_REASON_INVALID,
    ]
    assert site.spooled() == []


def test_a_header_without_an_identity_is_an_error(site: Site, large: pb.Observation) -> None:
    large.header.epoch = "../../etc/passwd"
    with pytest.raises(InvalidObservationError):
        site.uploads.open(large.header, len(large.payload))


def test_what_is_held_already_has_its_receipt_before_a_byte_is_sent(site: Site, large: pb.Observation) -> None:
    site.ingest.submit(pb.Bundle(observations=[large])).result(10)
    upload = site.uploads.open(large.header, len(large.payload))
    assert upload.receipt is not None
    assert (held(upload.receipt), upload.receipt.duplicate_count) == ([(7, 7)], 1)
    with pytest.raises(InvalidRequestError, match="its receipt is given"):
        upload.write(0, b"x")
    upload.close()


def test_what_was_pruned_has_its_receipt_too(site: Site, large: pb.Observation) -> None:
    site.finish(large)
    ranges = receipt_pb2.Receipt(held_ranges=[receipt_pb2.SequenceRange(first_sequence=7, last_sequence=7)])
    content = ranges.SerializeToString()
    site.store.write(lambda connection: connection.execute(observations.delete())).result(10)
    site.store.write(lambda connection: connection.execute(epochs.update().values(pruned_ranges=content))).result(10)
    upload = site.uploads.open(large.header, len(large.payload))
    assert upload.receipt is not None
    assert held(upload.receipt) == [(7, 7)]


def test_other_bytes_under_the_same_identity_are_a_conflict(site: Site, large: pb.Observation) -> None:
    site.finish(large)
    upload = site.uploads.open(make_observation(7, b"others " * 9).header, 63)
    assert upload.receipt is not None
    assert [each.reason for each in upload.receipt.rejections] == [receipt_pb2.REJECTION_REASON_IDENTITY_CONFLICT]


def test_what_came_in_a_bundle_during_its_upload_is_a_duplicate_and_leaves_no_segment(
    site: Site, large: pb.Observation
) -> None:
    upload = site.upload(large)
    site.ingest.submit(pb.Bundle(observations=[large])).result(10)
    receipt = upload.finish()
    upload.close()
    assert (held(receipt), receipt.duplicate_count, site.count()) == ([(7, 7)], 1, 1)
    assert len(list((site.folder / "segments").iterdir())) == 1


def test_forgotten_uploads_are_removed_after_a_week_but_not_one_that_is_open(site: Site, large: pb.Observation) -> None:
    for observation in (large, make_observation(8, CONTENT), make_observation(9, CONTENT)):
        upload = site.upload(observation, until=PIECE)
        upload.sync()
        if observation is not large:
            upload.close()
    eight_days_ago = time.time() - 8 * 86_400
    parts = sorted((site.folder / "uploads").glob("*.part"))
    kept = site.uploads.open(make_observation(9, CONTENT).header, len(CONTENT))
    kept.close()
    for path in parts:
        os.utime(path, (eight_days_ago, eight_days_ago))
    os.utime(kept._spool.path)  # type: ignore[union-attr]
    site.uploads.forget_old()
    assert len(list((site.folder / "uploads").glob("*.part"))) == 2  # the open one, and the one of today


def test_a_full_disk_is_an_error_to_try_again_and_what_was_held_stays(tmp_path: Path) -> None:
    with small_disk(tmp_path / "small", 1024 * 1024) as small:
        store = open_store(tmp_path)
        ingest = Ingest(store, payload_bytes_max=2**24, on_stored=lambda: None)
        uploads = Uploads(small, store, ingest, payload_bytes_max=2**24)
        too_large = make_observation(1, os.urandom(2**20))
        with pytest.raises(TryAgainError, match="bytes are to come, but only"):
            uploads.open(too_large.header, len(too_large.payload))
        observation = make_observation(2, os.urandom(700 * 1024))
        upload = uploads.open(observation.header, len(observation.payload))
        upload.write(0, observation.payload[:PIECE])
        upload.sync()
        ballast = small / "ballast"
        ballast.write_bytes(b"\0" * 500 * 1024)  # somebody else fills the disk
        with pytest.raises(TryAgainError, match="No space left"):
            upload.write(PIECE, observation.payload[PIECE:])
        ballast.unlink()
        upload.write(PIECE, observation.payload[PIECE:])
        assert held(upload.finish()) == [(2, 2)]
        upload.close()
        ingest.close()
        store.close()


# What a killed process leaves is found by the next one. Each run uploads the same observation, and is killed by itself
# right after the step that it is told.
SCRIPT = """
    import os, signal, sys
    from pathlib import Path
    sys.path.insert(0, sys.argv[3])
    from server_support import make_observation
    from server.ingest.core import Ingest
    from server.storage.segment_folder import FolderWriter
    from server.storage.store import Store
    from server.ingest import upload_spool
    from server.ingest.uploads import Uploads

    folder, step = Path(sys.argv[1]), sys.argv[2]

    def killed_after(owner, name):
        whole = getattr(owner, name)
        def then_die(*arguments, **named):
            result = whole(*arguments, **named)
            os.kill(os.getpid(), signal.SIGKILL)
            return result
        setattr(owner, name, then_die)

    content = (folder / "content").read_bytes()
    observation = make_observation(7, content)
    store = Store(f"sqlite:///{folder / 'fieldpost.db'}", folder / "segments")
    ingest = Ingest(store, payload_bytes_max=2**20, on_stored=lambda: None)
    uploads = Uploads(folder / "uploads", store, ingest, payload_bytes_max=2**24)
    upload = uploads.open(observation.header, len(observation.payload))
    print("held", upload.held_bytes, flush=True)
    if step == "write":
        killed_after(upload_spool, "_write_all")
    elif step == "synchronise":
        killed_after(os, "fdatasync")
    elif step == "mark":
        killed_after(upload_spool, "_write_mark")
    elif step == "check":
        import server.ingest.uploads
        killed_after(server.ingest.uploads, "check_stream")
    elif step == "adopt":
        killed_after(FolderWriter, "adopt")
    elif step == "commit":
        ingest._on_stored = lambda: os.kill(os.getpid(), signal.SIGKILL)
    elif step == "receipt":
        killed_after(Uploads, "store_file")
    start = upload.held_bytes
    half = len(content) // 2
    if start < half:
        upload.write(start, observation.payload[start:half])
        upload.sync()
        start = half
    upload.write(start, observation.payload[start:])
    receipt = upload.finish()
    raise SystemExit("was not killed")
"""


@pytest.mark.parametrize("step", ["write", "synchronise", "mark", "check", "adopt", "commit", "receipt"])
def test_a_server_that_is_killed_at_any_step_loses_nothing_and_stores_once(
    tmp_path: Path, large: pb.Observation, step: str
) -> None:
    open_store(tmp_path).close()
    (tmp_path / "content").write_bytes(CONTENT)
    command = [sys.executable, "-c", textwrap.dedent(SCRIPT), str(tmp_path), step, str(Path(__file__).parent)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "held 0\n"), done.stderr

    site = Site(tmp_path)
    upload = site.upload(large)
    is_stored = step in ("commit", "receipt")
    assert (upload.receipt is not None) == is_stored
    resumed_from = {"mark": len(CONTENT) // 2, "check": len(CONTENT), "adopt": len(CONTENT)}.get(step, 0)
    if not is_stored:
        assert upload.held_bytes == resumed_from
    receipt = upload.receipt or upload.finish()
    upload.close()
    assert (held(receipt), receipt.duplicate_count) == ([(7, 7)], int(is_stored))
    assert (site.count(), site.read(7), site.spooled()) == (1, large, [])
    site.close()


def test_epochs_and_sequences_that_differ_have_files_of_their_own(site: Site) -> None:
    other_epoch = EPOCH[::-1]
    opened = [
        site.upload(make_observation(sequence, CONTENT, epoch=epoch), until=PIECE)
        for sequence, epoch in ((1, EPOCH), (2, EPOCH), (1, other_epoch))
    ]
    assert len(list((site.folder / "uploads").glob("*.part"))) == 3
    for upload in opened:
        upload.close()


def test_an_upload_that_ends_while_old_ones_are_looked_for_disturbs_nothing(site: Site) -> None:
    (site.folder / "uploads" / "gone.part").symlink_to(site.folder / "nowhere")  # listed, and then not there
    site.uploads.forget_old()
