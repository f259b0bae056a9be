"""The link to a broker: it connects, listens, publishes, and begins again. Decides nothing about observations.

MQTT 3.1.1, QoS 1, clean sessions. Every connection has a client object of its own, so that nothing of an earlier one is
sent again behind the session's back. The library's callbacks only put events into a queue: whoever publishes inside of
one deadlocks sooner or later.
"""

from __future__ import annotations

import contextlib
import random
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.reasoncodes import ReasonCode

from fieldpost.broker_url import BrokerUrl
from fieldpost.errors import OfflineError

CONNECT_TIMEOUT_S = 10.0
GOODBYE_TIMEOUT_S = 3.0
BACKOFF_FIRST_S = 1.0
BACKOFF_MAX_S = 30.0
MAX_UNACKNOWLEDGED_MESSAGES = 1024


@dataclass(frozen=True, slots=True)
class LinkUp:
    """Connected and subscribed."""

    broker_url: str


@dataclass(frozen=True, slots=True)
class LinkDown:
    """The connection ended, or could not be made."""

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


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files for mqtts brokers; None for the system's authorities, or for no certificate of our own."""

    ca_file: Path | None = None
    certificate_file: Path | None = None
    key_file: Path | None = None


@dataclass(frozen=True, slots=True)
class LastWill:
    """What the broker publishes, retained, when the station falls silent."""

    topic: str
    payload: bytes


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
        client_id: The station's name.
        topics: What to subscribe to.
        will: Published by the broker when the connection breaks.
        tls: Files for mqtts brokers.
        keepalive_s: A silent connection is given up after 1.5 times this.
    """

    def __init__(
        self,
        brokers: list[BrokerUrl],
        client_id: str,
        topics: list[str],
        will: LastWill,
        *,
        tls: TlsFiles | None = None,
        keepalive_s: int = 30,
    ) -> None:
        self._brokers = brokers
        self._client_id = client_id
        self._topics = topics
        self._will = will
        self._tls = tls or TlsFiles()
        self._keepalive_s = keepalive_s
        self._on_event: Callable[[LinkEvent], object] = lambda event: None
        self._connection: _Connection | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="uplink", daemon=True)

    def start(self, on_event: Callable[[LinkEvent], object]) -> None:
        """See Uplink."""
        self._on_event = on_event
        self._thread.start()

    def publish(self, topic: str, payload: bytes, *, is_retained: bool = False) -> None:
        """See Uplink."""
        connection = self._connection
        if connection is None or not connection.is_up:
            raise OfflineError("expected a connection to a broker, but there is none now")
        connection.publish(topic, payload, is_retained)

    def stop(self) -> None:
        """See Uplink."""
        self._stop.set()
        connection = self._connection
        if connection is not None:
            connection.say_goodbye()
        if self._thread.is_alive():
            self._thread.join(CONNECT_TIMEOUT_S)

    def _run(self) -> None:
        """Connects, stays, and connects again; a broker that took us for a while starts the backoff anew."""
        failure_count = 0
        attempt = 0
        while not self._stop.is_set():
            broker = self._brokers[attempt % len(self._brokers)]
            attempt += 1
            reason, was_up = self._connect_and_stay(broker)
            failure_count = 1 if was_up else failure_count + 1
            self._on_event(LinkDown(str(broker), reason))
            # The whole list is tried before the wait grows.
            rounds = 1 + (failure_count - 1) // len(self._brokers)
            self._stop.wait(backoff_s(rounds, random.random()))

    def _connect_and_stay(self, broker: BrokerUrl) -> tuple[str, bool]:
        """One connection from its beginning to its end.

        Returns:
            Why it ended, and whether it was ever up.
        """
        try:
            client = self._make_client(broker)
            connection = _Connection(client, broker, self._topics, self._on_event)
            client.connect(broker.host, broker.port, self._keepalive_s)
        except (OSError, ValueError) as error:
            return f"{type(error).__name__}: {error}", False
        self._connection = connection
        client.loop_start()
        connection.wait_until_ended(self._stop)
        self._connection = None
        client.loop_stop()
        return connection.reason, connection.was_up

    def _make_client(self, broker: BrokerUrl) -> mqtt.Client:
        client = mqtt.Client(
            CallbackAPIVersion.VERSION2,
            client_id=self._client_id,
            clean_session=True,
            protocol=mqtt.MQTTv311,
            reconnect_on_failure=False,
        )
        client.connect_timeout = CONNECT_TIMEOUT_S
        # The session's window is the bound; the library's would only keep bundles waiting in memory.
        client.max_inflight_messages_set(MAX_UNACKNOWLEDGED_MESSAGES)
        client.will_set(self._will.topic, self._will.payload, qos=1, retain=True)
        if broker.is_tls:
            client.tls_set_context(_tls_context(self._tls))
        return client


class _Connection:
    """One connection: its client, and what the client's callbacks say in the library's thread."""

    def __init__(
        self, client: mqtt.Client, broker: BrokerUrl, topics: list[str], on_event: Callable[[LinkEvent], object]
    ) -> None:
        self._client = client
        self._broker = broker
        self._topics = topics
        self._on_event = on_event
        self._last_message: mqtt.MQTTMessageInfo | None = None
        self._answered = threading.Event()
        self._ended = threading.Event()
        self.is_up = False
        self.was_up = False
        self.reason = ""
        client.on_connect = self._on_connect
        client.on_subscribe = self._on_subscribe
        client.on_message = self._on_message
        client.on_disconnect = self._on_disconnect

    def publish(self, topic: str, payload: bytes, is_retained: bool) -> None:
        message = self._client.publish(topic, payload, qos=1, retain=is_retained)
        if message.rc != mqtt.MQTT_ERR_SUCCESS:
            raise OfflineError(f"expected to publish, but got: {mqtt.error_string(message.rc)}")
        self._last_message = message

    def wait_until_ended(self, stop: threading.Event) -> None:
        """Returns when the connection has ended; ends it where the broker does not answer at all."""
        if not self._answered.wait(CONNECT_TIMEOUT_S) and not self._ended.is_set():
            self.reason = f"expected the broker's answer within {CONNECT_TIMEOUT_S:g} s, but got none"
            self._client.disconnect()
        if stop.is_set():
            self._client.disconnect()
        self._ended.wait()

    def say_goodbye(self) -> None:
        """Waits a moment for what was published last, then disconnects."""
        if self.is_up and self._last_message is not None:
            # A broker that fell silent in this very moment is no reason to stay.
            with contextlib.suppress(RuntimeError, ValueError):
                self._last_message.wait_for_publish(GOODBYE_TIMEOUT_S)
        self._client.disconnect()

    def _on_connect(self, client: mqtt.Client, userdata: Any, flags: Any, code: ReasonCode, properties: Any) -> None:
        if code.is_failure:
            self.reason = f"the broker refused the connection: {code}"
        else:
            client.subscribe([(topic, 1) for topic in self._topics])

    def _on_subscribe(
        self, client: mqtt.Client, userdata: Any, mid: int, codes: list[ReasonCode], properties: Any
    ) -> None:
        self._answered.set()
        if any(code.is_failure for code in codes):
            self.reason = f"the broker refused a subscription to one of {', '.join(self._topics)}"
            client.disconnect()
            return
        self.is_up = self.was_up = True
        self._on_event(LinkUp(str(self._broker)))

    def _on_message(self, client: mqtt.Client, userdata: Any, message: mqtt.MQTTMessage) -> None:
        self._on_event(MessageCame(message.topic, bytes(message.payload)))

    def _on_disconnect(self, client: mqtt.Client, userdata: Any, flags: Any, code: ReasonCode, properties: Any) -> None:
        self.is_up = False
        self.reason = self.reason or str(code)
        self._ended.set()
        self._answered.set()


def _tls_context(files: TlsFiles) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(files.ca_file) if files.ca_file else None)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if files.certificate_file:
        context.load_cert_chain(files.certificate_file, files.key_file)
    return context
