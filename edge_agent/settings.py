"""The station's settings: one TOML file, and FIELDPOST_AGENT_<KEY> in the environment over its scalars.

Every setting is described where it is declared; docs/settings.md is made from describe_settings. Reads nothing but the
file and the environment that it is given.
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from edge_agent.framing import FORMATS
from edge_agent.settings_table import about, describe, from_environment, make
from fieldpost.broker_url import parse_broker_url
from fieldpost.errors import InvalidRequestError, RejectedError
from fieldpost.names import check_name

ENVIRONMENT_PREFIX = "FIELDPOST_AGENT_"


@dataclass(frozen=True, slots=True, kw_only=True)
class InstrumentSettings:
    """What all sources have."""

    name: str = field(metadata=about("Name of the instrument, unique at its station: a-z, 0-9 and '-'."))
    source: str = field(metadata=about("Where its bytes come from: simulated, folder or replay."))
    payload_format: str | None = field(
        default=None,
        metadata=about(
            f"How its bytes are framed: {', '.join(FORMATS)}; absent to recognise each file by its content."
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedSettings(InstrumentSettings):
    """A CL51 that does not exist, above a sky that does not either."""

    seed: int = field(
        default=1, metadata=about("Seed of the simulated sky; the same seed gives the same telegrams.", minimum=0)
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
        default=2.0, metadata=about("Seconds between two looks at the folder.", minimum=0.05)
    )
    settle_s: float = field(
        default=60.0,
        metadata=about(
            "Seconds for which a file must not have changed, where its content does not tell that it is whole; longer "
            "than the longest pause of whoever writes it.",
            minimum=0,
        ),
    )
    max_file_bytes: int = field(
        default=256 << 20, metadata=about("A larger file stays where it is, with an alarm.", minimum=1)
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


SOURCES: dict[str, type[InstrumentSettings]] = {
    "simulated": SimulatedSettings,
    "folder": FolderSettings,
    "replay": ReplaySettings,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSettings:
    """All settings of one station."""

    station: str = field(
        metadata=about("Name of the station: a-z, 0-9 and '-'; equal to the common name of its certificate.")
    )
    broker_urls: tuple[str, ...] = field(
        metadata=about("Brokers, mqtt://host:port or mqtts://host:port; the next one is tried when one fails.")
    )
    buffer_folder: Path = field(metadata=about("Where the buffer lies; on a disk of its own where possible."))
    ca_file: Path | None = field(
        default=None, metadata=about("PEM file of the authorities that sign the brokers; absent for the system's.")
    )
    certificate_file: Path | None = field(default=None, metadata=about("PEM file of the station's certificate."))
    key_file: Path | None = field(default=None, metadata=about("PEM file of the certificate's private key."))
    keepalive_s: int = field(
        default=30, metadata=about("Seconds after which a silent connection is probed.", minimum=1)
    )
    window_observations: int = field(
        default=256, metadata=about("Most observations sent and not yet receipted.", minimum=1)
    )
    window_bytes: int = field(
        default=4 << 20, metadata=about("Most payload bytes sent and not yet receipted.", minimum=1024)
    )
    bundle_observations: int = field(default=64, metadata=about("Most observations in one message.", minimum=1))
    bundle_bytes: int = field(
        default=512 << 10,
        metadata=about("Most payload bytes in one message; one larger observation goes alone.", minimum=1024),
    )
    resend_after_s: float = field(
        default=4.0, metadata=about("Seconds without a receipt before observations are sent again.", minimum=0.1)
    )
    status_interval_s: float = field(
        default=60.0, metadata=about("Seconds between two reports of the station.", minimum=1)
    )
    retention_days: int = field(
        default=1096, metadata=about("Days for which delivered observations are kept.", minimum=1)
    )
    day_file_max_bytes: int = field(
        default=256 << 20, metadata=about("A day file that would grow larger is followed by another.", minimum=4096)
    )
    disk_free_alarm_bytes: int = field(
        default=1 << 30, metadata=about("Less free space than this is an alarm.", minimum=0)
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = field(default="INFO", metadata=about("What is logged."))
    instruments: tuple[InstrumentSettings, ...] = field(
        default=(), metadata=about("The instruments, each a table [[instruments]].")
    )


def load_settings(path: Path, environment: Mapping[str, str]) -> AgentSettings:
    """Reads the settings.

    Args:
        path: The TOML file.
        environment: Usually os.environ.

    Raises:
        InvalidRequestError: The file cannot be read, or a setting is unknown, missing, or out of bounds.
    """
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        message = f"expected a settings file at {path}, but got {error}"
        raise InvalidRequestError(message, hint="see docs/station.md") from error
    try:
        table = tomllib.loads(content)
    except tomllib.TOMLDecodeError as error:
        raise InvalidRequestError(f"expected TOML in {path}, but got {error}") from error
    return parse_settings(table, environment)


def parse_settings(table: Mapping[str, Any], environment: Mapping[str, str]) -> AgentSettings:
    """Makes settings of a table as tomllib gives it.

    Raises:
        InvalidRequestError: A setting is unknown, missing, or out of bounds.
    """
    values = {**table, **from_environment(AgentSettings, environment, ENVIRONMENT_PREFIX)}
    instruments = values.pop("instruments", [])
    if not isinstance(instruments, list) or not all(isinstance(entry, dict) for entry in instruments):
        raise InvalidRequestError("expected instruments to be tables [[instruments]], but got something else")
    values["instruments"] = tuple(_parse_instrument(entry) for entry in instruments)
    settings = make(AgentSettings, values)
    _check_agent(settings)
    return settings


def describe_settings() -> list[tuple[str, str, str, str]]:
    """All settings: (key, type, default, description), in the order of their declaration; "" for no default."""
    station = [f for f in dataclasses.fields(AgentSettings) if f.name != "instruments"]
    rows = [(f.name, *describe(AgentSettings, f)) for f in station]
    common = dataclasses.fields(InstrumentSettings)
    rows += [(f"instruments.{f.name}", *describe(InstrumentSettings, f)) for f in common]
    for source, settings in SOURCES.items():
        own = dataclasses.fields(settings)[len(common) :]
        rows += [(f"instruments.{f.name} (source {source})", *describe(settings, f)) for f in own]
    return rows


def _parse_instrument(entry: Mapping[str, Any]) -> InstrumentSettings:
    source = entry.get("source")
    if not isinstance(source, str) or source not in SOURCES:
        raise InvalidRequestError(f"expected instruments.source to be one of {', '.join(SOURCES)}, but got {source!r}")
    settings = make(SOURCES[source], entry, "instruments.")
    _check_instrument(settings)
    return settings


def _check_agent(settings: AgentSettings) -> None:
    _check_name("station", settings.station)
    for url in settings.broker_urls:
        parse_broker_url(url)
    names = [instrument.name for instrument in settings.instruments]
    for name in names:
        if names.count(name) > 1:
            raise InvalidRequestError(f"expected instruments of different names, but two are called {name}")
    if (settings.certificate_file is None) != (settings.key_file is None):
        raise InvalidRequestError("expected certificate_file and key_file together, but got one without the other")


def _check_instrument(settings: InstrumentSettings) -> None:
    _check_name("instrument", settings.name)
    if settings.payload_format is not None and settings.payload_format not in FORMATS:
        known = ", ".join(FORMATS)
        raise InvalidRequestError(
            f"expected instruments.payload_format to be one of {known}, but got {settings.payload_format!r}"
        )
    if isinstance(settings, SimulatedSettings) and settings.start_time is None:
        is_in_present = settings.count is None and settings.speed_up == 1
        if not is_in_present:
            raise InvalidRequestError(
                f"expected a start_time for the simulated instrument {settings.name}, which has a count or a speed_up"
            )


def _check_name(kind: str, name: str) -> None:
    try:
        check_name(kind, name)
    except RejectedError as error:
        raise InvalidRequestError(str(error), hint=error.hint) from error
