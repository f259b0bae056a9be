"""The link to the server: it goes from broker to broker, and begins again. Decides nothing about observations.

Knows no MQTT packet and no certificate: a connection is one MqttConnection, and which certificate it shows is the
identity's choice.
"""

from __future__ import annotations

import itertools
import logging
import random
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from edge_agent.link.failures import LinkFailure, connecting_failed
from edge_agent.link.identity import Identity, Shown
from edge_agent.link.mqtt_connection import ConnectionSettings, MqttConnection
from edge_agent.link.tls import make_context
from fieldpost.broker_url import BrokerUrl
from fieldpost.errors import FieldpostError, OfflineError

logger = logging.getLogger(__name__)

STOP_TIMEOUT_S = 3.0
BACKOFF_FIRST_S = 1.0
BACKOFF_MAX_S = 30.0
LOOK_INTERVAL_S = 60.0
STAYED_S = 5.0
"""A shorter connection counts as a failure: where two stations have one name, each throws the other out at once."""


@dataclass(frozen=True, slots=True)
class LinkUp:
    """Connected and subscribed."""

    broker_url: str


@dataclass(frozen=True, slots=True)
class LinkDown:
    """The connection ended, or could not be made; the reason is in plain words, for a person."""

    broker_url: str
    reason: str


@dataclass(frozen=True, slots=True)
class MessageCame:
    """A message on one of the subscribed topics."""

    topic: str
    payload: bytes


LinkEvent = LinkUp | LinkDown | MessageCame


class Uplink(Protocol):
    """A way to the server that may be up or down at any time."""

    @property
    def acknowledged_count(self) -> int:
        """Messages that brokers acknowledged since the start. It moves nothing; only a receipt does."""
        ...

    @property
    def alarm(self) -> str:
        """What is wrong with the station's certificate, or soon will be; "" for nothing."""
        ...

    @property
    def certificate_expiry_unix_s(self) -> float | None:
        """When the certificate in use ends; None without one, or where that is not known yet."""
        ...

    def start(self, on_event: Callable[[LinkEvent], object]) -> None:
        """Begins to connect, and to report events from a thread of its own."""
        ...

    def publish(self, topic: str, payload: bytes, *, is_retained: bool = False) -> None:
        """Gives a message to the link. It may be lost; only a receipt says that it was not.

        Raises:
            OfflineError: The link is down; the message was not taken.
        """
        ...

    def stop(self) -> None:
        """Waits a moment for what was published, then disconnects."""
        ...


def backoff_s(failure_count: int, jitter: float) -> float:
    """How long to wait after so many failures in a row: 1, 2, 4 ... 30 s, and up to half as much again.

    Args:
        failure_count: 1 after the first failure.
        jitter: A random number of [0, 1).
    """
    return float(min(BACKOFF_FIRST_S * 2 ** min(failure_count - 1, 10), BACKOFF_MAX_S)) * (1 + jitter / 2)


class MqttUplink:
    """The Uplink over MQTT. Goes to the next broker of the list whenever one fails.

    Args:
        brokers: At least one.
        settings: What every connection needs.
        ca_file: Authorities of mqtts brokers; None for the system's.
        identity: The station's certificates for mqtts brokers; None to show none.
        look_interval_s: How often it looks for a new certificate while connected.
        stayed_s: How long a connection has to stand for the backoff to begin anew.
        backoff: How long to wait after so many failures in a row, given a random number.
    """

    def __init__(
        self,
        brokers: list[BrokerUrl],
        settings: ConnectionSettings,
        *,
        ca_file: Path | None = None,
        identity: Identity | None = None,
        look_interval_s: float = LOOK_INTERVAL_S,
        stayed_s: float = STAYED_S,
        backoff: Callable[[int, float], float] = backoff_s,
    ) -> None:
        self._brokers = brokers
        self._settings = settings
        self._ca_file = ca_file
        self._identity = identity if any(broker.is_tls for broker in brokers) else None
        self._look_interval_s = look_interval_s
        self._stayed_s = stayed_s
        self._backoff = backoff
        self._on_event: Callable[[LinkEvent], object] = lambda event: None
        self._connection: MqttConnection | None = None
        self._acknowledged_count = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="uplink", daemon=True)

    @property
    def acknowledged_count(self) -> int:
        """See Uplink."""
        return self._acknowledged_count

    @property
    def alarm(self) -> str:
        """See Uplink."""
        return self._identity.alarm if self._identity else ""

    @property
    def certificate_expiry_unix_s(self) -> float | None:
        """See Uplink."""
        return self._identity.expiry_unix_s if self._identity else None

    def start(self, on_event: Callable[[LinkEvent], object]) -> None:
        """See Uplink."""
        self._on_event = on_event
        self._thread.start()

    def publish(self, topic: str, payload: bytes, *, is_retained: bool = False) -> None:
        """See Uplink. What a broker leaves unacknowledged is bounded: beyond that a message is not taken up.

        The session sends it again. A report, which is retained, is taken always.
        """
        connection = self._connection
        if connection is None or not connection.is_up:
            raise OfflineError("expected a connection to a broker, but there is none now")
        connection.publish(topic, payload, is_retained)

    def stop(self) -> None:
        """See Uplink. Takes 3 s at most; an attempt that hangs until then is left to end by itself."""
        deadline_s = time.monotonic() + STOP_TIMEOUT_S
        self._stop.set()
        connection = self._connection
        if connection is not None:
            connection.say_goodbye()
        if self._thread.is_alive():
            self._thread.join(max(0.0, deadline_s - time.monotonic()))

    def _run(self) -> None:
        """Connects, stays, and connects again; a broker that took us for a while starts the backoff anew."""
        failure_count = 0
        for broker in itertools.cycle(self._brokers):
            try:
                has_stayed = self._visit(broker)
            except Exception as error:  # the one place that catches: nobody would begin this thread again
                logger.exception("uplink failed, tried again later", extra={"broker_url": str(broker)})
                self._on_event(LinkDown(str(broker), f"{type(error).__name__}: {error}"))
                has_stayed = False
            failure_count = 1 if has_stayed else failure_count + 1
            # The whole list is tried before the wait grows.
            rounds = 1 + (failure_count - 1) // len(self._brokers)
            if self._stop.wait(self._backoff(rounds, random.random())):
                return

    def _visit(self, broker: BrokerUrl) -> bool:
        """Connects to one broker, with one certificate and where need be with the other.

        Returns:
            Whether it took us for a while.
        """
        has_stayed = False
        while not self._stop.is_set():
            ending = self._connect_and_stay(broker)
            has_stayed = has_stayed or ending.up_s >= self._stayed_s
            self._on_event(LinkDown(str(broker), ending.failure.text))
            if not ending.is_others_turn:
                break
        return has_stayed

    def _connect_and_stay(self, broker: BrokerUrl) -> _Ending:
        """One connection from its beginning to its end."""
        shown: Shown | None = None
        connection: MqttConnection | None = None
        try:
            try:
                identity = self._identity if broker.is_tls else None
                shown = identity.choose(time.monotonic()) if identity else None
                context = make_context(self._ca_file, shown.pair if shown else None) if broker.is_tls else None
                connection = self._make_connection(broker, context)
                # Before it is open: it may be up, and somebody publish, before open returns.
                self._connection = connection
                connection.open()
            except (FieldpostError, OSError, ValueError) as error:
                timeout_s = self._settings.answer_timeout_s
                return self._failed(shown, connecting_failed(error, broker, timeout_s, time.time()))
            connection.wait_for_answer()
            answered_s = time.monotonic()
            is_others_turn = self._stay(connection, shown)
            connection.ended.wait()
        finally:
            self._connection = None
            if connection is not None:
                connection.release()
        if not connection.was_up:
            return self._failed(shown, connection.failure)
        failure = LinkFailure("the station tries its new certificate") if is_others_turn else connection.failure
        return _Ending(failure, up_s=time.monotonic() - answered_s, is_others_turn=is_others_turn)

    def _make_connection(self, broker: BrokerUrl, context: ssl.SSLContext | None) -> MqttConnection:
        return MqttConnection(
            broker,
            self._settings,
            context,
            on_up=lambda: self._on_event(LinkUp(str(broker))),
            on_message=self._take_message,
            on_acknowledged=self._count_acknowledged,
        )

    def _stay(self, connection: MqttConnection, shown: Shown | None) -> bool:
        """Waits for the end, and looks for a new certificate now and then.

        Returns:
            Whether the connection was left because it is a new certificate's turn.
        """
        identity = self._identity
        if identity is None or shown is None or not connection.was_up:
            return False
        identity.note_accepted(shown, time.monotonic())
        while not connection.ended.wait(self._look_interval_s):
            if identity.is_trial_due(shown, time.monotonic()) and not self._stop.is_set():
                connection.say_goodbye()
                return True
        return False

    def _failed(self, shown: Shown | None, failure: LinkFailure) -> _Ending:
        """A new certificate that did not connect leaves the same broker to the old one, at once."""
        if self._identity is not None and shown is not None:
            self._identity.note_failed(shown, failure, time.monotonic())
        is_others_turn = shown is not None and shown.is_trial
        return _Ending(failure, up_s=0.0, is_others_turn=is_others_turn)

    def _take_message(self, topic: str, payload: bytes) -> None:
        self._on_event(MessageCame(topic, payload))

    def _count_acknowledged(self) -> None:
        self._acknowledged_count += 1


@dataclass(frozen=True, slots=True)
class _Ending:
    """How a connection ended.

    Attributes:
        failure: Why.
        up_s: How long it stood after the broker had taken us.
        is_others_turn: Whether the other certificate is to be tried at this broker now.
    """

    failure: LinkFailure
    up_s: float
    is_others_turn: bool
