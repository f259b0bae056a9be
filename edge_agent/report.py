"""What a station says of itself: to the server as a StationStatus, to the person beside it as status.json. Pure."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime

from fieldpost.v1 import station_pb2 as pb


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
    instruments: list[InstrumentReport] = field(default_factory=list)
    alarms: list[str] = field(default_factory=list)


def to_status(report: Report) -> pb.StationStatus:
    """The message for the server."""
    status = pb.StationStatus(
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
    )
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


def to_json(report: Report) -> bytes:
    """The text of status.json; times as RFC 3339."""
    fields = asdict(report)
    fields["report_time"] = _time(fields.pop("report_unix_s"))
    for instrument in fields["instruments"]:
        instrument["last_capture_time"] = _time(instrument.pop("last_capture_unix_s"))
    return json.dumps(fields, indent=1).encode() + b"\n"


def last_will(station: str) -> bytes:
    """What the broker publishes when the station falls silent."""
    return pb.StationStatus(station=station, is_online=False).SerializeToString()


def _time(unix_s: float | None) -> str | None:
    return None if unix_s is None else datetime.fromtimestamp(unix_s, UTC).isoformat(timespec="seconds")
