"""A station's report as a page that a person takes in at a glance. Pure; asks nobody and reads no clock.

The report is a dictionary as in status.json. What an older or a newer agent does not say is left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from enum import Enum
from typing import Any

from fieldpost.words import DAY_S, count, size, span, table

STALE_S = 150.0
"""The agent writes status.json every half minute; what is older than this was left by one that is gone."""
CERTIFICATE_WARNING_S = 30 * DAY_S
_LABEL_WIDTH = 14


class Presence(Enum):
    """Of the agent whose report it is."""

    LIVE = "live"
    """It said so just now."""
    MUTE = "mute"
    """It holds the buffer and does not answer; the report is what it last wrote."""
    GONE = "gone"
    """There is none; the report is what it last wrote."""


_ABSENCE = {Presence.MUTE: "NO ANSWER", Presence.GONE: "NOT RUNNING"}
_ABSENCE_WORDS = {
    Presence.MUTE: "the agent runs, but does not answer: it may be starting, or trying a model; ask again",
    Presence.GONE: "the agent is not running: nothing is recorded",
}


def status_page(report: Mapping[str, Any], now_unix_s: float, presence: Presence) -> str:
    """The page.

    Args:
        report: What the agent said.
        now_unix_s: The present.
        presence: When it said so.
    """
    return "\n".join(_lines(report, now_unix_s, presence))


def unix_s(time: str | None) -> float | None:
    """An instant as status.json has it; None where there is none."""
    return None if not time else datetime.fromisoformat(time).timestamp()


def _lines(report: Mapping[str, Any], now_unix_s: float, presence: Presence) -> Iterator[str]:
    is_live = presence is Presence.LIVE
    yield f"{'station':{_LABEL_WIDTH}}{report['station']}   {_link(report) if is_live else _ABSENCE_WORDS[presence]}"
    if not is_live:
        yield ""
        yield f"{_ABSENCE[presence]:{_LABEL_WIDTH}}{_silence(report, now_unix_s)}"
    alarms = report.get("alarms", [])
    if alarms:
        yield ""
        yield from (f"{'ALARM':{_LABEL_WIDTH}}{text}" for text in alarms)
    yield ""
    for label, text in _facts(report, now_unix_s):
        yield f"{label:{_LABEL_WIDTH}}{text}"
    if report.get("instruments"):
        yield ""
        yield from table(list(_instrument_rows(report["instruments"], now_unix_s)))
    if not alarms and is_live:
        yield ""
        yield "no alarms"


def _link(report: Mapping[str, Any]) -> str:
    if report.get("is_online"):
        return f"ONLINE, with {report['broker_url']}" if report.get("broker_url") else "ONLINE"
    return "OFFLINE: it records, and sends when there is a connection"


def _silence(report: Mapping[str, Any], now_unix_s: float) -> str:
    since_s = now_unix_s - (unix_s(report.get("report_time")) or 0.0)
    when = report.get("report_time")
    if since_s < STALE_S:
        return f"status.json was last written at {when}; what follows is from there"
    return f"nobody has written status.json for {span(since_s)} (since {when}); what follows is from then"


def _facts(report: Mapping[str, Any], now_unix_s: float) -> Iterator[tuple[str, str]]:
    under_way = report.get("in_flight_count", 0)
    waiting = count(report["backlog_count"], "observation")
    if report["backlog_count"]:
        yield "backlog", f"{waiting} not yet receipted, {under_way:,} of them under way"
    else:
        but = " but what it refused" if report.get("rejected_count") else ""
        yield "backlog", f"none: the server holds everything{but}"
    yield "disk", ", ".join(_disk_parts(report))
    if clock := _clock(report):
        yield "clock", clock
    expiry_s = unix_s(report.get("certificate_expiry_time"))
    if expiry_s is not None:
        yield "certificate", _certificate(expiry_s, now_unix_s)
    if report.get("temperature_celsius") is not None:
        yield "temperature", f"{report['temperature_celsius']:.0f} °C"
    if report.get("quick_look_model"):
        yield "quick look", report["quick_look_model"]
    losses = [
        count(report.get("rejected_count", 0), "observation") + " refused by the server",
        count(report.get("quarantined_count", 0), "input") + " in quarantine",
    ]
    if report.get("dropped_count"):
        losses.append(count(report["dropped_count"], "observation") + " LOST to a full disk")
    yield "set aside", ", ".join(losses)
    yield "numbering", f"last sequence {report['last_sequence']:,} of buffer {report['epoch'][:8]}"
    yield "software", str(report.get("software_version", "?"))


def _disk_parts(report: Mapping[str, Any]) -> Iterator[str]:
    yield f"{size(report['buffer_bytes'])} of observations"
    yield f"{size(report['disk_free_bytes'])} free"
    if report.get("disk_left_days") is not None:
        yield f"lasts for {span(report['disk_left_days'] * DAY_S)} at the present rate"


def _clock(report: Mapping[str, Any]) -> str:
    words = {"synchronised": "synchronised", "unsynchronised": "NOT synchronised: times may be wrong"}
    text = words.get(report.get("clock_sync", ""), "")
    error_s = report.get("clock_error_s")
    if text and error_s is not None:
        text += f", within {error_s * 1000:,.0f} ms" if error_s < 1 else f", off by up to {span(error_s)}"
    return text


def _certificate(expiry_unix_s: float, now_unix_s: float) -> str:
    day = datetime.fromtimestamp(expiry_unix_s).astimezone().date().isoformat()
    left_s = expiry_unix_s - now_unix_s
    if left_s < 0:
        return f"ENDED on {day}, {span(-left_s)} ago"
    return f"ends on {day}, in {span(left_s)}" + ("  <- RENEW IT" if left_s < CERTIFICATE_WARNING_S else "")


def _instrument_rows(instruments: list[Mapping[str, Any]], now_unix_s: float) -> Iterator[tuple[str, ...]]:
    yield ("instrument", "last observation", "since the start", "set aside")
    for instrument in instruments:
        last_s = unix_s(instrument.get("last_capture_time"))
        when = "none since the start" if last_s is None else f"{span(now_unix_s - last_s)} ago"
        captured, quarantined = instrument.get("captured_count", 0), instrument.get("quarantined_count", 0)
        yield (str(instrument["instrument"]), when, f"{captured:,}", f"{quarantined:,}")
