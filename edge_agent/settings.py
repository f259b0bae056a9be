"""The station's settings: one TOML file, and FIELDPOST_AGENT_<KEY> in the environment over its scalars.

Every setting is described where it is declared; docs/settings.md is made from describe_settings. Reads nothing but the
file and the environment that it is given.
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from edge_agent.settings_table import about, describe, from_environment, make
from edge_agent.source_settings import SOURCES, InstrumentSettings, check_setting_name, parse_instrument
from fieldpost.broker_url import parse_broker_url
from fieldpost.errors import InvalidRequestError

ENVIRONMENT_PREFIX = "FIELDPOST_AGENT_"


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
        default=4.0,
        metadata=about(
            "Seconds without a receipt before observations are sent again; longer where receipts take long.",
            minimum=0.1,
        ),
    )
    rate_limit_bytes_per_s: int = field(
        default=0,
        metadata=about(
            "Most payload bytes sent in a second, on average; 0 for no limit. For metered links.",
            minimum=0,
            is_remote=True,
        ),
    )
    status_interval_s: float = field(
        default=60.0, metadata=about("Seconds between two reports of the station.", minimum=1, is_remote=True)
    )
    clock_wait_s: float = field(
        default=120.0,
        metadata=about(
            "Seconds after the start for which observations wait to be sent while the clock is not synchronised, so "
            "that their times can be corrected first; 0 to wait for nothing.",
            minimum=0,
        ),
    )
    retention_days: int = field(
        default=1096, metadata=about("Days for which delivered observations are kept.", minimum=1, is_remote=True)
    )
    buffer_max_bytes: int = field(
        default=0,
        metadata=about(
            "Ceiling of the buffer's size; 0 for none but the disk's. Beyond it the oldest day files go, delivered "
            "ones first.",
            minimum=0,
            is_remote=True,
        ),
    )
    disk_free_floor_bytes: int = field(
        default=256 << 20,
        metadata=about(
            "With less free space than this, delivered day files go before their time, the oldest first.",
            minimum=0,
            is_remote=True,
        ),
    )
    when_full: Literal["drop-oldest", "wait"] = field(
        default="drop-oldest",
        metadata=about(
            "What happens when the disk, or the buffer's ceiling, is full of undelivered observations: drop-oldest "
            "gives up the oldest of them, and says so; wait leaves new observations with their sources until there is "
            "room, where the source can keep them.",
            is_remote=True,
        ),
    )
    day_file_max_bytes: int = field(
        default=256 << 20, metadata=about("A day file that would grow larger is followed by another.", minimum=4096)
    )
    disk_free_alarm_bytes: int = field(
        default=1 << 30, metadata=about("Less free space than this is an alarm.", minimum=0, is_remote=True)
    )
    quick_look: Literal["off", "on"] = field(
        default="off",
        metadata=about("Whether a small model on the station adds a first estimate; needs fieldpost[quick-look]."),
    )
    quick_look_budget_ms: int = field(
        default=200,
        metadata=about(
            "Milliseconds that the first estimate of one observation may take; later it goes without.", minimum=1
        ),
    )
    model_key_file: Path | None = field(
        default=None,
        metadata=about(
            "PEM file of the Ed25519 public key that signs models for this station; absent to take no model but the "
            "one that came with the software."
        ),
    )
    metrics_file: Path | None = field(
        default=None,
        metadata=about(
            "Text file in the Prometheus format, written with each report, for the node exporter's textfile collector."
        ),
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = field(
        default="INFO", metadata=about("What is logged.", is_remote=True)
    )
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
    values["instruments"] = tuple(parse_instrument(entry) for entry in instruments)
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


def _check_agent(settings: AgentSettings) -> None:
    check_setting_name("station", settings.station)
    for url in settings.broker_urls:
        parse_broker_url(url)
    names = [instrument.name for instrument in settings.instruments]
    for name in names:
        if names.count(name) > 1:
            raise InvalidRequestError(f"expected instruments of different names, but two are called {name}")
    if (settings.certificate_file is None) != (settings.key_file is None):
        raise InvalidRequestError("expected certificate_file and key_file together, but got one without the other")
