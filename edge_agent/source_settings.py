"""The settings of an instrument and its source: one table [[instruments]] each. Reads no file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from edge_agent.framing import FORMATS, STREAM_FORMATS, FramingParameters
from edge_agent.setting_texts import hex_or_text, parse_characters, to_bytes
from edge_agent.settings_table import about, make
from fieldpost.errors import InvalidRequestError, RejectedError
from fieldpost.names import check_name


@dataclass(frozen=True, slots=True, kw_only=True)
class InstrumentSettings:
    """What all sources have."""

    name: str = field(metadata=about("Name of the instrument, unique at its station: a-z, 0-9 and '-'."))
    source: str = field(
        metadata=about("Where its bytes come from: simulated, folder, replay, serial, tcp-client, tcp-server or udp.")
    )
    payload_format: str | None = field(
        default=None,
        metadata=about(
            f"How its bytes are framed. Files: {', '.join(FORMATS)}; absent to recognise each by its content. Streams, "
            f"which must have one: {', '.join(STREAM_FORMATS)} (file: each datagram is one observation, udp only)."
        ),
    )
    line_end: str = field(
        default="\n", metadata=about("What ends a line, for payload_format line; one character is one byte.")
    )
    frame_bytes: int | None = field(
        default=None,
        metadata=about("Length of a frame, its start included; needed for payload_format fixed-length.", minimum=1),
    )
    frame_start: str = field(
        default="",
        metadata=about(
            "What each frame begins with, for payload_format fixed-length: text, or 0x and hexadecimal digits. Without "
            "it, a stream that lost bytes is back in step only after a pause."
        ),
    )
    idle_gap_s: float | None = field(
        default=None,
        metadata=about(
            "Seconds of silence in a stream that end what is being received, absent for 10; needed for payload_format "
            "idle-gap, where they end an observation.",
            minimum=0.1,
        ),
    )
    max_frame_bytes: int = field(
        default=1 << 16,
        metadata=about("Longest observation of a stream; what is longer goes to quarantine.", minimum=64),
    )
    silent_after_s: float = field(
        default=3600.0,
        metadata=about("Seconds without an observation after which the instrument's silence is an alarm.", minimum=1),
    )

    def framing_parameters(self) -> FramingParameters:
        """What framing has to be told, as bytes and numbers.

        Raises:
            InvalidRequestError: frame_start or line_end are no bytes.
        """
        return FramingParameters(
            line_end=to_bytes("line_end", self.line_end),
            frame_bytes=self.frame_bytes or 1,
            frame_start=hex_or_text("frame_start", self.frame_start),
            idle_gap_s=10.0 if self.idle_gap_s is None else self.idle_gap_s,
            max_frame_bytes=self.max_frame_bytes,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedSettings(InstrumentSettings):
    """A CL51 that does not exist, above a sky that does not either."""

    seed: int = field(
        default=1, metadata=about("Seed of the simulated sky; the same seed gives the same telegrams.", minimum=0)
    )
    climate: Literal["fair", "training", "held-out"] = field(
        default="fair",
        metadata=about(
            "What the sky and the instrument's errors are drawn from: fair weather; or all weather, with rain, fog and "
            "clouds, as learned retrievals are trained on and as they are judged by."
        ),
    )
    latitude_deg: float | None = field(
        default=None,
        metadata=about(
            "Where the sky is, north positive: that of the server's registry, since a retrieval may ask where the sun "
            "stands; absent for one drawn from climate and seed (fair: 45).",
            minimum=-90,
        ),
    )
    longitude_deg: float | None = field(
        default=None, metadata=about("The same, east positive; absent as before (fair: 0).", minimum=-180)
    )
    interval_s: float = field(default=15.0, metadata=about("Seconds between two measurements.", minimum=0.1))
    start_time: datetime | None = field(
        default=None,
        metadata=about(
            "Time of the first measurement, RFC 3339; absent to measure in the present, as a real instrument does."
        ),
    )
    speed_up: float = field(
        default=1.0,
        metadata=about("How many times faster than real time; 0 for as fast as possible; needs start_time.", minimum=0),
    )
    count: int | None = field(
        default=None, metadata=about("How many telegrams there are; absent for no end; needs start_time.", minimum=1)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderSettings(InstrumentSettings):
    """A folder into which an instrument or its logger puts finished files."""

    folder: Path = field(metadata=about("The drop folder; it may appear later and disappear for a while."))
    pattern: str = field(
        default="*", metadata=about("Which file names are taken, as a shell pattern; never those that begin with '.'.")
    )
    after: Literal["delete", "move"] = field(
        default="delete",
        metadata=about(
            "What becomes of a file once its observations are on the disk: delete, or move into the subfolder taken/."
        ),
    )
    poll_interval_s: float = field(
        default=2.0,
        metadata=about(
            "Seconds between two looks at the whole folder. The kernel tells of finished files at once; the looks are "
            "for what it does not tell, as of network mounts.",
            minimum=0.05,
        ),
    )
    settle_s: float = field(
        default=60.0,
        metadata=about(
            "Seconds for which a file must not have changed, where its content does not tell that it is whole; longer "
            "than the longest pause of whoever writes it. A file that is renamed into the folder while the agent runs "
            "is finished by definition, and does not rest.",
            minimum=0,
        ),
    )
    max_file_bytes: int = field(
        default=16 << 20,
        metadata=about(
            "A larger file stays where it is, with an alarm. Taking one needs five times its size in memory, for a "
            "moment.",
            minimum=1,
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplaySettings(InstrumentSettings):
    """Recorded files, sent again as if they were measured now; the files stay as they are."""

    path: Path = field(metadata=about("A recorded file, or a folder of them."))
    pattern: str = field(
        default="*", metadata=about("Which file names of the folder are replayed, as a shell pattern.")
    )
    speed_up: float = field(
        default=0.0,
        metadata=about("How many times faster than they were recorded; 0 for as fast as possible.", minimum=0),
    )
    interval_s: float = field(
        default=0.0,
        metadata=about("Recorded seconds between two observations that carry no time of their own.", minimum=0),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamSettings(InstrumentSettings):
    """What all sources have whose bytes come by themselves and are gone when nobody reads them."""

    queue_max_bytes: int = field(
        default=8 << 20,
        metadata=about(
            "Memory for what comes while the disk takes nothing. TCP holds the sender back when it is full; of the "
            "others what does not fit is lost, counted, and an alarm.",
            minimum=1 << 16,
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SerialSettings(StreamSettings):
    """An instrument at a serial port."""

    device: Path = field(
        metadata=about("The port; a name below /dev/serial/by-id/ stays the same when another adapter is plugged in.")
    )
    baud: int = field(default=9600, metadata=about("Bits per second.", minimum=50))
    characters: str = field(
        default="8N1", metadata=about("Data bits (5 to 8), parity (N, E, O, M or S), stop bits (1 or 2).")
    )
    poll_command: str = field(
        default="",
        metadata=about("What is sent to ask for an observation, one character a byte; empty where nobody has to ask."),
    )
    poll_interval_s: float = field(default=15.0, metadata=about("Seconds between two poll_command.", minimum=0.1))


@dataclass(frozen=True, slots=True, kw_only=True)
class TcpClientSettings(StreamSettings):
    """An instrument, or its serial-to-Ethernet converter, that waits for a connection."""

    host: str = field(metadata=about("Its name or address."))
    port: int = field(metadata=about("Its port.", minimum=1))


@dataclass(frozen=True, slots=True, kw_only=True)
class TcpServerSettings(StreamSettings):
    """Instruments that connect to the station; what they send is all of this one instrument."""

    address: str = field(default="0.0.0.0", metadata=about("Address of this station on which to listen."))
    port: int = field(metadata=about("Port on which to listen.", minimum=1))
    max_clients: int = field(default=8, metadata=about("Most connections at a time; more are closed.", minimum=1))


@dataclass(frozen=True, slots=True, kw_only=True)
class UdpSettings(StreamSettings):
    """An instrument that sends datagrams to the station."""

    address: str = field(default="0.0.0.0", metadata=about("Address of this station on which to listen."))
    port: int = field(metadata=about("Port on which to listen.", minimum=1))


SOURCES: dict[str, type[InstrumentSettings]] = {
    "simulated": SimulatedSettings,
    "folder": FolderSettings,
    "replay": ReplaySettings,
    "serial": SerialSettings,
    "tcp-client": TcpClientSettings,
    "tcp-server": TcpServerSettings,
    "udp": UdpSettings,
}


def parse_instrument(entry: Mapping[str, Any]) -> InstrumentSettings:
    """Makes settings of one table [[instruments]].

    Raises:
        InvalidRequestError: A setting is unknown, missing, or out of bounds.
    """
    source = entry.get("source")
    if not isinstance(source, str) or source not in SOURCES:
        raise InvalidRequestError(f"expected instruments.source to be one of {', '.join(SOURCES)}, but got {source!r}")
    settings = make(SOURCES[source], entry, "instruments.")
    _check_instrument(settings)
    return settings


def _check_instrument(settings: InstrumentSettings) -> None:
    check_setting_name("instrument", settings.name)
    _check_framing(settings)
    if isinstance(settings, SerialSettings):
        parse_characters(settings.characters)
        to_bytes("poll_command", settings.poll_command)
    if isinstance(settings, TcpClientSettings | TcpServerSettings | UdpSettings) and settings.port > 65535:
        raise InvalidRequestError(f"expected instruments.port to be at most 65535, but got {settings.port}")
    if isinstance(settings, SimulatedSettings):
        _check_simulated(settings)


def _check_simulated(settings: SimulatedSettings) -> None:
    places = (("latitude_deg", settings.latitude_deg, 90), ("longitude_deg", settings.longitude_deg, 180))
    for key, value, most in places:
        if value is not None and value > most:
            raise InvalidRequestError(f"expected instruments.{key} to be at most {most}, but got {value:g}")
    if settings.start_time is None:
        is_in_present = settings.count is None and settings.speed_up == 1
        if not is_in_present:
            raise InvalidRequestError(
                f"expected a start_time for the simulated instrument {settings.name}, which has a count or a speed_up"
            )


def _check_framing(settings: InstrumentSettings) -> None:
    """Whether the format fits the source, and has what it needs."""
    is_stream = isinstance(settings, StreamSettings)
    known = dict.fromkeys(STREAM_FORMATS if is_stream else FORMATS)
    if is_stream and not isinstance(settings, UdpSettings):
        del known["file"]
    payload_format = settings.payload_format
    if payload_format not in known and (is_stream or payload_format is not None):
        names = ", ".join(known)
        raise InvalidRequestError(
            f"expected instruments.payload_format to be one of {names}, but got {payload_format!r}",
            hint=f"a stream of source {settings.source} is not recognised by its content" if is_stream else "",
        )
    parameters = settings.framing_parameters()
    needed = {"fixed-length": "frame_bytes", "idle-gap": "idle_gap_s"}.get(payload_format or "")
    if needed and getattr(settings, needed) is None:
        raise InvalidRequestError(f"expected instruments.{needed} for payload_format {payload_format}, but got none")
    if not parameters.line_end:
        raise InvalidRequestError("expected instruments.line_end to have a character, but it is empty")
    if payload_format == "fixed-length":
        if len(parameters.frame_start) > parameters.frame_bytes:
            what = f"{len(parameters.frame_start)} bytes for frames of {parameters.frame_bytes}"
            raise InvalidRequestError(f"expected instruments.frame_start to be shorter than a frame, but got {what}")
        if is_stream and parameters.frame_bytes > parameters.max_frame_bytes:
            what = f"{parameters.frame_bytes} and {parameters.max_frame_bytes}"
            raise InvalidRequestError(f"expected frame_bytes to be at most max_frame_bytes, but got {what}")


def check_setting_name(kind: str, name: str) -> None:
    """Raises InvalidRequestError where the name of a station or an instrument is none."""
    try:
        check_name(kind, name)
    except RejectedError as error:
        raise InvalidRequestError(str(error), hint=error.hint) from error
