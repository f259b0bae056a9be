"""Groups observations into bundles, and adds up what the receipts say of them. Sends nothing itself.

An observation so large that beginning it again would hurt goes by itself, in pieces.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeAlias

from fieldpost._uploading import FileObservation, Sendable, encoded_bytes
from fieldpost.ranges import RangeSet
from fieldpost.v1 import ingest_service_pb2, receipt_pb2
from fieldpost.v1 import observation_pb2 as pb

BUNDLE_MAX_COUNT = 64
"""Measured: 64 observations of 8 KB a message are 8 to 11 times as fast as one; beyond there is little to gain."""
BUNDLE_MAX_BYTES = 1024 * 1024
BUNDLES_IN_FLIGHT = 8
UPLOAD_FROM_BYTES = 8 * 1024 * 1024
"""A message that was cut begins anew, an upload goes on; and eight such messages may be on the way at once."""

Progress: TypeAlias = Callable[[int], None]
"""Told how many of the instruments' bytes have their answer, so far."""


class Bundler:
    """Collects observations until they make a bundle: of one station and epoch, ascending, and not too large.

    Args:
        max_count: At most so many observations in one.
        max_bytes: At most so many bytes in one; an observation that is larger makes one by itself.
    """

    def __init__(self, max_count: int = BUNDLE_MAX_COUNT, max_bytes: int = BUNDLE_MAX_BYTES) -> None:
        self._max_count = max_count
        self._max_bytes = max_bytes
        self._held: list[pb.Observation] = []
        self._held_bytes = 0

    def add(self, observation: Sendable) -> list[pb.Bundle | Sendable]:
        """Takes one more observation; returns what is complete now: bundles, and observations that go by themselves."""
        if isinstance(observation, FileObservation) or encoded_bytes(observation) >= UPLOAD_FROM_BYTES:
            return [*self.rest(), observation]
        size = observation.ByteSize()
        complete: list[pb.Bundle | Sendable] = []
        if self._held and (self._held_bytes + size > self._max_bytes or not _follows(self._held[-1], observation)):
            complete += self.rest()
        self._held.append(observation)
        self._held_bytes += size
        if len(self._held) >= self._max_count or self._held_bytes >= self._max_bytes:
            complete += self.rest()
        return complete

    def rest(self) -> list[pb.Bundle | Sendable]:
        """Returns what is held as a bundle; an empty list where nothing is."""
        held, self._held, self._held_bytes = self._held, [], 0
        return [pb.Bundle(observations=held)] if held else []


def _follows(before: pb.Observation, after: pb.Observation) -> bool:
    a, b = before.header, after.header
    return a.station == b.station and a.epoch == b.epoch and a.sequence < b.sequence


def send_request(bundle: pb.Bundle) -> ingest_service_pb2.SendRequest:
    """The request that carries a bundle."""
    return ingest_service_pb2.SendRequest(bundle=bundle)


@dataclass(frozen=True, slots=True)
class RefusedObservation:
    """One observation that the server refused.

    Attributes:
        station: Its station.
        epoch: Its epoch.
        sequence: Its sequence.
        reason: Why, for programs: a value of RejectionReason.
        detail: Why, for people.
    """

    station: str
    epoch: str
    sequence: int
    reason: receipt_pb2.RejectionReason.ValueType
    detail: str


@dataclass(frozen=True, slots=True)
class SendReport:
    """What became of everything that was sent.

    Attributes:
        sent_count: Observations sent.
        held_count: Of these, how many the server holds now on its disk.
        duplicate_count: Of those held, how many it had held before.
        refused: What it refused, and why; not held, and sending the same again cannot help until the reason is gone.
        undecided: What no receipt named, as (station, epoch) to sequences: send it again.
    """

    sent_count: int
    held_count: int
    duplicate_count: int
    refused: tuple[RefusedObservation, ...]
    undecided: dict[tuple[str, str], RangeSet]


class Tally:
    """Adds up what was sent, in order, and the receipts got, in the same order, to a SendReport.

    Args:
        progress: Told after each receipt, and now and then while a large observation is on its way.
    """

    def __init__(self, progress: Progress | None = None) -> None:
        self._progress = progress
        self._done_bytes = 0
        self._unanswered_bytes: deque[int] = deque()
        self._sent_count = 0
        self._sent: dict[tuple[str, str], RangeSet] = {}
        self._held: dict[tuple[str, str], RangeSet] = {}
        self._refused: dict[tuple[str, str, int], RefusedObservation] = {}
        self._duplicate_count = 0

    def add_sent(self, part: pb.Bundle | Sendable) -> None:
        """Counts a bundle, or an observation that goes by itself."""
        headers = [each.header for each in part.observations] if isinstance(part, pb.Bundle) else [part.header]
        for header in headers:
            self._sent.setdefault((header.station, header.epoch), RangeSet()).add(header.sequence)
        self._sent_count += len(headers)
        self._unanswered_bytes.append(sum(header.payload_bytes for header in headers))

    def note_upload(self, done_bytes: int) -> None:
        """Notes how much of the large observation that is on its way is held."""
        if self._progress is not None:
            self._progress(self._done_bytes + done_bytes)

    def add_receipt(self, receipt: receipt_pb2.Receipt) -> None:
        """Counts what a receipt says."""
        key = (receipt.station, receipt.epoch)
        held = self._held.setdefault(key, RangeSet())
        for each in receipt.held_ranges:
            held.add(each.first_sequence, each.last_sequence)
        for no in receipt.rejections:
            self._refused[*key, no.sequence] = RefusedObservation(*key, no.sequence, no.reason, no.detail)
        self._duplicate_count += receipt.duplicate_count
        self._done_bytes += self._unanswered_bytes.popleft()
        self.note_upload(0)

    def report(self) -> SendReport:
        """The sum so far."""
        held_count = 0
        undecided = {}
        for key, sent in self._sent.items():
            left = RangeSet(sent)
            # First what was refused: of a conflicting identity the server holds other bytes, not these.
            _discard(
                left, ((no.sequence, no.sequence) for no in self._refused.values() if (no.station, no.epoch) == key)
            )
            not_refused_count = len(left)
            _discard(left, self._held.get(key, ()))
            held_count += not_refused_count - len(left)
            if left:
                undecided[key] = left
        return SendReport(self._sent_count, held_count, self._duplicate_count, tuple(self._refused.values()), undecided)


def _discard(numbers: RangeSet, ranges: Iterable[tuple[int, int]]) -> None:
    for first, last in ranges:
        numbers.discard(first, last)
