"""The station's main loop: one queue, one closed set of events, one thread that owns buffer, session and publishing.

Sources, the uplink and the control socket run in threads of their own and put events into the queue; nothing else is
shared. What is to be done with an event is said elsewhere: intake (observations come), delivery (observations go),
orders (commands), upkeep (the disk), reporter (what the station says of itself).
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from google.protobuf.message import DecodeError

from edge_agent.alarms import Alarms
from edge_agent.buffer import Buffer
from edge_agent.control import SOCKET_NAME, Asked, ControlSocket
from edge_agent.delivery import Delivery
from edge_agent.intake import Intake
from edge_agent.link.uplink import LinkDown, LinkUp, MessageCame, Uplink
from edge_agent.operation.notify import Notifier
from edge_agent.orders import ModelTaker, ModelTried, Orders
from edge_agent.remote_settings import Overrides, with_overrides
from edge_agent.report import InstrumentReport, to_dict
from edge_agent.reporter import Reporter
from edge_agent.settings import AgentSettings
from edge_agent.source_threads import (
    Captured,
    Quarantined,
    SourceAlarm,
    SourceEnded,
    SourceEvent,
    SourceThread,
)
from edge_agent.sources.source import Source
from edge_agent.storage.retention import RetentionPolicy
from edge_agent.upkeep import Upkeep
from fieldpost.errors import FieldpostError, OfflineError
from fieldpost.names import commands_topic, receipts_topic, results_topic
from fieldpost.v1 import command_pb2, observation_pb2, receipt_pb2

logger = logging.getLogger(__name__)

STOP_TIMEOUT_S = 5.0
EVENTS_AT_ONCE = 256


class QuickLook(ModelTaker, Protocol):
    """A small model that adds a first estimate to observations. Never stops them."""

    @property
    def model(self) -> str:
        """The model in use; empty where there is none."""
        ...

    @property
    def problem(self) -> str:
        """What is wrong, in plain words; empty where nothing is."""
        ...

    def add(self, observations: Sequence[observation_pb2.Observation], contents: Sequence[bytes]) -> None:
        """Adds estimates to observations, given their bytes; may be called by several threads."""
        ...

    def close(self) -> None:
        """Ends what runs beside the agent."""
        ...


@dataclass(frozen=True, slots=True)
class StopAsked:
    """Somebody wants the agent to end."""


AgentEvent = SourceEvent | LinkUp | LinkDown | MessageCame | Asked | ModelTried | StopAsked


class Agent:
    """One station at work.

    Args:
        settings: Its settings.
        buffer: Its buffer, open; the agent closes it.
        uplink: Its way to the server.
        sources: Its instruments.
        overrides: What stands over its settings.
        quick_look: Its small model; None for none.
        notifier: Tells systemd how it is; None where nobody listens.
    """

    def __init__(
        self,
        settings: AgentSettings,
        buffer: Buffer,
        uplink: Uplink,
        sources: Sequence[Source],
        *,
        overrides: Overrides | None = None,
        quick_look: QuickLook | None = None,
        notifier: Notifier | None = None,
    ) -> None:
        self._file_settings = settings
        self._settings = settings = with_overrides(settings, overrides or {})
        self._buffer = buffer
        self._uplink = uplink
        self._quick_look = quick_look
        self._notifier = notifier or Notifier.from_environment({})
        self._events: queue.SimpleQueue[AgentEvent] = queue.SimpleQueue()
        self._stop_sources = threading.Event()
        estimate = quick_look.add if quick_look else None
        self._threads = [
            SourceThread(source, self._events.put, buffer.quarantine, self._stop_sources, estimate)
            for source in sources
        ]
        self._running = {source.instrument for source in sources}
        self._finite = {source.instrument for source in sources if source.is_finite}
        self._is_stopping = False

        self._alarms = Alarms()
        self._upkeep = Upkeep(buffer, self._alarms, policy_of(settings))
        self._intake = Intake(buffer, self._alarms, self._upkeep)
        self._intake.instruments = {name: InstrumentReport(name) for name in sorted(self._running)}
        self._delivery = Delivery(settings, buffer, uplink, self._upkeep, self._alarms, self._intake.add_again)
        silent_after_s = {i.name: i.silent_after_s for i in settings.instruments if i.name not in self._finite}
        self._reporter = Reporter(
            settings,
            buffer,
            uplink,
            self._delivery,
            self._intake,
            self._alarms,
            silent_after_s,
            lambda: (quick_look.model, quick_look.problem) if quick_look else ("", ""),
        )
        self._orders = Orders(
            buffer, self._delivery, overrides or {}, self._apply_overrides, quick_look, self._events.put
        )
        self._control = ControlSocket(buffer.folder / SOCKET_NAME, self._events.put)

    def stop(self) -> None:
        """Asks the agent to end cleanly. Safe in a signal handler."""
        self._events.put(StopAsked())

    def run(self, *, exit_when_delivered: bool = False) -> None:
        """Works until stop is called.

        Args:
            exit_when_delivered: Ends also once every finite source is done and everything is receipted or refused.
        """
        facts = {"epoch": self._buffer.epoch, "last_sequence": self._buffer.last_sequence}
        logger.info("agent started", extra={"station": self._settings.station, **facts})
        try:
            self._uplink.start(self._events.put)
            self._open_control()
            for thread in self._threads:
                thread.start()
            self._notifier.ready()
            while not self._is_stopping and not (exit_when_delivered and self._is_everything_delivered()):
                self._turn()
            self._notifier.stopping()
            self._stop_all_sources()
        finally:
            self._end()

    def _open_control(self) -> None:
        try:
            self._control.start()
        except FieldpostError as error:
            self._alarms.set("control", f"nobody beside the station can ask it anything: {error}")

    # --- the loop ---

    def _turn(self) -> None:
        for event in self._take_events(self._wait_s()):
            self._handle(event)
        self._write_captures()
        now_s = time.monotonic()
        self._upkeep.work(now_s, time.time())
        self._delivery.note_gone(self._upkeep.take_gone())
        self._delivery.work(now_s)
        self._reporter.work(now_s)
        self._notifier.tick(now_s)

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
        wakes: list[float] = [self._reporter.wake_at_s, self._upkeep.wake_at_s]
        optional = [self._intake.wake_at_s, self._delivery.wake_at_s]
        wakes += [self._notifier.wake_at_s, *(at_s for at_s in optional if at_s is not None)]
        return max(0.0, min(wakes) - time.monotonic())

    def _handle(self, event: AgentEvent) -> None:
        match event:
            case Captured():
                self._intake.add(event)
            case Quarantined(instrument, is_new):
                self._reporter.note_quarantined(instrument, is_new=is_new)
            case SourceAlarm(instrument, text):
                self._alarms.set(f"source {instrument}", f"{instrument}: {text}" if text else "")
            case SourceEnded(instrument):
                self._running.discard(instrument)
                logger.info("source ended", extra={"instrument": instrument})
            case LinkUp(broker_url):
                self._alarms.set("link", "")
                logger.info(
                    "connected", extra={"broker_url": broker_url, "backlog_count": self._delivery.backlog_count}
                )
                self._notifier.status(f"connected to {broker_url}")
                self._delivery.note_link_up(broker_url)
                self._reporter.hurry()
            case LinkDown(broker_url, reason):
                self._alarms.set("link", f"no connection to {broker_url}: {reason}")
                self._notifier.status(f"no connection to {broker_url}")
                self._delivery.note_link_down()
            case MessageCame(topic, payload):
                self._take_message(topic, payload)
            case Asked():
                self._take_asked(event)
            case ModelTried():
                self._orders.note_model_tried(event)
                self._reporter.hurry()
            case StopAsked():
                self._is_stopping = True

    def _write_captures(self) -> None:
        written = self._intake.write(time.monotonic())
        if written:
            self._delivery.note_appended(written)

    # --- what the server, or a person beside the station, says ---

    def _take_message(self, topic: str, payload: bytes) -> None:
        try:
            if topic == receipts_topic(self._settings.station):
                self._delivery.take_receipt(receipt_pb2.Receipt.FromString(payload))
            elif topic == commands_topic(self._settings.station):
                self._take_command(command_pb2.Command.FromString(payload))
        except DecodeError as error:
            self._alarms.set("message", f"expected a message of the server on {topic}, but got {error}")

    def _take_command(self, command: command_pb2.Command) -> None:
        self._reporter.command_count += 1
        if self._orders.take(command, self._answer):
            self._reporter.hurry()

    def _answer(self, result: command_pb2.CommandResult) -> None:
        """While offline an answer is not kept: whoever asked asks again."""
        try:
            self._uplink.publish(results_topic(self._settings.station), result.SerializeToString())
        except OfflineError:
            logger.info("answer not sent while offline", extra={"command_id": result.command_id})

    def _take_asked(self, asked: Asked) -> None:
        def answer(result: command_pb2.CommandResult) -> None:
            report = None
            if asked.command.HasField("report"):
                report = to_dict(self._reporter.report(is_online=bool(self._delivery.broker_url)))
            asked.answer(result.is_accepted, result.detail, report)

        self._orders.take(asked.command, answer)

    def _apply_overrides(self, overrides: Overrides) -> None:
        self._settings = settings = with_overrides(self._file_settings, overrides)
        logging.getLogger().setLevel(settings.log_level)
        self._upkeep.policy = policy_of(settings)
        self._delivery.apply(settings)
        self._reporter.apply(settings)

    # --- the end ---

    def _is_everything_delivered(self) -> bool:
        is_idle = not self._running & self._finite and self._intake.wake_at_s is None and self._events.empty()
        return is_idle and self._delivery.backlog_count == 0

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
            self._control.stop()
            report = self._reporter.report(is_online=False)
            self._reporter.publish(report)
            self._uplink.stop()
            self._reporter.write_file(report)
            if self._quick_look is not None:
                self._quick_look.close()
        finally:
            self._buffer.close()
        logger.info("agent ended", extra={"backlog_count": self._delivery.backlog_count})


def policy_of(settings: AgentSettings) -> RetentionPolicy:
    """How long observations are kept, and what goes where there is no room."""
    return RetentionPolicy(
        retention_days=settings.retention_days,
        buffer_max_bytes=settings.buffer_max_bytes,
        disk_free_floor_bytes=settings.disk_free_floor_bytes,
        drops_undelivered=settings.when_full == "drop-oldest",
    )
