"""A report as text in the Prometheus format, for the node exporter to pick up. Knows no network and serves nothing.

Written by hand: the library costs the station 14 MB of memory. To add a metric, add a line to a table.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from edge_agent.report import InstrumentReport, Report
from edge_agent.storage.durable import disk_error, replace_file
from fieldpost.v1 import observation_pb2 as pb

DAY_S = 86400


class Metric(NamedTuple):
    """One metric.

    Attributes:
        name: Without the prefix; the unit, or total for a counter, at its end.
        kind: gauge or counter.
        help: What it says, in a sentence.
        attribute: Of the report. Where that is None, the metric is left out.
        factor: What to multiply with.
    """

    name: str
    kind: str
    help: str
    attribute: str
    factor: float = 1


PREFIX = "fieldpost_station_"
STATION_METRICS = (
    Metric("report_timestamp_seconds", "gauge", "When the station said all this.", "report_unix_s"),
    Metric("online", "gauge", "1 while connected to a broker.", "is_online"),
    Metric("last_sequence", "gauge", "The highest sequence in the buffer.", "last_sequence"),
    Metric("backlog_observations", "gauge", "Observations for which no receipt has come.", "backlog_count"),
    Metric("in_flight_observations", "gauge", "Observations sent and not yet receipted.", "in_flight_count"),
    Metric("refused_observations", "gauge", "Observations that the server refused.", "rejected_count"),
    Metric("quarantined_inputs", "gauge", "Inputs that could not be framed.", "quarantined_count"),
    Metric("dropped_observations", "gauge", "Undelivered ones that a full disk cost.", "dropped_count"),
    Metric("disk_free_bytes", "gauge", "Free on the buffer's disk.", "disk_free_bytes"),
    Metric("buffer_bytes", "gauge", "Used by the buffer.", "buffer_bytes"),
    Metric("disk_lasts_seconds", "gauge", "For how long the disk lasts at the present rate.", "disk_left_days", DAY_S),
    Metric("clock_error_seconds", "gauge", "How far the clock may be off.", "clock_error_s"),
    Metric("temperature_celsius", "gauge", "Of the processor.", "temperature_celsius"),
    Metric(
        "certificate_expiry_timestamp_seconds",
        "gauge",
        "When the station's certificate ends.",
        "certificate_expiry_unix_s",
    ),
)
INSTRUMENT_METRICS = (
    Metric("captured_observations_total", "counter", "Captured since the agent started.", "captured_count"),
    Metric("last_capture_timestamp_seconds", "gauge", "When the last one was captured.", "last_capture_unix_s"),
    Metric("set_aside_inputs_total", "counter", "Inputs of this instrument set aside.", "quarantined_count"),
)


def exposition(report: Report) -> str:
    """The text exposition of a report (format 0.0.4)."""
    return "".join(f"{line}\n" for line in _lines(report))


def write_metrics(path: Path, report: Report) -> None:
    """Replaces the metrics file; a reader never sees a part of it. It is not synced: after a power cut it is stale.

    Raises:
        TryAgainError: The disk is full.
        BrokenStateError: The folder is gone, or refuses.
    """
    replace_file(path, exposition(report).encode(), is_synced=False)
    try:
        # The node exporter is another user; there is nothing secret in it.
        path.chmod(0o644)
    except OSError as error:
        raise disk_error(error, path) from error


def _lines(report: Report) -> Iterator[str]:
    station = {"station": report.station}
    info = {"software_version": report.software_version, "epoch": report.epoch}
    info["quick_look_model"] = report.quick_look_model
    yield from _head("info", "gauge", "What the station is, in its labels; always 1.")
    yield _sample("info", station | info, 1)
    for metric in STATION_METRICS:
        value = getattr(report, metric.attribute)
        if value is not None:
            yield from _head(metric.name, metric.kind, metric.help)
            yield _sample(metric.name, station, value * metric.factor)
    if report.clock_sync != pb.CLOCK_SYNC_UNSPECIFIED:
        yield from _head("clock_synchronised", "gauge", "1 while the clock is synchronised.")
        yield _sample("clock_synchronised", station, report.clock_sync == pb.CLOCK_SYNC_SYNCHRONISED)
    yield from _head("alarms", "gauge", "How many things are wrong.")
    yield _sample("alarms", station, len(report.alarms))
    yield from _instrument_lines(station, report.instruments)


def _instrument_lines(station: dict[str, str], instruments: list[InstrumentReport]) -> Iterator[str]:
    for metric in INSTRUMENT_METRICS:
        values = [(one.instrument, getattr(one, metric.attribute)) for one in instruments]
        present = [(name, value) for name, value in values if value is not None]
        if present:
            yield from _head(metric.name, metric.kind, metric.help)
        for name, value in present:
            yield _sample(metric.name, station | {"instrument": name}, value * metric.factor)


def _head(name: str, kind: str, help_text: str) -> Iterator[str]:
    yield f"# HELP {PREFIX}{name} {help_text}"
    yield f"# TYPE {PREFIX}{name} {kind}"


def _sample(name: str, labels: dict[str, str], value: Any) -> str:
    inside = ",".join(f'{label}="{_escape(text)}"' for label, text in labels.items())
    # repr keeps all digits of a time; a whole number stays one.
    number = int(value) if float(value).is_integer() else float(value)
    return f"{PREFIX}{name}{{{inside}}} {number!r}"


def _escape(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
