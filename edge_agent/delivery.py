"""From the buffer to the server, and back to the ledger: carries out what the session decides. Knows no source.

Used by the agent's one thread.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Sequence

from edge_agent.alarms import Alarms
from edge_agent.buffer import Buffer
from edge_agent.clock import clock_sync
from edge_agent.clock_marks import ClockWait
from edge_agent.link.uplink import Uplink
from edge_agent.second_chance import SecondChance
from edge_agent.session import Session, SessionLimits
from edge_agent.session_events import (
    Action,
    AppendAgain,
    Appended,
    Connected,
    Disconnected,
    Event,
    KeepBack,
    MarkDelivered,
    MarkRefused,
    Published,
    RefusedObservation,
    ReplayAsked,
    SkipTo,
    TimePassed,
    Unreadable,
    receipt_event,
)
from edge_agent.settings import AgentSettings
from edge_agent.storage.records import Record
from edge_agent.upkeep import LEDGER_OBSERVATIONS, Upkeep
from edge_agent.wire import bundle_bytes
from fieldpost.errors import OfflineError
from fieldpost.names import observations_topic
from fieldpost.v1 import observation_pb2, receipt_pb2

logger = logging.getLogger(__name__)

SILENT_RESENDS = 2
"""So many resends in a row without any receipt are an alarm."""
CLOCK_LOOK_INTERVAL_S = 5.0

Range = tuple[int, int]


class Delivery:
    """What a station has sent, and what became of it.

    Args:
        settings: The station's settings.
        buffer: Its buffer.
        uplink: Its way to the server.
        upkeep: Told what was settled.
        alarms: Told what goes wrong on the way.
        append_again: Asks for a new sequence for the bytes of a refused observation.
    """

    def __init__(
        self,
        settings: AgentSettings,
        buffer: Buffer,
        uplink: Uplink,
        upkeep: Upkeep,
        alarms: Alarms,
        append_again: Callable[[RefusedObservation], None],
    ) -> None:
        self._settings = settings
        self._buffer = buffer
        self._uplink = uplink
        self._upkeep = upkeep
        self._alarms = alarms
        self._append_again = append_again
        self._session = Session(limits_of(settings), buffer.last_sequence, buffer.settled())
        self._second_chance = SecondChance()
        self._acknowledged_at_receipt = 0
        self._clock_wait = ClockWait(settings.clock_wait_s)
        self._clock_at_s = 0.0  # when the clock is looked at again
        self.broker_url = ""
        """Where the station is connected; empty while it is not."""
        first_waiting = buffer.first_waiting_for_time() if settings.clock_wait_s else None
        if first_waiting is not None:
            self._clock_wait.from_sequence = first_waiting
            self._tell(KeepBack(first_waiting))

    @property
    def backlog_count(self) -> int:
        """Observations for which no receipt has come."""
        return self._session.backlog_count

    @property
    def in_flight_count(self) -> int:
        """Observations published and not settled."""
        return self._session.in_flight_count

    @property
    def wake_at_s(self) -> float | None:
        """When there is something to do, on the monotonic clock; None where there is not."""
        is_waiting = self._clock_wait.from_sequence is not None
        wakes = [self._session.wake_at_s, self._clock_at_s if is_waiting else None]
        return min((at_s for at_s in wakes if at_s is not None), default=None)

    def apply(self, settings: AgentSettings) -> None:
        """Takes changed settings."""
        self._settings = settings
        self._session.limits = limits_of(settings)

    # --- what happens ---

    def note_link_up(self, broker_url: str) -> None:
        """The link is up, and receipts will be heard."""
        self.broker_url = broker_url
        self._acknowledged_at_receipt = self._uplink.acknowledged_count
        self._clock_wait.note_connected(time.monotonic())
        self._tell(Connected())
        self._second_chance.due_at_s = 0.0

    def note_link_down(self) -> None:
        """The link is down."""
        self.broker_url = ""
        self._tell(Disconnected())

    def note_appended(self, observations: Sequence[observation_pb2.Observation]) -> None:
        """The buffer holds these, in the order of sequences."""
        for observation in observations:
            self._buffer.clock_marks.note(observation.header.capture_clock)
            if self._clock_wait.note_captured(observation.header):
                self._tell(KeepBack(self._clock_wait.from_sequence))
        self._tell(Appended(self._buffer.last_sequence))

    def note_gone(self, ranges: Sequence[Range]) -> None:
        """The buffer does not hold these any more."""
        for first, last in ranges:
            self._tell(Unreadable(first, last))

    def take_receipt(self, receipt: receipt_pb2.Receipt) -> None:
        """What the server says that it holds, or refuses."""
        if (receipt.station, receipt.epoch) != (self._settings.station, self._buffer.epoch):
            logger.warning("receipt of another buffer", extra={"station": receipt.station, "epoch": receipt.epoch})
            return
        self._acknowledged_at_receipt = self._uplink.acknowledged_count
        self._alarms.set("receipts", "")
        self._tell(receipt_event(receipt))

    def send_again(self, ranges: Sequence[Range]) -> None:
        """Offers observations again that were delivered or refused, behind what is fresh."""
        if ranges:
            self._buffer.reopen(list(ranges))
            self._upkeep.note_settled(LEDGER_OBSERVATIONS)  # worth a write at once
            self._tell(ReplayAsked(tuple(ranges)))

    def work(self, now_s: float) -> None:
        """Sends what may be sent now, and looks whether anybody answers."""
        self._look_at_clock(now_s)
        self._tell(TimePassed())
        self._look_at_receipts()
        if self.broker_url:
            self.send_again(self._second_chance.choose(self._buffer.ledger, now_s))
        self._send_bundles()

    # --- sending ---

    def _send_bundles(self) -> None:
        while (send := self._session.next_bundle(time.monotonic())) is not None:
            found = self._buffer.read_records(
                send.first_sequence, send.last_sequence, send.max_bytes, send.first_max_bytes
            )
            for first, last in found.missing:
                self._tell(Unreadable(first, last))
            if found.missing:
                count = len(self._buffer.unreadable)
                text = f"{count} observations in the buffer are damaged or gone" if count else ""
                self._alarms.set("unreadable", text)
            elif not found.records:
                return  # the next one is larger than the room that is left
            if found.records and not self._publish_bundle(found.records):
                return

    def _publish_bundle(self, records: list[Record]) -> bool:
        bundle = bundle_bytes((self._header_content(record), record.payload) for record in records)
        try:
            self._uplink.publish(observations_topic(self._settings.station), bundle)
        except OfflineError:
            self._tell(Disconnected())
            return False
        self._tell(Published(tuple((record.header.sequence, len(record.payload)) for record in records)))
        return True

    def _header_content(self, record: Record) -> bytes:
        """The header as it is stored, or with its time corrected."""
        is_doubtful = record.header.capture_clock.clock_sync == observation_pb2.CLOCK_SYNC_UNSYNCHRONISED
        if is_doubtful and self._buffer.clock_marks.correct(record.header):
            return record.header.SerializeToString()
        return record.header_content

    # --- what the session wants done ---

    def _tell(self, event: Event) -> None:
        for action in self._session.handle(event, time.monotonic(), random.random()):
            self._act(action)

    def _act(self, action: Action) -> None:
        match action:
            case MarkDelivered(ranges):
                self._buffer.deliver(list(ranges))
                self._upkeep.note_settled(sum(last - first + 1 for first, last in ranges))
                self.send_again(self._second_chance.after_delivery(ranges, self._buffer.ledger))
            case MarkRefused(refused):
                self._buffer.refuse(refused.sequence, refused.reason, refused.detail)
                self._upkeep.note_settled(1)
                count = self._buffer.ledger.refused_count()
                self._alarms.set(
                    "refused", f"the server refused {count} observations, {refused.reason}: {refused.detail}"
                )
            case AppendAgain(refused):
                self._append_again(refused)
                logger.warning("sequence taken at the server", extra={"sequence": refused.sequence})
            case SkipTo(sequence):
                self._buffer.skip_to(sequence)
                self._upkeep.note_settled(1)
                logger.warning("sequences skipped that the server knows", extra={"last_sequence": sequence})

    # --- what is looked at from time to time ---

    def _look_at_clock(self, now_s: float) -> None:
        if self._clock_wait.from_sequence is None or now_s < self._clock_at_s:
            return
        self._clock_at_s = now_s + CLOCK_LOOK_INTERVAL_S
        is_synchronised = clock_sync() == observation_pb2.CLOCK_SYNC_SYNCHRONISED
        if self._clock_wait.pass_time(now_s, is_synchronised=is_synchronised):
            self._tell(KeepBack(None))

    def _look_at_receipts(self) -> None:
        """A topic that nobody may write to, or nobody reads, looks like a link that works: only receipts tell."""
        if self._session.stall_count < SILENT_RESENDS or not self.broker_url:
            return
        acknowledged_count = self._uplink.acknowledged_count - self._acknowledged_at_receipt
        if acknowledged_count:
            text = (
                f"{self.broker_url} acknowledges what the station sends ({acknowledged_count} messages), but no "
                "receipt comes from the server: is the server running, and may this station write to its topics there?"
            )
        else:
            text = (
                f"{self.broker_url} acknowledges nothing, and no receipt comes from the server: is the link too slow?"
            )
        self._alarms.set("receipts", text)


def limits_of(settings: AgentSettings) -> SessionLimits:
    """The bounds of the session."""
    return SessionLimits(
        window_observations=settings.window_observations,
        window_bytes=settings.window_bytes,
        bundle_observations=settings.bundle_observations,
        bundle_bytes=settings.bundle_bytes,
        resend_after_s=settings.resend_after_s,
        rate_limit_bytes_per_s=settings.rate_limit_bytes_per_s,
    )
