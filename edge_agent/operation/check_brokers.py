"""Calls each broker as the station would, as far as that disturbs nobody. Judges nothing.

A second connection with the station's client id would throw the running agent off. So where an agent runs, the call
ends after the TLS handshake; only where none runs does it go on to CONNECT and SUBSCRIBE.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
from collections.abc import Callable
from pathlib import Path

from edge_agent.link.failures import connecting_failed
from edge_agent.link.mqtt_connection import ConnectionSettings, LastWill, MqttConnection
from edge_agent.link.pair_files import Pair
from edge_agent.link.tls import make_context
from edge_agent.operation.findings_around import BrokerFacts
from edge_agent.report import last_will
from edge_agent.settings import AgentSettings
from fieldpost.broker_url import BrokerUrl, parse_broker_url
from fieldpost.errors import FieldpostError
from fieldpost.names import commands_topic, receipts_topic, status_topic

CALL_TIMEOUT_S = 8.0
ALERT_TIMEOUT_S = 1.0
"""With TLS 1.3 a broker refuses a certificate only after the handshake; so long its refusal is waited for."""


def call_brokers(settings: AgentSettings, *, is_agent_running: bool) -> list[BrokerFacts]:
    """Calls all of them, one after the other."""
    call = _shake_hands if is_agent_running else _connect
    return [_facts(settings, parse_broker_url(url), call) for url in settings.broker_urls]


Call = Callable[[AgentSettings, BrokerUrl, ssl.SSLContext | None], BrokerFacts]


def _facts(settings: AgentSettings, broker: BrokerUrl, call: Call) -> BrokerFacts:
    try:
        context = make_context(settings.ca_file, _pair(settings)) if broker.is_tls else None
        return call(settings, broker, context)
    except (OSError, ValueError, FieldpostError) as error:
        failure = connecting_failed(error, broker, CALL_TIMEOUT_S, time.time())
        return BrokerFacts(url=str(broker), failure=failure.text)


def _pair(settings: AgentSettings) -> Pair | None:
    certificate, key = settings.certificate_file, settings.key_file
    return Pair(Path(certificate), Path(key)) if certificate and key else None


def _shake_hands(settings: AgentSettings, broker: BrokerUrl, context: ssl.SSLContext | None) -> BrokerFacts:
    with contextlib.ExitStack() as stack:
        plain = stack.enter_context(socket.create_connection((broker.host, broker.port), timeout=CALL_TIMEOUT_S))
        if context is None:
            return BrokerFacts(url=str(broker), reached="it answers; more is not tried while the agent runs")
        connection = stack.enter_context(context.wrap_socket(plain, server_hostname=broker.host))
        connection.settimeout(ALERT_TIMEOUT_S)
        with contextlib.suppress(TimeoutError):
            if not connection.recv(1):
                raise ConnectionResetError("closed after the handshake")
        version = connection.version() or "TLS"
        return BrokerFacts(url=str(broker), reached=f"{version} agreed; more is not tried while the agent runs")


def _connect(settings: AgentSettings, broker: BrokerUrl, context: ssl.SSLContext | None) -> BrokerFacts:
    station = settings.station
    how = ConnectionSettings(
        client_id=station,
        topics=[receipts_topic(station), commands_topic(station)],
        will=LastWill(status_topic(station), last_will(station)),
        answer_timeout_s=CALL_TIMEOUT_S,
    )

    def ignore(*_: object) -> None:
        """Nobody waits for messages here: what is meant for the station comes again."""

    connection = MqttConnection(broker, how, context, on_up=ignore, on_message=ignore, on_acknowledged=ignore)
    try:
        connection.open()
        connection.wait_for_answer()
        if not connection.was_up:
            connection.ended.wait(CALL_TIMEOUT_S)
            return BrokerFacts(url=str(broker), failure=connection.failure.text)
        connection.say_goodbye()
        return BrokerFacts(url=str(broker), reached="connected and subscribed")
    finally:
        connection.release()
