"""Which observations of a bundle may be stored, and what a receipt says of the others. Pure: knows no database.

Two questions are asked of each observation: is it sound in itself (check_bundle), and does what the server holds
already allow it (judge).
"""

from __future__ import annotations

from dataclasses import dataclass

from fieldpost.errors import InvalidObservationError
from fieldpost.names import check_epoch, check_name
from fieldpost.payload import check_payloads
from fieldpost.ranges import RangeSet
from fieldpost.v1 import observation_pb2 as pb
from fieldpost.v1 import receipt_pb2
from server.instants import is_storable
from server.storage.segments import Place

SEQUENCE_MAX = 2**53
UNPACKED_BYTES_MAX = 128 * 1024 * 1024
"""So much of one bundle is unpacked and checked at a time."""
"""Nobody counts so far; a larger sequence is a broken station."""


@dataclass(frozen=True, slots=True)
class CheckedBundle:
    """A bundle with one identity, its observations checked each by itself."""

    station: str
    epoch: str
    sound: list[pb.Observation]
    rejections: list[tuple[str, receipt_pb2.Rejection]]
    """(instrument, rejection) of those that are not sound."""
    place: Place | None = None
    """Where the record of its one observation lies already, which then is here without its payload."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """What is to be done with a sound observation."""

    is_new: bool
    rejection: receipt_pb2.Rejection | None = None


STORE = Judgement(is_new=True)
DUPLICATE = Judgement(is_new=False)


def check_bundle(bundle: pb.Bundle, payload_bytes_max: int) -> CheckedBundle:
    """Checks everything that can be known from the bundle alone: names, numbers, length and SHA-256.

    Raises:
        InvalidObservationError: The bundle has no identity to write a receipt for: it is empty, its first header names
            no valid station or epoch, or it mixes several.
    """
    if not bundle.observations:
        raise InvalidObservationError("expected a bundle of at least one observation, but it is empty")
    first = bundle.observations[0].header
    station, epoch = check_name("station", first.station), check_epoch(first.epoch)
    checked = CheckedBundle(station, epoch, [], [])
    plausible: list[pb.Observation] = []
    unpacked_bytes = 0
    for observation in bundle.observations:
        header = observation.header
        unpacked_bytes += max(0, header.payload_bytes)
        if plausible and unpacked_bytes > UNPACKED_BYTES_MAX:
            break  # no receipt names the rest, so it comes again: 64 MB can unpack to many GB, and others wait
        if header.station != station or header.epoch != epoch:
            raise InvalidObservationError(
                f"expected observations of one station and epoch ({station}, {epoch}), "
                f"but sequence {header.sequence} is of ({header.station[:80]}, {header.epoch[:80]})",
                hint="send one bundle a station",
            )
        rejection = check_header(header, len(observation.payload), payload_bytes_max)
        if rejection is None:
            plausible.append(observation)
        else:
            checked.rejections.append((header.instrument[:63], rejection))
    for observation, error in zip(plausible, check_payloads(plausible), strict=True):
        if error is None:
            checked.sound.append(observation)
        else:
            rejection = reject(observation.header, receipt_pb2.REJECTION_REASON_CHECKSUM_MISMATCH, str(error))
            checked.rejections.append((observation.header.instrument, rejection))
    return checked


def check_header(
    header: pb.ObservationHeader, stored_bytes: int, payload_bytes_max: int
) -> receipt_pb2.Rejection | None:
    """What is wrong with a header by itself, its station and epoch set aside; None where nothing is."""
    if not 1 <= header.sequence <= SEQUENCE_MAX:
        return reject(
            header, receipt_pb2.REJECTION_REASON_INVALID, "expected a sequence from 1 upward, but got this one"
        )
    if not 0 <= header.payload_bytes <= payload_bytes_max or stored_bytes > payload_bytes_max:
        detail = f"expected a payload of at most {payload_bytes_max} bytes, but got {header.payload_bytes}"
        return reject(header, receipt_pb2.REJECTION_REASON_TOO_LARGE, detail)
    instants = {
        "measure": header.measure_time,
        "wall": header.capture_clock.wall_time,
        "corrected wall": header.corrected_wall_time,
    }
    for name, instant in instants.items():
        if not is_storable(instant):
            detail = f"expected a {name} time between the years 1678 and 2261, but got {instant.seconds} s since 1970"
            return reject(header, receipt_pb2.REJECTION_REASON_INVALID, detail)
    try:
        check_name("instrument", header.instrument)
    except InvalidObservationError as error:
        return reject(header, receipt_pb2.REJECTION_REASON_INVALID, str(error))
    return None


def judge(
    header: pb.ObservationHeader, *, is_registered: bool, held_sha256: bytes | None, is_pruned: bool = False
) -> Judgement:
    """Decides what becomes of a sound observation.

    Args:
        header: Its header.
        is_registered: Whether its instrument is in the registry.
        held_sha256: The SHA-256 that is held under the same identity; None where nothing is.
        is_pruned: Whether it was held once, and is in the archive alone now: promised again, as it was.
    """
    if is_pruned:
        return DUPLICATE
    if held_sha256 is not None:
        if held_sha256 == header.sha256:
            return DUPLICATE
        detail = f"other bytes are held under this identity: SHA-256 {held_sha256.hex()}, not {header.sha256.hex()}"
        return Judgement(False, reject(header, receipt_pb2.REJECTION_REASON_IDENTITY_CONFLICT, detail))
    if not is_registered:
        detail = (
            f"instrument {header.station}/{header.instrument} is not registered: "
            "add it to the server's stations file, then `fieldpost-server register FILE`"
        )
        return Judgement(False, reject(header, receipt_pb2.REJECTION_REASON_UNKNOWN_INSTRUMENT, detail))
    return STORE


def reject(
    header: pb.ObservationHeader, reason: receipt_pb2.RejectionReason.ValueType, detail: str
) -> receipt_pb2.Rejection:
    """A rejection of this observation."""
    return receipt_pb2.Rejection(sequence=header.sequence, reason=reason, detail=detail)


def write_receipt(
    bundle: CheckedBundle, held: RangeSet, rejections: list[receipt_pb2.Rejection], duplicate_count: int
) -> receipt_pb2.Receipt:
    """The receipt for a bundle after its commit."""
    return receipt_pb2.Receipt(
        station=bundle.station,
        epoch=bundle.epoch,
        held_ranges=[receipt_pb2.SequenceRange(first_sequence=first, last_sequence=last) for first, last in held],
        rejections=rejections,
        duplicate_count=duplicate_count,
    )
