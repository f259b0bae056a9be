"""Which observations are stored, and what a receipt says of the others: no database needed."""

from __future__ import annotations

import hashlib

import pytest
import zstandard
from server_support import make_bundle, make_observation

from fieldpost.errors import InvalidObservationError
from fieldpost.v1 import observation_pb2 as pb
from fieldpost.v1 import receipt_pb2
from server.ingest.admission import SEQUENCE_MAX, check_bundle, judge

MAX = 1024 * 1024


def reasons(bundle: pb.Bundle) -> list[tuple[int, int]]:
    return [(rejection.sequence, rejection.reason) for _, rejection in check_bundle(bundle, MAX).rejections]


def test_a_sound_bundle_is_taken_whole() -> None:
    checked = check_bundle(make_bundle(1, 2, 3), MAX)
    assert [each.header.sequence for each in checked.sound] == [1, 2, 3]
    assert checked.rejections == []


def test_a_flipped_bit_in_one_payload_is_refused_and_the_rest_is_taken() -> None:
    bundle = make_bundle(1, 2, 3)
    payload = bytearray(bundle.observations[1].payload)
    payload[len(payload) // 2] ^= 1
    bundle.observations[1].payload = bytes(payload)
    assert reasons(bundle) == [(2, receipt_pb2.REJECTION_REASON_CHECKSUM_MISMATCH)]
    assert [each.header.sequence for each in check_bundle(bundle, MAX).sound] == [1, 3]


def test_a_payload_above_the_limit_is_refused_with_the_limit_in_the_reason() -> None:
    bundle = pb.Bundle(observations=[make_observation(1, bytes(MAX + 1))])
    ((_, rejection),) = check_bundle(bundle, MAX).rejections
    assert rejection.reason == receipt_pb2.REJECTION_REASON_TOO_LARGE
    assert str(MAX) in rejection.detail


def test_a_compression_bomb_is_refused_before_it_is_unpacked() -> None:
    bomb = zstandard.ZstdCompressor().compress(bytes(1024 * MAX))
    observation = make_observation(1)
    observation.payload = bomb
    observation.header.payload_encoding = pb.PAYLOAD_ENCODING_ZSTD
    assert reasons(pb.Bundle(observations=[observation])) == [(1, receipt_pb2.REJECTION_REASON_CHECKSUM_MISMATCH)]


def test_of_a_bundle_that_unpacks_to_more_than_others_can_wait_for_the_rest_is_left_undecided() -> None:
    content = bytes(32 * 1024 * 1024)
    bundle = pb.Bundle(observations=[make_observation(sequence, content) for sequence in range(1, 7)])
    assert bundle.ByteSize() < 100_000
    checked = check_bundle(bundle, 64 * 1024 * 1024)
    assert [each.header.sequence for each in checked.sound] == [1, 2, 3, 4]
    assert checked.rejections == []  # 5 and 6 come again: no receipt has named them


def test_a_frame_without_content_size_is_refused() -> None:
    observation = make_observation(1, b"x" * 1000)
    observation.payload = zstandard.ZstdCompressor(write_content_size=False).compress(b"x" * 1000)
    assert reasons(pb.Bundle(observations=[observation])) == [(1, receipt_pb2.REJECTION_REASON_CHECKSUM_MISMATCH)]


@pytest.mark.parametrize("sequence", [0, -1, SEQUENCE_MAX + 1])
def test_a_sequence_that_cannot_come_from_counting_is_refused(sequence: int) -> None:
    observation = make_observation(1)
    observation.header.sequence = sequence
    assert reasons(pb.Bundle(observations=[observation])) == [(sequence, receipt_pb2.REJECTION_REASON_INVALID)]


@pytest.mark.parametrize("name", ["", "CL51", "a/b", "+", "-a", "a" * 64])
def test_an_instrument_name_that_breaks_the_rule_is_refused(name: str) -> None:
    bundle = make_bundle(1, instrument=name)
    assert reasons(bundle) == [(1, receipt_pb2.REJECTION_REASON_INVALID)]


@pytest.mark.parametrize(("seconds", "nanos"), [(10**15, 0), (-(10**15), 0), (0, -1), (0, 10**9)])
@pytest.mark.parametrize("field", ["measure_time", "capture_clock"])
def test_a_time_that_64_bits_of_nanoseconds_cannot_hold_is_refused(field: str, seconds: int, nanos: int) -> None:
    bundle = make_bundle(1, 2)
    header = bundle.observations[0].header
    instant = header.measure_time if field == "measure_time" else header.capture_clock.wall_time
    instant.seconds, instant.nanos = seconds, nanos
    assert reasons(bundle) == [(1, receipt_pb2.REJECTION_REASON_INVALID)]


def test_an_empty_bundle_has_no_identity() -> None:
    with pytest.raises(InvalidObservationError, match="empty"):
        check_bundle(pb.Bundle(), MAX)


def test_a_bundle_of_two_stations_has_no_identity() -> None:
    bundle = pb.Bundle(observations=[make_observation(1), make_observation(2, station="payerne")])
    with pytest.raises(InvalidObservationError, match="payerne"):
        check_bundle(bundle, MAX)


def test_the_same_bytes_under_the_same_identity_are_a_duplicate() -> None:
    header = make_observation(1).header
    judgement = judge(header, is_registered=True, held_sha256=header.sha256)
    assert not judgement.is_new
    assert judgement.rejection is None


def test_other_bytes_under_the_same_identity_are_refused_with_both_hashes() -> None:
    header = make_observation(1).header
    held = hashlib.sha256(b"something else").digest()
    rejection = judge(header, is_registered=True, held_sha256=held).rejection
    assert rejection is not None
    assert rejection.reason == receipt_pb2.REJECTION_REASON_IDENTITY_CONFLICT
    assert held.hex() in rejection.detail
    assert header.sha256.hex() in rejection.detail


def test_an_unregistered_instrument_is_refused_with_what_to_do() -> None:
    rejection = judge(make_observation(1).header, is_registered=False, held_sha256=None).rejection
    assert rejection is not None
    assert rejection.reason == receipt_pb2.REJECTION_REASON_UNKNOWN_INSTRUMENT
    assert "lindenberg/cl51" in rejection.detail
    assert "register" in rejection.detail
