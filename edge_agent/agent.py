"""The station's main loop: one queue, one closed set of events, one thread that owns buffer, session and publishing.

Sources and the uplink run in threads of their own and put events into the queue; nothing else is shared. What is
decided elsewhere (session, commands, retention) is only carried out here.
"""

from __future__ import annotations

import importlib.metadata
import logging
import queue
import random
import shutil
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from edge_agent.alarms import Alarms
from edge_agent.buffer import Buffer
from edge_agent.commands import CommandBook
from edge_agent.intake import Intake
from edge_agent.report import InstrumentReport, Report, to_json, to_status
from edge_agent.second_chance import SecondChance
from edge_agent.session import Session, SessionLimits
from edge_agent.session_events import (
    Action,
    AppendAgain,
    Appended,
    Connected,
    Disconnected,
    Event,
    MarkDelivered,
    MarkRefused,
    Published,
    ReplayAsked,
    SkipTo,
    TimePassed,
    Unreadable,
    receipt_event,
)
from edge_agent.settings import AgentSettings
from edge_agent.source_threads import Captured, Quarantined, SourceAlarm, SourceEnded, SourceThread
from edge_agent.sources.source import Source
from edge_agent.storage.durable import replace_file
from edge_agent.storage.retention import RetentionPolicy
from edge_agent.upkeep import LEDGER_OBSERVATIONS, Upkeep
from edge_agent.uplink import LinkDown, LinkUp, MessageCame, Uplink
from fieldpost.errors import FieldpostError, OfflineError
from fieldpost.names import commands_topic, observations_topic, receipts_topic, results_topic, status_topic
from fieldpost.v1 import command_pb2, observation_pb2, receipt_pb2

logger = logging.getLogger(__name__)

STATUS_FILE = "status.json"
STATUS_FILE_INTERVAL_S = 30.0  # and at every change of alarms: an SD card counts its writes
STOP_TIMEOUT_S = 5.0
EVENTS_AT_ONCE = 256


@dataclass(frozen=True, slots=True)
class StopAsked:
    """Somebody wants the agent to end."""


AgentEvent = Captured | Quarantined | SourceAlarm | SourceEnded | LinkUp | LinkDown | MessageCame | StopAsked


class Agent:
    """One station at work.

    Args:
        settings: Its settings.
        buffer: Its buffer, open; the agent closes it.
        uplink: Its way to the server.
        sources: Its instruments.
    """

    def __init__(self, settings: AgentSettings, buffer: Buffer, uplink: Uplink, sources: Sequence[Source]) -> None:
        self._settings = settings
        self._buffer = buffer
        self._uplink = uplink
        self._events: queue.SimpleQueue[AgentEvent] = queue.SimpleQueue()
        self._stop_sources = threading.Event()
        self._threads = [SourceThread(s, self._events.put, buffer.quarantine, self._stop_sources) for s in sources]
        self._running = {source.instrument for source in sources}
        self._finite = {source.instrument for source in sources if source.is_finite}
        self._session = Session(_limits(settings), buffer.last_sequence, buffer.settled())
        self._commands = CommandBook()
        self._alarms = Alarms()
        self._intake = Intake(buffer, self._alarms)
        self._intake.instruments = {name: InstrumentReport(name) for name in sorted(self._running)}
        self._software_version = importlib.metadata.version("fieldpost")
        self._broker_url = ""
        self._is_stopping = False
        self._command_count = 0
        self._quarantined_count = buffer.quarantine.count()
        self._upkeep = Upkeep(buffer, self._alarms, RetentionPolicy(settings.retention_days))
        self._second_chance = SecondChance()
        # When each is due next, on the monotonic clock.
        self._report_at_s = self._status_file_at_s = 0.0

    def stop(self) -> None:
        """Asks the agent to end cleanly. Safe in a signal handler."""
        self._events.put(StopAsked())

    def run(self, *, exit_when_delivered: bool = False) -> None:
        """Works until stop is called.

        Args:
            exit_when_delivered: Ends also once every finite source is done and everything is receipted or refused.

        Raises:
            BrokenStateError: The disk is broken; the sources keep what is not on it.
        """
        facts = {"epoch": self._buffer.epoch, "last_sequence": self._buffer.last_sequence}
        logger.info("agent started", extra={"station": self._settings.station, **facts})
        try:
            self._uplink.start(self._events.put)
            for thread in self._threads:
                thread.start()
            while not self._is_stopping and not (exit_when_delivered and self._is_everything_delivered()):
                self._turn()
            self._stop_all_sources()
        finally:
            self._end()

    # --- the loop ---

    def _turn(self) -> None:
        for event in self._take_events(self._wait_s()):
            self._handle(event)
        self._tell_session(TimePassed())
        self._write_captures()
        self._send_bundles()
        self._keep_house(time.monotonic())

    def _take_events(self, wait_s: float) -> list[AgentEvent]:
        """The next event and those that wait behind it; none where none came in time."""
        events: list[AgentEvent] = []
        try:
            events.append(self._events.get(timeout=wait_s))
            while len(events) < EVENTS_AT_ONCE:
                events.append(self._events.get_nowait())
        except queue.Empty:
            pass
        return events

    def _wait_s(self) -> float:
        wakes = [self._report_at_s, self._status_file_at_s, self._upkeep.wake_at_s]
        wakes += [at_s for at_s in (self._intake.wake_at_s, self._session.wake_at_s) if at_s is not None]
        return max(0.0, min(wakes) - time.monotonic())

    def _handle(self, event: AgentEvent) -> None:
        match event:
            case Captured():
                self._intake.add(event)
            case Quarantined(instrument, is_new):
                self._note_quarantined(instrument, is_new)
            case SourceAlarm(instrument, text):
                self._alarms.set(f"source {instrument}", f"{instrument}: {text}" if text else "")
            case SourceEnded(instrument):
                self._running.discard(instrument)
                logger.info("source ended", extra={"instrument": instrument})
            case LinkUp(broker_url):
                self._broker_url = broker_url
                self._report_at_s = 0.0
                self._alarms.set("link", "")
                logger.info("connected", extra={"broker_url": broker_url, "backlog_count": self._session.backlog_count})
                self._tell_session(Connected())
                self._second_chance.due_at_s = 0.0
            case LinkDown(broker_url, reason):
                self._broker_url = ""
                self._alarms.set("link", f"no connection to {broker_url}: {reason}")
                self._tell_session(Disconnected())
            case MessageCame(topic, payload):
                self._take_message(topic, payload)
            case StopAsked():
                self._is_stopping = True

    def _note_quarantined(self, instrument: str, is_new: bool) -> None:
        self._intake.instruments[instrument].quarantined_count += 1
        self._quarantined_count += is_new
        folder = self._buffer.quarantine.folder
        self._alarms.set("quarantine", f"{self._quarantined_count} inputs could not be framed: see {folder}")

    # --- observations in and out ---

    def _write_captures(self) -> None:
        if self._intake.write(time.monotonic()):
            self._tell_session(Appended(self._buffer.last_sequence))

    def _send_bundles(self) -> None:
        while (send := self._session.next_bundle()) is not None:
            found = self._buffer.read(send.first_sequence, send.last_sequence, send.max_bytes, send.first_max_bytes)
            for first, last in found.missing:
                self._tell_session(Unreadable(first, last))
            if found.missing:
                count = len(self._buffer.unreadable)
                self._alarms.set("unreadable", f"{count} observations in the buffer are damaged or gone")
            elif not found.observations:
                return  # the next one is larger than the room that is left
            if found.observations and not self._publish_bundle(found.observations):
                return

    def _publish_bundle(self, observations: list[observation_pb2.Observation]) -> bool:
        bundle = observation_pb2.Bundle(observations=observations)
        try:
            self._uplink.publish(observations_topic(self._settings.station), bundle.SerializeToString())
        except OfflineError:
            self._tell_session(Disconnected())
            return False
        self._tell_session(Published(tuple((o.header.sequence, len(o.payload)) for o in observations)))
        return True

    def _tell_session(self, event: Event) -> None:
        for action in self._session.handle(event, time.monotonic(), random.random()):
            self._act(action)

    def _act(self, action: Action) -> None:
        match action:
            case MarkDelivered(ranges):
                self._buffer.deliver(list(ranges))
                self._upkeep.note_settled(sum(last - first + 1 for first, last in ranges))
                self._offer_again(self._second_chance.after_delivery(ranges, self._buffer.ledger))
            case MarkRefused(refused):
                self._buffer.refuse(refused.sequence, refused.reason, refused.detail)
                self._upkeep.note_settled(1)
                count = self._buffer.ledger.refused_count()
                self._alarms.set(
                    "refused", f"the server refused {count} observations, {refused.reason}: {refused.detail}"
                )
            case AppendAgain(refused):
                self._intake.add_again(refused.sequence, refused.reason, refused.detail)
                logger.warning("sequence taken at the server", extra={"sequence": refused.sequence})
            case SkipTo(sequence):
                self._buffer.skip_to(sequence)
                self._upkeep.note_settled(1)
                logger.warning("sequences skipped that the server knows", extra={"last_sequence": sequence})

    # --- what the server says ---

    def _take_message(self, topic: str, payload: bytes) -> None:
        try:
            if topic == receipts_topic(self._settings.station):
                self._take_receipt(receipt_pb2.Receipt.FromString(payload))
            elif topic == commands_topic(self._settings.station):
                self._take_command(command_pb2.Command.FromString(payload))
        except DecodeError as error:
            self._alarms.set("message", f"expected a message of the server on {topic}, but got {error}")

    def _take_receipt(self, receipt: receipt_pb2.Receipt) -> None:
        if (receipt.station, receipt.epoch) == (self._settings.station, self._buffer.epoch):
            self._tell_session(receipt_event(receipt))
        else:
            logger.warning("receipt of another buffer", extra={"station": receipt.station, "epoch": receipt.epoch})

    def _take_command(self, command: command_pb2.Command) -> None:
        decision = self._commands.decide(command, self._buffer.epoch, self._buffer.held())
        self._command_count += 1
        self._offer_again(list(decision.replay_ranges))
        if decision.is_report_wanted:
            self._report_at_s = 0.0
        logger.info("command", extra={"command_id": command.command_id, "is_accepted": decision.result.is_accepted})
        self._publish(results_topic(self._settings.station), decision.result.SerializeToString())

    def _offer_again(self, ranges: list[tuple[int, int]]) -> None:
        if ranges:
            self._buffer.reopen(ranges)
            self._upkeep.note_settled(LEDGER_OBSERVATIONS)  # worth a write at once
            self._tell_session(ReplayAsked(tuple(ranges)))

    # --- what is done from time to time ---

    def _keep_house(self, now_s: float) -> None:
        self._upkeep.work(now_s, time.time())
        if self._broker_url:
            self._offer_again(self._second_chance.choose(self._buffer.ledger, now_s))
        if self._alarms.is_changed or now_s >= self._report_at_s:
            self._report_at_s = now_s + self._settings.status_interval_s
            self._status_file_at_s = 0.0
            self._publish_status(is_online=True)
        if now_s >= self._status_file_at_s:
            self._status_file_at_s = now_s + STATUS_FILE_INTERVAL_S
            self._write_status_file(is_online=bool(self._broker_url))
        self._alarms.is_changed = False

    def _report(self, *, is_online: bool) -> Report:
        disk_free_bytes = shutil.disk_usage(self._buffer.folder).free
        is_low = disk_free_bytes < self._settings.disk_free_alarm_bytes
        self._alarms.set("disk space", "the buffer's disk is nearly full" if is_low else "")
        return Report(
            station=self._settings.station,
            report_unix_s=time.time(),
            is_online=is_online,
            software_version=self._software_version,
            epoch=self._buffer.epoch,
            last_sequence=self._buffer.last_sequence,
            backlog_count=self._session.backlog_count,
            in_flight_count=self._session.in_flight_count,
            rejected_count=self._buffer.ledger.refused_count(),
            quarantined_count=self._quarantined_count,
            disk_free_bytes=disk_free_bytes,
            buffer_bytes=self._buffer.size_bytes(),
            command_count=self._command_count,
            broker_url=self._broker_url,
            instruments=list(self._intake.instruments.values()),
            alarms=self._alarms.texts(),
        )

    def _publish_status(self, *, is_online: bool) -> None:
        message = to_status(self._report(is_online=is_online)).SerializeToString()
        if self._publish(status_topic(self._settings.station), message, is_retained=True):
            self._command_count = 0

    def _publish(self, topic: str, message: bytes, *, is_retained: bool = False) -> bool:
        """Publishes what is worth nothing later: while offline it is not kept."""
        try:
            self._uplink.publish(topic, message, is_retained=is_retained)
        except OfflineError:
            return False
        return True

    def _write_status_file(self, *, is_online: bool) -> None:
        content = to_json(self._report(is_online=is_online))
        try:
            replace_file(self._buffer.folder / STATUS_FILE, content, is_synced=False)
        except FieldpostError as error:
            self._alarms.set("status file", f"the status file cannot be written: {error}")
        else:
            self._alarms.set("status file", "")

    # --- the end ---

    def _is_everything_delivered(self) -> bool:
        is_idle = not self._running & self._finite and self._intake.wake_at_s is None and self._events.empty()
        return is_idle and self._session.backlog_count == 0

    def _stop_all_sources(self) -> None:
        """Lets each source finish what it is about to hand over."""
        self._stop_sources.set()
        deadline_s = time.monotonic() + STOP_TIMEOUT_S
        while self._running and time.monotonic() < deadline_s:
            for event in self._take_events(0.1):
                self._handle(event)
            self._write_captures()

    def _end(self) -> None:
        self._stop_sources.set()
        self._intake.refuse_all()
        try:
            self._publish_status(is_online=False)
            self._uplink.stop()
            self._write_status_file(is_online=False)
        finally:
            self._buffer.close()
        logger.info("agent ended", extra={"backlog_count": self._session.backlog_count})


def _limits(settings: AgentSettings) -> SessionLimits:
    return SessionLimits(
        window_observations=settings.window_observations,
        window_bytes=settings.window_bytes,
        bundle_observations=settings.bundle_observations,
        bundle_bytes=settings.bundle_bytes,
        resend_after_s=settings.resend_after_s,
    )
