"""Gathers what a station says of itself, and says it: retained over MQTT, in status.json, in the metrics, in the log.

Knows no source; used by the agent's one thread.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from edge_agent.alarms import Alarms
from edge_agent.buffer import Buffer
from edge_agent.clock import clock_error_s, clock_sync
from edge_agent.delivery import Delivery
from edge_agent.intake import Intake
from edge_agent.link.uplink import Uplink
from edge_agent.report import Report, disk_left_days, silent_instruments, to_json, to_status
from edge_agent.settings import AgentSettings
from edge_agent.storage.durable import disk_free_bytes, replace_file
from fieldpost._version import __version__
from fieldpost.errors import FieldpostError, OfflineError
from fieldpost.names import status_topic

logger = logging.getLogger(__name__)

STATUS_FILE = "status.json"
STATUS_FILE_INTERVAL_S = 30.0  # and at every change of alarms: an SD card counts its writes
LOG_INTERVAL_S = 3600.0
TEMPERATURE_FILE = Path("/sys/class/thermal/thermal_zone0/temp")


class Reporter:
    """When a station last said how it is, and when it is due again.

    Args:
        settings: The station's settings.
        buffer: Its buffer.
        uplink: Its way to the server.
        delivery: What it has sent.
        intake: What its instruments have given.
        alarms: What is wrong with it.
        silent_after_s: For each instrument that never ends, after how long its silence is an alarm.
        quick_look: The model in use, and what is wrong with it.
    """

    def __init__(
        self,
        settings: AgentSettings,
        buffer: Buffer,
        uplink: Uplink,
        delivery: Delivery,
        intake: Intake,
        alarms: Alarms,
        silent_after_s: Mapping[str, float],
        quick_look: Callable[[], tuple[str, str]],
    ) -> None:
        self._settings = settings
        self._buffer = buffer
        self._uplink = uplink
        self._delivery = delivery
        self._intake = intake
        self._alarms = alarms
        self._silent_after_s = silent_after_s
        self._quick_look = quick_look
        self._begun_s = time.monotonic()
        self._quarantined_count = buffer.quarantine.count()
        self.command_count = 0
        """Commands carried out or refused since the last report."""
        # When each is due next, on the monotonic clock.
        self._report_at_s = self._file_at_s = 0.0
        self._log_at_s = self._begun_s + LOG_INTERVAL_S

    @property
    def wake_at_s(self) -> float:
        """When a report is due, on the monotonic clock."""
        return min(self._report_at_s, self._file_at_s)

    def apply(self, settings: AgentSettings) -> None:
        """Takes changed settings."""
        self._settings = settings
        self.hurry()

    def hurry(self) -> None:
        """Makes the next report due now."""
        self._report_at_s = 0.0

    def note_quarantined(self, instrument: str, *, is_new: bool) -> None:
        """An input was set aside."""
        self._intake.instruments[instrument].quarantined_count += 1
        self._quarantined_count += is_new
        folder = self._buffer.quarantine.folder
        self._alarms.set("quarantine", f"{self._quarantined_count} inputs could not be framed: see {folder}")

    def work(self, now_s: float) -> None:
        """Says what is due, and at once where an alarm began or ended."""
        is_report_due = self._alarms.is_changed or now_s >= self._report_at_s
        if is_report_due or now_s >= self._file_at_s:
            self._file_at_s = now_s + STATUS_FILE_INTERVAL_S
            if is_report_due:
                self._report_at_s = now_s + self._settings.status_interval_s
                self._look_for_alarms(now_s)
                self._alarms.is_changed = False  # what goes wrong while it is told is told the next time
            # Gathered once for all who are told: it looks at every day file.
            report = self.report(is_online=bool(self._delivery.broker_url))
            if is_report_due:
                self.publish(report)
                self._write_metrics(report)
            self.write_file(report)
        if now_s >= self._log_at_s:
            self._log_at_s = now_s + LOG_INTERVAL_S
            self._log()

    def report(self, *, is_online: bool) -> Report:
        """How the station is now."""
        free_bytes = disk_free_bytes(self._buffer.folder)
        files = self._buffer.files()
        return Report(
            station=self._settings.station,
            report_unix_s=time.time(),
            is_online=is_online,
            software_version=__version__,
            epoch=self._buffer.epoch,
            last_sequence=self._buffer.last_sequence,
            backlog_count=self._delivery.backlog_count,
            in_flight_count=self._delivery.in_flight_count,
            rejected_count=self._buffer.ledger.refused_count(),
            quarantined_count=self._quarantined_count,
            disk_free_bytes=free_bytes,
            buffer_bytes=self._buffer.size_bytes(),
            command_count=self.command_count,
            broker_url=self._delivery.broker_url,
            clock_sync=clock_sync(),
            clock_error_s=clock_error_s(),
            temperature_celsius=_temperature_celsius(),
            dropped_count=len(self._buffer.ledger.dropped),
            disk_left_days=disk_left_days(files, free_bytes, time.time()),
            quick_look_model=self._quick_look()[0],
            certificate_expiry_unix_s=self._uplink.certificate_expiry_unix_s,
            instruments=list(self._intake.instruments.values()),
            alarms=self._alarms.texts(),
        )

    def publish(self, report: Report) -> None:
        """Tells the server; while offline it is told nothing, and would learn nothing from it later."""
        try:
            self._uplink.publish(
                status_topic(self._settings.station), to_status(report).SerializeToString(), is_retained=True
            )
        except OfflineError:
            return
        self.command_count = 0

    def write_file(self, report: Report) -> None:
        """Writes status.json. It is read while no agent runs, so a disk that takes nothing is an alarm and no more."""
        try:
            replace_file(self._buffer.folder / STATUS_FILE, to_json(report), is_synced=False)
        except FieldpostError as error:
            self._alarms.set("status file", f"the status file cannot be written: {error}")
        else:
            self._alarms.set("status file", "")

    def _look_for_alarms(self, now_s: float) -> None:
        is_low = disk_free_bytes(self._buffer.folder) < self._settings.disk_free_alarm_bytes
        self._alarms.set("disk space", "the buffer's disk is nearly full" if is_low else "")
        silent = silent_instruments(self._intake.seen_s, self._silent_after_s, self._begun_s, now_s)
        for instrument in self._silent_after_s:
            silent_s = silent.get(instrument)
            text = f"{instrument}: no observation for {silent_s / 60:.0f} min" if silent_s is not None else ""
            self._alarms.set(f"silent {instrument}", text)
        self._alarms.set("certificate", self._uplink.alarm)
        self._alarms.set("quick look", self._quick_look()[1])

    def _write_metrics(self, report: Report) -> None:
        if self._settings.metrics_file is None:
            return
        from edge_agent.operation.metrics import write_metrics  # for those who want it

        try:
            write_metrics(self._settings.metrics_file, report)
        except FieldpostError as error:
            self._alarms.set("metrics", f"the metrics file cannot be written: {error}")
        else:
            self._alarms.set("metrics", "")

    def _log(self) -> None:
        captured_count = sum(report.captured_count for report in self._intake.instruments.values())
        facts = {"captured_count": captured_count, "last_sequence": self._buffer.last_sequence}
        logger.info(
            "station at work",
            extra=facts | {"backlog_count": self._delivery.backlog_count, "broker_url": self._delivery.broker_url},
        )


def _temperature_celsius() -> float | None:
    """Of the processor; None where there is no sensor."""
    try:
        return int(TEMPERATURE_FILE.read_text()) / 1000
    except (OSError, ValueError):
        return None
