"""Outbox, bundles and tally: what is sent, without sending it."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldpost._outbox import Outbox, new_epoch
from fieldpost._sending import UPLOAD_FROM_BYTES, Bundler, Tally
from fieldpost._uploading import FileObservation, read_chunk
from fieldpost.errors import InvalidObservationError, InvalidRequestError
from fieldpost.payload import decode_checked
from fieldpost.v1 import observation_pb2 as pb
from fieldpost.v1 import receipt_pb2

EPOCH = "ab" * 16


def observation(sequence: int, size: int = 10, station: str = "station-1", epoch: str = EPOCH) -> pb.Observation:
    header = pb.ObservationHeader(station=station, epoch=epoch, instrument="i", sequence=sequence)
    return pb.Observation(header=header, payload=bytes(size))


def test_an_outbox_numbers_what_it_makes_and_says_what_it_is() -> None:
    outbox = Outbox("station-1", epoch=EPOCH, payload_format="vaisala-cl", clock_nanos=lambda: 5_000_000_007)
    first, second = outbox.number([("ceilometer", b"a" * 1000, "2025-06-01T12:00Z"), ("camera", b"b", None)])
    assert (first.header.sequence, second.header.sequence) == (1, 2)
    assert decode_checked(first) == b"a" * 1000
    assert first.header.payload_encoding == pb.PAYLOAD_ENCODING_ZSTD
    assert first.header.sha256 == hashlib.sha256(b"a" * 1000).digest()
    assert first.header.measure_time.ToDatetime(UTC) == datetime(2025, 6, 1, 12, tzinfo=UTC)
    assert not second.header.HasField("measure_time")
    assert first.header.capture_clock.wall_time.nanos == 7
    assert first.header.payload_format == "vaisala-cl"


def test_a_resumed_outbox_gives_the_same_bytes_the_same_identity() -> None:
    items = [("ceilometer", bytes([n]), None) for n in range(5)]
    whole = list(Outbox("station-1", epoch=EPOCH).number(items))
    resumed = list(Outbox("station-1", epoch=EPOCH, next_sequence=4).number(items[3:]))
    assert [each.header.sequence for each in resumed] == [each.header.sequence for each in whole[3:]]
    assert [each.header.sha256 for each in resumed] == [each.header.sha256 for each in whole[3:]]


def test_an_item_that_is_refused_takes_no_number() -> None:
    outbox = Outbox("station-1")
    with pytest.raises(InvalidObservationError, match="instrument name"):
        outbox.observation("Not A Name", b"x")
    with pytest.raises(InvalidRequestError, match="time zone"):
        outbox.observation("ceilometer", b"x", datetime(2025, 1, 1))
    assert outbox.observation("ceilometer", b"x").header.sequence == 1


def test_an_outbox_refuses_names_epochs_and_sequences_that_the_server_would_refuse() -> None:
    with pytest.raises(InvalidObservationError, match="station name"):
        Outbox("Station 1")
    with pytest.raises(InvalidObservationError, match="epoch"):
        Outbox("station-1", epoch="1")
    with pytest.raises(InvalidRequestError, match="next_sequence"):
        Outbox("station-1", next_sequence=0)


def test_two_epochs_are_never_the_same() -> None:
    assert len({new_epoch() for _ in range(100)}) == 100


@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(0, 300), st.sampled_from(["a", "b"])), max_size=60),
    st.integers(1, 5),
    st.integers(100, 600),
)
def test_bundles_hold_everything_in_order_and_keep_their_limits(
    parts: list[tuple[int, int, str]], max_count: int, max_bytes: int
) -> None:
    sent = [observation(sequence, size, station) for sequence, size, station in parts]
    bundler = Bundler(max_count, max_bytes)
    bundles = [bundle for each in sent for bundle in bundler.add(each)] + bundler.rest()
    assert [each for bundle in bundles for each in bundle.observations] == sent
    for bundle in bundles:
        headers = [each.header for each in bundle.observations]
        assert len({(header.station, header.epoch) for header in headers}) == 1
        assert all(a.sequence < b.sequence for a, b in pairwise(headers))
        assert 1 <= len(headers) <= max_count
        assert len(headers) == 1 or sum(each.ByteSize() for each in bundle.observations) <= max_bytes


def test_a_large_observation_goes_by_itself_and_the_order_is_kept() -> None:
    bundler = Bundler()
    small, large, next_small = observation(1), observation(2, UPLOAD_FROM_BYTES), observation(3)
    assert bundler.add(small) == []
    assert bundler.add(large) == [pb.Bundle(observations=[small]), large]
    assert bundler.add(next_small) == []
    assert bundler.rest() == [pb.Bundle(observations=[next_small])]


def test_a_large_file_is_hashed_and_left_where_it_is(tmp_path: Path) -> None:
    path = tmp_path / "volume.raw"
    content = bytes(UPLOAD_FROM_BYTES)
    path.write_bytes(content)
    outbox = Outbox("station-1", epoch=EPOCH)
    large = outbox.file("ct", path)
    assert isinstance(large, FileObservation) and large.path == path
    assert large.header.sha256 == hashlib.sha256(content).digest()
    assert (large.header.payload_bytes, large.header.sequence, large.header.origin) == (len(content), 1, "volume.raw")
    path.write_bytes(b"short")
    small = outbox.file("ct", path)
    assert isinstance(small, pb.Observation) and small.header.sequence == 2 and small.payload == b"short"
    with pytest.raises(InvalidObservationError, match="but there are 5"):
        read_chunk(large, 5)


def test_progress_is_told_in_bytes_of_the_instruments() -> None:
    told: list[int] = []
    tally = Tally(told.append)
    for sequence, size in ((1, 10), (2, 1000)):
        part = observation(sequence, size)
        part.header.payload_bytes = size
        tally.add_sent(pb.Bundle(observations=[part]) if size == 10 else part)
    tally.add_receipt(receipt((1, 1)))
    tally.note_upload(500)
    tally.add_receipt(receipt((2, 2)))
    assert told == [10, 510, 1010]


def receipt(*ranges: tuple[int, int], refused: tuple[int, ...] = (), duplicates: int = 0) -> receipt_pb2.Receipt:
    return receipt_pb2.Receipt(
        station="station-1",
        epoch=EPOCH,
        held_ranges=[receipt_pb2.SequenceRange(first_sequence=a, last_sequence=b) for a, b in ranges],
        rejections=[
            receipt_pb2.Rejection(sequence=n, reason=receipt_pb2.REJECTION_REASON_INVALID, detail="why")
            for n in refused
        ],
        duplicate_count=duplicates,
    )


def test_a_report_counts_only_what_was_sent_however_much_a_receipt_promises() -> None:
    tally = Tally()
    tally.add_sent(pb.Bundle(observations=[observation(n) for n in (5, 6, 7, 8)]))
    tally.add_receipt(receipt((1, 6), refused=(7,), duplicates=1))
    report = tally.report()
    assert (report.sent_count, report.held_count, report.duplicate_count) == (4, 2, 1)
    assert [(no.sequence, no.detail) for no in report.refused] == [(7, "why")]
    assert {key: list(ranges) for key, ranges in report.undecided.items()} == {("station-1", EPOCH): [(8, 8)]}


def test_an_identity_that_is_held_with_other_bytes_counts_as_refused_not_as_held() -> None:
    tally = Tally()
    tally.add_sent(pb.Bundle(observations=[observation(1), observation(2)]))
    tally.add_receipt(receipt((1, 2), refused=(2,)))
    assert tally.report().held_count == 1
    assert tally.report().undecided == {}
