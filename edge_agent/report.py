"""What a station says of itself: to the server as a StationStatus, to the person beside it as status.json. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

from edge_agent.storage.retention import StoredFile
from fieldpost.v1 import observation_pb2 as pb
from fieldpost.v1 import station_pb2

_CLOCK_SYNC_WORDS = {
    pb.CLOCK_SYNC_UNSPECIFIED: "unknown",
    pb.CLOCK_SYNC_SYNCHRONISED: "synchronised",
    pb.CLOCK_SYNC_UNSYNCHRONISED: "unsynchronised",
}


@dataclass(slots=True)
class InstrumentReport:
    """One instrument since the agent started.

    Attributes:
        instrument: Its name.
        captured_count: Observations captured.
        last_capture_unix_s: When the last one was captured; None where none was.
        quarantined_count: Inputs set aside.
    """

    instrument: str
    captured_count: int = 0
    last_capture_unix_s: float | None = None
    quarantined_count: int = 0


@dataclass(frozen=True, slots=True)
class Report:
    """The state of a station at one moment. The names are those of StationStatus."""

    station: str
    report_unix_s: float
    is_online: bool
    software_version: str
    epoch: str
    last_sequence: int
    backlog_count: int
    in_flight_count: int
    rejected_count: int
    quarantined_count: int
    disk_free_bytes: int
    buffer_bytes: int
    command_count: int = 0
    broker_url: str = ""
    clock_sync: pb.ClockSync.ValueType = pb.CLOCK_SYNC_UNSPECIFIED
    clock_error_s: float | None = None
    temperature_celsius: float | None = None
    dropped_count: int = 0
    disk_left_days: float | None = None
    quick_look_model: str = ""
    certificate_expiry_unix_s: float | None = None
    instruments: list[InstrumentReport] = field(default_factory=list)
    alarms: list[str] = field(default_factory=list)


def to_status(report: Report) -> station_pb2.StationStatus:
    """The message for the server."""
    status = station_pb2.StationStatus(
        station=report.station,
        is_online=report.is_online,
        software_version=report.software_version,
        epoch=report.epoch,
        last_sequence=report.last_sequence,
        backlog_count=report.backlog_count,
        rejected_count=report.rejected_count,
        quarantined_count=report.quarantined_count,
        disk_free_bytes=report.disk_free_bytes,
        buffer_bytes=report.buffer_bytes,
        command_count=report.command_count,
        alarms=report.alarms,
        clock_sync=report.clock_sync,
        clock_error_seconds=report.clock_error_s,
        temperature_celsius=report.temperature_celsius,
        dropped_count=report.dropped_count,
        disk_left_days=report.disk_left_days,
        quick_look_model=report.quick_look_model,
    )
    if report.certificate_expiry_unix_s is not None:
        status.certificate_expiry_time.FromNanoseconds(round(report.certificate_expiry_unix_s * 1e9))
    status.report_time.FromNanoseconds(round(report.report_unix_s * 1e9))
    for instrument in report.instruments:
        entry = status.instruments.add(
            instrument=instrument.instrument,
            captured_count=instrument.captured_count,
            quarantined_count=instrument.quarantined_count,
        )
        if instrument.last_capture_unix_s is not None:
            entry.last_capture_time.FromNanoseconds(round(instrument.last_capture_unix_s * 1e9))
    return status


def to_dict(report: Report) -> dict[str, Any]:
    """The report for JSON; times as RFC 3339."""
    fields = asdict(report)
    fields["report_time"] = _time(fields.pop("report_unix_s"))
    fields["certificate_expiry_time"] = _time(fields.pop("certificate_expiry_unix_s"))
    fields["clock_sync"] = _CLOCK_SYNC_WORDS[report.clock_sync]
    for instrument in fields["instruments"]:
        instrument["last_capture_time"] = _time(instrument.pop("last_capture_unix_s"))
    return fields


def to_json(report: Report) -> bytes:
    """The text of status.json."""
    return json.dumps(to_dict(report), indent=1).encode() + b"\n"


def last_will(station: str) -> bytes:
    """What the broker publishes when the station falls silent."""
    return station_pb2.StationStatus(station=station, is_online=False).SerializeToString()


def _time(unix_s: float | None) -> str | None:
    return None if unix_s is None else datetime.fromtimestamp(unix_s, UTC).isoformat(timespec="seconds")


def silent_instruments(
    seen_s: Mapping[str, float], silent_after_s: Mapping[str, float], begun_s: float, now_s: float
) -> dict[str, float]:
    """The instruments that have given nothing for too long, and for how long, in seconds. All times are monotonic.

    Args:
        seen_s: When each gave something last; absent where it never did.
        silent_after_s: After how long its silence is too long.
        begun_s: When one began to listen.
        now_s: The time now.
    """
    silences = {instrument: now_s - seen_s.get(instrument, begun_s) for instrument in silent_after_s}
    return {instrument: silent_s for instrument, silent_s in silences.items() if silent_s > silent_after_s[instrument]}


def disk_left_days(files: Sequence[StoredFile], disk_free_bytes: int, now_unix_s: float) -> float | None:
    """For how many days the free space lasts at the rate of the last week; None where that is not known yet."""
    today = datetime.fromtimestamp(now_unix_s, UTC).date()
    recent = [file for file in files if 1 <= (today - file.day).days <= 7]
    if not recent:
        return None
    days = (today - min(file.day for file in recent)).days
    return disk_free_bytes / max(1.0, sum(file.size_bytes for file in recent) / days)
