"""One connection to one broker, from CONNECT to its end. Knows no other broker, and does not begin again.

MQTT 3.1.1, QoS 1, clean session. Every connection has a client object of its own, so that nothing of an earlier one is
sent again behind the session's back. The library's callbacks only note, and put events into a queue: whoever publishes
inside of one deadlocks sooner or later.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.reasoncodes import ReasonCode

from edge_agent.link.failures import (
    WRONG_PROTOCOL,
    LinkFailure,
    closed_before_answer,
    connection_refused,
    no_answer,
    subscription_refused,
    tls_failed,
)
from edge_agent.link.patient_client import PatientClient
from edge_agent.link.tls import ErrorKeepingSocket
from fieldpost.broker_url import BrokerUrl
from fieldpost.errors import OfflineError

logger = logging.getLogger(__name__)

MAX_UNACKNOWLEDGED_MESSAGES = 1024
ACKNOWLEDGE_TIMEOUT_S = 300.0
GOODBYE_TIMEOUT_S = 2.0
DISCONNECT_TIMEOUT_S = 0.5
LOOP_INTERVAL_S = 1.0  # how often the keepalive is looked at; what comes and goes waits for nothing
NORMAL, PROTOCOL_ERROR, KEEPALIVE_TIMEOUT = 0, 130, 141  # the library's reason codes
CLOSED = LinkFailure("the station closed the connection")


@dataclass(frozen=True, slots=True)
class LastWill:
    """What the broker publishes, retained, when the station falls silent."""

    topic: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class ConnectionSettings:
    """What all connections of a station have in common.

    Attributes:
        client_id: The station's name.
        topics: What to subscribe to.
        will: Published by the broker when the connection breaks.
        keepalive_s: A silent connection is given up after 1.5 times this.
        answer_timeout_s: How long to wait for the connection, the handshake, and the broker's answer.
        max_unacknowledged_bytes: More than this is not kept in memory for a broker that acknowledges nothing.
    """

    client_id: str
    topics: list[str]
    will: LastWill
    keepalive_s: int = 30
    answer_timeout_s: float = 10.0
    max_unacknowledged_bytes: int = 8 << 20


class MqttConnection:
    """One connection.

    Args:
        broker: Whom to call.
        settings: How.
        context: For TLS; None without.
        on_up: Called once connected and subscribed.
        on_message: Called with topic and payload.
        on_acknowledged: Called for each PUBACK.
    """

    def __init__(
        self,
        broker: BrokerUrl,
        settings: ConnectionSettings,
        context: ssl.SSLContext | None,
        *,
        on_up: Callable[[], object],
        on_message: Callable[[str, bytes], None],
        on_acknowledged: Callable[[], None],
    ) -> None:
        self._broker = broker
        self._settings = settings
        self._on_up = on_up
        self._client = _make_client(settings, context)
        self._socket: Any = None
        self._failure: LinkFailure | None = None
        self._is_answered = False
        self._waiting: deque[tuple[mqtt.MQTTMessageInfo, int]] = deque()  # published, oldest first
        self._waiting_bytes = 0
        self._acknowledged_at_s = 0.0
        self.is_up = False
        self.was_up = False
        self.settled = threading.Event()
        """Set once it is up, or has ended."""
        self.ended = threading.Event()
        self._thread = threading.Thread(target=self._work, name="connection", daemon=True)
        self._client.on_socket_open = self._on_socket_open
        # Without this the library would write in the thread of whoever publishes, beside our own.
        self._client.on_socket_register_write = lambda *_: None
        self._client.on_connect = self._on_connect
        self._client.on_subscribe = self._on_subscribe
        self._client.on_message = lambda _, data, message: on_message(message.topic, bytes(message.payload))
        self._client.on_publish = lambda *_: on_acknowledged()
        self._client.on_disconnect = self._on_disconnect

    @property
    def failure(self) -> LinkFailure:
        """Why it ended."""
        return self._failure or CLOSED

    def open(self) -> None:
        """Connects; the answers come later. Returns after the TCP and TLS handshakes.

        Raises:
            OSError: There is no connection, or no TLS.
            ValueError: The address makes no sense.
        """
        self._client.connect(self._broker.host, self._broker.port, probe_interval_s(self._settings.keepalive_s))
        self._thread.start()

    def wait_for_answer(self) -> None:
        """Returns once it is up or has ended; ends it where the broker does not answer at all."""
        if not self.settled.wait(self._settings.answer_timeout_s):
            self._failure = self._failure or no_answer(self._settings.answer_timeout_s)
            self.cut()

    def publish(self, topic: str, payload: bytes, is_retained: bool) -> None:
        """See Uplink."""
        self._forget_acknowledged()
        is_too_much = self._waiting_bytes + len(payload) > self._settings.max_unacknowledged_bytes
        if self._waiting and is_too_much:
            self._give_up_where_nothing_moves()
            if not is_retained:
                return
        message = self._client.publish(topic, payload, qos=1, retain=is_retained)
        if message.rc != mqtt.MQTT_ERR_SUCCESS:
            raise OfflineError(f"expected to publish, but got: {mqtt.error_string(message.rc)}")
        if not self._waiting:
            self._acknowledged_at_s = time.monotonic()
        self._waiting.append((message, len(payload)))
        self._waiting_bytes += len(payload)

    def say_goodbye(self) -> None:
        """Waits a moment for what was published last, then disconnects; a broker that is frozen cannot delay it."""
        if self.is_up and self._waiting:
            # A broker that fell silent in this very moment is no reason to stay.
            with contextlib.suppress(RuntimeError, ValueError, IndexError):
                self._waiting[-1][0].wait_for_publish(GOODBYE_TIMEOUT_S)
        self._client.disconnect()
        if not self.ended.wait(DISCONNECT_TIMEOUT_S):
            self.cut()

    def cut(self) -> None:
        """Ends it without a word; the broker publishes the last will."""
        if self._socket is not None:
            # The base class's, on purpose: that of a TLS socket would take the TLS away under the library's thread.
            with contextlib.suppress(OSError):
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def release(self) -> None:
        """After its end, or where it could not be opened: frees its thread, and its memory at once; ends it if need be.

        Client and callbacks hold each other. Left to the garbage collector, what a frozen broker did not take would
        stay in memory beside that of the next connection.
        """
        if self._thread.is_alive():
            if not self.ended.is_set():
                self.cut()
            self._thread.join()
        for name in ("on_socket_open", "on_connect", "on_subscribe", "on_message", "on_publish", "on_disconnect"):
            setattr(self._client, name, None)

    def _work(self) -> None:
        """The connection's thread. Whatever goes wrong in it, the connection is over afterwards, and said to be."""
        try:
            while self._client.loop(LOOP_INTERVAL_S) == mqtt.MQTT_ERR_SUCCESS:
                pass
        except Exception as error:
            logger.exception("connection failed", extra={"broker_url": str(self._broker)})
            self._failure = LinkFailure(f"{type(error).__name__}: {error}")
            self.cut()
        finally:
            self.is_up = False
            self.ended.set()
            self.settled.set()

    def _forget_acknowledged(self) -> None:
        while self._waiting and self._waiting[0][0].is_published():
            self._waiting_bytes -= self._waiting.popleft()[1]
            self._acknowledged_at_s = time.monotonic()

    def _give_up_where_nothing_moves(self) -> None:
        limit_s = max(ACKNOWLEDGE_TIMEOUT_S, 4.0 * self._settings.keepalive_s)
        if time.monotonic() > self._acknowledged_at_s + limit_s and not self._client.is_moving:
            self._failure = LinkFailure(f"the broker acknowledged nothing for {limit_s:g} s")
            self.cut()

    def _on_socket_open(self, client: mqtt.Client, userdata: Any, opened: Any) -> None:
        self._socket = opened

    def _on_connect(self, client: mqtt.Client, userdata: Any, flags: Any, code: ReasonCode, properties: Any) -> None:
        self._is_answered = True
        if code.is_failure:
            self._failure = connection_refused(code.value)
        else:
            client.subscribe([(topic, 1) for topic in self._settings.topics])

    def _on_subscribe(
        self, client: mqtt.Client, userdata: Any, mid: int, codes: list[ReasonCode], properties: Any
    ) -> None:
        if any(code.is_failure for code in codes):
            self._failure = subscription_refused(self._settings.topics)
            client.disconnect()
            return
        self.is_up = self.was_up = True
        self._on_up()
        self.settled.set()

    def _on_disconnect(self, client: mqtt.Client, userdata: Any, flags: Any, code: ReasonCode, properties: Any) -> None:
        self.is_up = False
        self._failure = self._failure or self._why_it_ended(code.value)

    def _why_it_ended(self, code: int) -> LinkFailure:
        error = self._socket.tls_error if isinstance(self._socket, ErrorKeepingSocket) else None
        if error is not None:
            return tls_failed(error, self._broker)
        if code == NORMAL:
            return CLOSED
        if code == PROTOCOL_ERROR:
            return connection_refused(WRONG_PROTOCOL)
        if code == KEEPALIVE_TIMEOUT:
            return LinkFailure(f"nothing came from the broker for {1.5 * self._settings.keepalive_s:g} s: it hangs")
        if not self._is_answered:
            return closed_before_answer(self._broker)
        return LinkFailure("the connection was lost: the broker ended, or the network did")


def probe_interval_s(keepalive_s: int) -> int:
    """What the library is told, so that a silent connection ends within 1.5 times keepalive_s.

    It sends a probe after this time, waits for the answer as long again, and looks at its clock once a second.
    """
    return max(1, int(0.75 * keepalive_s - 1))


def _make_client(settings: ConnectionSettings, context: ssl.SSLContext | None) -> PatientClient:
    client = PatientClient(
        CallbackAPIVersion.VERSION2,
        client_id=settings.client_id,
        clean_session=True,
        protocol=mqtt.MQTTv311,
        reconnect_on_failure=False,
    )
    client.connect_timeout = settings.answer_timeout_s
    # The bound is max_unacknowledged_bytes; the library's would only keep bundles waiting in memory.
    client.max_inflight_messages_set(MAX_UNACKNOWLEDGED_MESSAGES)
    client.will_set(settings.will.topic, settings.will.payload, qos=1, retain=True)
    if context is not None:
        client.tls_set_context(context)
    return client
