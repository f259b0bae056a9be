"""Takes bundles, stores what is new, and promises it with a receipt. The same core for MQTT and gRPC.

The order is what everything rests on: payloads to the segment, headers to the database, both to the disk, and only
then the receipt. What was held before is counted and promised again; the same identity with other bytes is refused.
Knows nothing of MQTT or gRPC.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field

from fieldpost.errors import FieldpostError, OverloadedError, TryAgainError
from fieldpost.names import check_epoch, check_name
from fieldpost.v1 import capacity_service_pb2, receipt_pb2
from fieldpost.v1 import observation_pb2 as pb
from server.ingest.admission import CheckedBundle, check_bundle
from server.ingest.bounded import BoundedQueue
from server.ingest.ledger import BundleOutcome, InstrumentCounts, Ledger
from server.ingest.recent_count import RecentCount
from server.ingest.repeats import Repeats
from server.storage.segments import Place
from server.storage.store import Store
from server.telemetry.observer import Observer

logger = logging.getLogger(__name__)

GROUP_OBSERVATIONS_MAX = 512
"""Above this a commit is long enough: a larger one costs latency and saves nothing."""
GROUP_BYTES_MAX = 32 * 1024 * 1024
"""Likewise: a few groups are in memory at once, and a larger one stands long before the disk or an object store."""
QUEUED_BUNDLES_MAX = 256
QUEUED_BYTES_MAX = 128 * 1024 * 1024
OBSERVATION_BYTES = 512
"""About what an observation takes in memory beside its bytes: many tiny ones count for what they are."""
NAMES_MAX = 10_000
"""Beyond so many instruments one that nothing is held of, and that may not even exist, is not counted by its name."""
COMMITS_MAX = 2
"""One commit may wait for the disk while the next one's checksums are computed."""


@dataclass(frozen=True, slots=True)
class _Submitted:
    """A bundle, and who waits for its receipt; without a bundle: the end."""

    bundle: pb.Bundle | None
    memory_bytes: int = 0
    future: Future[receipt_pb2.Receipt] = field(default_factory=Future)
    arrival_unix_nanos: int = field(default_factory=time.time_ns)


@dataclass(slots=True)
class _Group:
    """The bundles of one commit, and who waits for them."""

    bundles: list[CheckedBundle] = field(default_factory=list)
    futures: list[Future[receipt_pb2.Receipt]] = field(default_factory=list)
    arrivals_unix_nanos: list[int] = field(default_factory=list)
    observation_count: int = 0
    memory_bytes: int = 0


class Ingest:
    """The ingest core.

    Args:
        store: Where observations go.
        payload_bytes_max: Larger observations are refused.
        on_stored: Called from the writer's thread after a commit that stored something; must return at once.
        observer: Told of each bundle that is on the disk; None where nobody looks.
    """

    def __init__(
        self,
        store: Store,
        *,
        payload_bytes_max: int,
        on_stored: Callable[[], None],
        observer: Observer | None = None,
    ) -> None:
        self._observer = observer
        self._store = store
        self._payload_bytes_max = payload_bytes_max
        self._on_stored = on_stored
        self._ledger = Ledger(store.segments)
        self._queue: BoundedQueue[_Submitted] = BoundedQueue(QUEUED_BUNDLES_MAX, QUEUED_BYTES_MAX)
        self._commits_free = threading.Semaphore(COMMITS_MAX)
        self._repeats = Repeats()
        self.counts: dict[tuple[str, str], InstrumentCounts] = {}
        """By (station, instrument), since the server started."""
        self._total = InstrumentCounts()
        self._lock = threading.Lock()  # of the figures below
        self._waiting_count = self._waiting_bytes = 0
        self._last_minute = RecentCount(60)
        self._thread = threading.Thread(target=self._run, name="ingest", daemon=True)
        self._thread.start()

    def submit(self, bundle: pb.Bundle, *, timeout_s: float = 10.0) -> Future[receipt_pb2.Receipt]:
        """Takes a bundle. Waits while the queue is full: that is the back-pressure.

        Returns:
            A future with the receipt, once what it promises is on the disk. It raises InvalidObservationError where
            the bundle has no identity to write a receipt for, and TryAgainError where the disk refused.

        Raises:
            OverloadedError: The queue stayed full for timeout_s.
        """
        size_bytes = bundle.ByteSize()
        submitted = _Submitted(bundle, size_bytes + OBSERVATION_BYTES * len(bundle.observations))
        submitted.future.set_running_or_notify_cancel()  # whoever waits may give up; the writer goes on undisturbed
        if not self._queue.put(submitted, submitted.memory_bytes, timeout_s):
            raise OverloadedError(
                f"the queue before the disk is full, and took nothing in {timeout_s:g} s",
                hint="send again later; what has no receipt is not held",
            )
        self._wait(1, size_bytes)
        submitted.future.add_done_callback(lambda _: self._wait(-1, -size_bytes))
        return submitted.future

    def submit_record(self, header: pb.ObservationHeader, place: Place) -> Future[receipt_pb2.Receipt]:
        """Takes an observation whose record lies in a segment already, durable, its payload checked by the caller.

        Returns:
            As submit() does. Where the receipt calls it a duplicate or rejects it, no row points to the record.

        Raises:
            InvalidObservationError: Its station or epoch is none.
        """
        station, epoch = check_name("station", header.station), check_epoch(header.epoch)
        checked = CheckedBundle(station, epoch, [pb.Observation(header=header)], [], place)
        future: Future[receipt_pb2.Receipt] = Future()
        self._commit(_Group([checked], [future], [time.time_ns()], 1))
        return future

    def load(self) -> capacity_service_pb2.IngestLoad:
        """What comes in, and what waits."""
        with self._lock:
            return capacity_service_pb2.IngestLoad(
                stored_count=self._total.stored,
                duplicate_count=self._total.duplicates,
                rejected_count=self._total.rejected,
                last_minute_count=self._last_minute.total(time.monotonic()),
                waiting_bundle_count=self._waiting_count,
                waiting_bytes=self._waiting_bytes,
            )

    def _wait(self, bundle_count: int, size_bytes: int) -> None:
        with self._lock:
            self._waiting_count += bundle_count
            self._waiting_bytes += size_bytes

    def close(self) -> None:
        """Takes nothing more, and returns when all that was taken has its receipt."""
        self._queue.put(_Submitted(None), 0, threading.TIMEOUT_MAX)
        self._thread.join()
        for _ in range(COMMITS_MAX):
            self._commits_free.acquire()

    def _run(self) -> None:
        is_open = True
        while is_open:
            group = _Group()
            submitted = self._queue.take(wait=True)
            while submitted is not None:
                if submitted.bundle is None:
                    is_open = False
                    break
                self._check_into(group, submitted.bundle, submitted)
                if group.observation_count >= GROUP_OBSERVATIONS_MAX or group.memory_bytes >= GROUP_BYTES_MAX:
                    break
                submitted = self._queue.take(wait=False)
            if group.bundles:
                self._commit(group)

    def _check_into(self, group: _Group, bundle: pb.Bundle, submitted: _Submitted) -> None:
        try:
            checked = check_bundle(bundle, self._payload_bytes_max)
        except Exception as error:  # whatever a bundle can break concerns its sender, and nobody who waits behind it
            submitted.future.set_exception(error)
            return
        group.bundles.append(checked)
        group.futures.append(submitted.future)
        group.arrivals_unix_nanos.append(submitted.arrival_unix_nanos)
        group.observation_count += len(bundle.observations)
        group.memory_bytes += submitted.memory_bytes

    def _commit(self, group: _Group) -> None:
        self._commits_free.acquire()
        written = self._store.write(lambda connection: self._ledger.write(connection, group.bundles))
        written.add_done_callback(lambda done: self._finish(group, done))

    def _finish(self, group: _Group, done: Future[list[BundleOutcome]]) -> None:
        """Runs in the writer's thread, after the commit and before the next."""
        self._commits_free.release()
        error = done.exception()
        if error is not None:
            if not isinstance(error, FieldpostError):  # two servers that stored the same at once, for example
                refusal = TryAgainError(f"the group was not stored: {error}", hint="send what has no receipt again")
                refusal.__cause__, error = error, refusal
            for future in group.futures:
                future.set_exception(error)
            return
        for bundle, outcome in zip(group.bundles, done.result(), strict=True):
            self._count(bundle, outcome)
        stored_count = sum(each.stored for outcome in done.result() for each in outcome.counts.values())
        with self._lock:
            self._last_minute.add(stored_count, time.monotonic())
        if stored_count:
            self._on_stored()
        for future, outcome in zip(group.futures, done.result(), strict=True):
            future.set_result(outcome.receipt)
        if self._observer is not None:
            new = (_new_of(*each) for each in zip(group.bundles, done.result(), strict=True))
            self._observer.note_stored(new, group.arrivals_unix_nanos)

    def _count(self, bundle: CheckedBundle, outcome: BundleOutcome) -> None:
        for instrument, now in outcome.counts.items():
            key = bundle.station, instrument
            if key not in self.counts and (now.stored or now.duplicates or len(self.counts) < NAMES_MAX):
                self.counts[key] = InstrumentCounts()
            for total in filter(None, (self._total, self.counts.get(key))):
                total.stored += now.stored
                total.duplicates += now.duplicates
                total.rejected += now.rejected
        self._log_refusals(bundle, outcome.receipt)

    def _log_refusals(self, bundle: CheckedBundle, receipt: receipt_pb2.Receipt) -> None:
        """Each kind of refusal of a station now and then: an instrument that nobody registered writes for years."""
        for reason, count in Counter(each.reason for each in receipt.rejections).items():
            total = self._repeats.note((bundle.station, reason), count, time.monotonic())
            if total:
                first = next(each for each in receipt.rejections if each.reason == reason)
                logger.warning(
                    "observations refused",
                    extra={
                        "station": bundle.station,
                        "epoch": bundle.epoch,
                        "sequence": first.sequence,
                        "reason": receipt_pb2.RejectionReason.Name(reason),
                        "detail": first.detail,
                        "refused_count": total,
                    },
                )


def _new_of(bundle: CheckedBundle, outcome: BundleOutcome) -> Iterator[pb.Observation]:
    """The observations of a bundle that were stored; none where some of it was held already, since it is a resend.

    One by one, so that it costs nothing where nobody traces them.
    """
    if not outcome.receipt.duplicate_count:
        refused = {each.sequence for each in outcome.receipt.rejections}
        yield from (each for each in bundle.sound if each.header.sequence not in refused)
