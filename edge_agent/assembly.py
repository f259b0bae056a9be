"""Builds the parts of a station and hands them to each other. The one place that knows which source has which class."""

from __future__ import annotations

from collections.abc import Mapping

from edge_agent.agent import Agent
from edge_agent.buffer import Buffer
from edge_agent.report import last_will
from edge_agent.settings import AgentSettings
from edge_agent.source_settings import FolderSettings, InstrumentSettings, ReplaySettings, SimulatedSettings
from edge_agent.sources.folder import FolderSource
from edge_agent.sources.replay import ReplaySource
from edge_agent.sources.simulated import SimulatedSource
from edge_agent.sources.source import Source
from edge_agent.uplink import LastWill, MqttUplink, TlsFiles
from fieldpost.broker_url import parse_broker_url
from fieldpost.errors import InvalidRequestError
from fieldpost.names import commands_topic, receipts_topic, status_topic


def build_agent(settings: AgentSettings) -> Agent:
    """A station that is ready to run; its buffer is open.

    Raises:
        InvalidRequestError: A setting makes no sense.
        TryAgainError: Another process holds the buffer, or the disk is full.
        BrokenStateError: The disk refuses.
    """
    uplink = build_uplink(settings)
    buffer = Buffer(settings.buffer_folder, settings.station, day_file_max_bytes=settings.day_file_max_bytes)
    try:
        origins = buffer.origins()
        sources = [build_source(instrument, origins) for instrument in settings.instruments]
        return Agent(settings, buffer, uplink, sources)
    except BaseException:
        buffer.close()
        raise


def build_uplink(settings: AgentSettings) -> MqttUplink:
    """The way to the server."""
    station = settings.station
    return MqttUplink(
        [parse_broker_url(url) for url in settings.broker_urls],
        client_id=station,
        topics=[receipts_topic(station), commands_topic(station)],
        will=LastWill(status_topic(station), last_will(station)),
        tls=TlsFiles(settings.ca_file, settings.certificate_file, settings.key_file),
        keepalive_s=settings.keepalive_s,
    )


def build_source(settings: InstrumentSettings, origins: Mapping[str, int]) -> Source:
    """The source that the settings ask for."""
    match settings:
        case SimulatedSettings():
            return SimulatedSource(settings, origins)
        case FolderSettings():
            return FolderSource(settings, origins)
        case ReplaySettings():
            return ReplaySource(settings, origins)
    raise InvalidRequestError(f"expected settings of a known source, but got {type(settings).__name__}")
