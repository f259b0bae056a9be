"""The settings of an instrument and its source: one table [[instruments]] each. Reads no file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from edge_agent.framing import FORMATS
from edge_agent.settings_table import about, make
from fieldpost.errors import InvalidRequestError, RejectedError
from fieldpost.names import check_name


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
    silent_after_s: float = field(
        default=3600.0,
        metadata=about("Seconds without an observation after which the instrument's silence is an alarm.", minimum=1),
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


def check_setting_name(kind: str, name: str) -> None:
    """Raises InvalidRequestError where the name of a station or an instrument is none."""
    try:
        check_name(kind, name)
    except RejectedError as error:
        raise InvalidRequestError(str(error), hint=error.hint) from error
