"""Builds the parts of a station and hands them to each other. The one place that knows which source has which class."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from edge_agent.agent import Agent
from edge_agent.agent import QuickLook as AnyQuickLook
from edge_agent.buffer import Buffer
from edge_agent.link.identity import Identity
from edge_agent.link.mqtt_connection import ConnectionSettings, LastWill
from edge_agent.link.uplink import MqttUplink
from edge_agent.operation.notify import Notifier
from edge_agent.remote_settings import OVERRIDES_FILE, overrides_from_json
from edge_agent.report import last_will
from edge_agent.settings import AgentSettings
from edge_agent.source_settings import (
    FolderSettings,
    InstrumentSettings,
    ReplaySettings,
    SerialSettings,
    SimulatedSettings,
    StreamSettings,
    TcpClientSettings,
    TcpServerSettings,
    UdpSettings,
)
from edge_agent.sources.folder import FolderSource
from edge_agent.sources.replay import ReplaySource
from edge_agent.sources.simulated import SimulatedSource
from edge_agent.sources.source import Source
from fieldpost.broker_url import parse_broker_url
from fieldpost.errors import InvalidRequestError
from fieldpost.names import commands_topic, receipts_topic, status_topic

if TYPE_CHECKING:
    from edge_agent.sources.link import Link

DAY_FILES_BELOW_CEILING = 16


def build_agent(settings: AgentSettings) -> Agent:
    """A station that is ready to run; its buffer is open.

    Raises:
        InvalidRequestError: A setting makes no sense.
        TryAgainError: Another process holds the buffer, or the disk is full.
        BrokenStateError: The disk refuses.
    """
    uplink = build_uplink(settings)
    buffer = Buffer(settings.buffer_folder, settings.station, day_file_max_bytes=_day_file_max_bytes(settings))
    try:
        origins = buffer.origins()
        sources = [build_source(instrument, origins) for instrument in settings.instruments]
        return Agent(
            settings,
            buffer,
            uplink,
            sources,
            overrides=buffer.load_state(OVERRIDES_FILE, overrides_from_json),
            quick_look=build_quick_look(settings),
            notifier=Notifier.from_environment(os.environ),
        )
    except BaseException:
        buffer.close()
        raise


def build_quick_look(settings: AgentSettings) -> AnyQuickLook | None:
    """The small model, where the settings want one."""
    if settings.quick_look == "off":
        return None
    from edge_agent.quick_look.quick_look import QuickLook

    return QuickLook(
        settings.buffer_folder / "models", budget_ms=settings.quick_look_budget_ms, key_file=settings.model_key_file
    )


def _day_file_max_bytes(settings: AgentSettings) -> int:
    """Below a ceiling day files are small enough for the oldest to go one by one."""
    ceiling = settings.buffer_max_bytes // DAY_FILES_BELOW_CEILING or settings.day_file_max_bytes
    return min(settings.day_file_max_bytes, ceiling)


def build_uplink(settings: AgentSettings) -> MqttUplink:
    """The way to the server."""
    station = settings.station
    identity = None
    if settings.certificate_file and settings.key_file:
        identity = Identity(settings.certificate_file, settings.key_file, station)
    connection = ConnectionSettings(
        client_id=station,
        topics=[receipts_topic(station), commands_topic(station)],
        will=LastWill(status_topic(station), last_will(station)),
        keepalive_s=settings.keepalive_s,
        # The session's window, and room for the headers that it does not count.
        max_unacknowledged_bytes=settings.window_bytes + settings.bundle_bytes,
    )
    brokers = [parse_broker_url(url) for url in settings.broker_urls]
    return MqttUplink(brokers, connection, ca_file=settings.ca_file, identity=identity)


def build_source(settings: InstrumentSettings, origins: Mapping[str, int]) -> Source:
    """The source that the settings ask for."""
    match settings:
        case SimulatedSettings():
            return SimulatedSource(settings, origins)
        case FolderSettings():
            return FolderSource(settings, origins)
        case ReplaySettings():
            return ReplaySource(settings, origins)
        case StreamSettings():
            # Imported here, as the links are: a station without streams has no need of them.
            from edge_agent.sources.stream import StreamSource

            return StreamSource(settings, _build_link(settings))
    raise InvalidRequestError(f"expected settings of a known source, but got {type(settings).__name__}")


def _build_link(settings: StreamSettings) -> Link:
    """The way by which a stream's bytes come."""
    match settings:
        case SerialSettings():
            from edge_agent.sources.serial_port import SerialLink

            return SerialLink(settings)
        case TcpClientSettings():
            from edge_agent.sources.tcp import TcpClientLink

            return TcpClientLink(settings)
        case TcpServerSettings():
            from edge_agent.sources.tcp import TcpServerLink

            return TcpServerLink(settings)
        case UdpSettings():
            from edge_agent.sources.udp import UdpLink

            return UdpLink(settings)
    raise InvalidRequestError(f"expected settings of a known stream, but got {type(settings).__name__}")
