"""Looks at a station from all sides and says in plain words what is wrong, and what to do. Mends nothing.

This file gathers facts and asks the judgements; what the facts mean stands in findings.py and findings_around.py.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from edge_agent.clock import clock_sync
from edge_agent.control import SOCKET_NAME, ask
from edge_agent.link.certificate_facts import read_facts
from edge_agent.operation.check_disk import buffer_facts, disk_facts, is_locked, last_captures
from edge_agent.operation.check_ports import port_problem
from edge_agent.operation.findings import judge_buffer, judge_clock, judge_disk
from edge_agent.operation.findings_around import (
    AgentFacts,
    InstrumentFacts,
    judge_agent,
    judge_brokers,
    judge_certificate,
    judge_instrument,
)
from edge_agent.operation.install import ACCOUNT, FOLDERS_FILE, UNIT_FILE
from edge_agent.operation.install_texts import SERVICE, write_line
from edge_agent.operation.privileges import may_use
from edge_agent.operation.status_text import unix_s
from edge_agent.settings import AgentSettings, load_settings
from edge_agent.source_settings import (
    FolderSettings,
    InstrumentSettings,
    ReplaySettings,
    SerialSettings,
    StreamSettings,
    TcpServerSettings,
    UdpSettings,
)
from fieldpost.errors import FieldpostError, RejectedError
from fieldpost.findings import Finding
from fieldpost.v1 import command_pb2
from fieldpost.v1 import observation_pb2 as pb

ASK_TIMEOUT_S = 10.0
IMPORT_TIMEOUT_S = 60.0


def check_station(config_file: Path, environment: Mapping[str, str]) -> Iterator[Finding]:
    """All findings, one after the other as they are found.

    Raises:
        RejectedError: A service is installed, and only root can tell what it may do.
    """
    account = ACCOUNT if UNIT_FILE.exists() else ""
    if account and os.geteuid() != 0:
        raise RejectedError(
            "expected to be root, who can look with the service's rights, but got another user",
            hint="sudo fieldpost-agent check",
        )
    now_unix_s = time.time()
    try:
        settings = load_settings(config_file, environment)
    except FieldpostError as error:
        yield Finding("FAIL", "settings", str(error), error.hint)
        return
    instruments = ", ".join(instrument.name for instrument in settings.instruments) or "no instrument"
    yield Finding("OK", "settings", f"{config_file}: station {settings.station}, {instruments}")
    if not settings.instruments:
        hint = f"add a table [[instruments]] to {config_file}"
        yield Finding("WARN", "settings", "without an instrument there is nothing to keep", hint)

    report = _ask_agent(settings)
    is_running = report is not None or is_locked(settings.buffer_folder)
    yield from judge_agent(_agent_facts(report, is_running))
    yield from _looked_at("disk", lambda: judge_disk(disk_facts(settings, now_unix_s)))
    yield from _looked_at("buffer", lambda: judge_buffer(buffer_facts(settings, account)))
    yield from judge_clock(
        is_synchronised=_is_synchronised(), now_unix_s=now_unix_s, has_battery_clock=Path("/dev/rtc0").exists()
    )
    yield from _looked_at(
        "instruments", lambda: _instrument_findings(settings, account, report, now_unix_s, is_running=is_running)
    )
    if settings.certificate_file is not None:
        path = settings.certificate_file
        yield from _looked_at(
            "certificate",
            lambda: judge_certificate(read_facts(path), settings.station, now_unix_s),
            hint='see "Who the station is" in docs/station.md',
        )
    yield from _looked_at("brokers", lambda: _broker_findings(settings, is_running))
    if settings.quick_look == "on":
        yield _quick_look_finding()


def _looked_at(subject: str, look: Callable[[], Iterable[Finding]], hint: str = "see dmesg") -> list[Finding]:
    """What cannot be looked at is a finding, and the rest is looked at all the same."""
    try:
        return list(look())
    except FieldpostError as error:
        return [Finding("FAIL", subject, str(error), error.hint or hint)]
    except OSError as error:
        return [Finding("FAIL", subject, f"it cannot be looked at: {error}", hint)]


def _ask_agent(settings: AgentSettings) -> dict[str, Any] | None:
    """The running agent's own report; None where none answers."""
    command = command_pb2.Command(command_id=uuid.uuid4().hex, report=command_pb2.ReportCommand())
    try:
        report: dict[str, Any] | None = ask(settings.buffer_folder / SOCKET_NAME, command, ASK_TIMEOUT_S).get("report")
    except FieldpostError:
        return None
    return report


def _agent_facts(report: Mapping[str, Any] | None, is_running: bool) -> AgentFacts:
    return AgentFacts(
        has_answered=report is not None,
        is_running=is_running,
        is_online=bool(report and report["is_online"]),
        alarms=list(report["alarms"]) if report else [],
        is_enabled=_is_enabled(),
    )


def _is_enabled() -> bool | None:
    if not Path("/run/systemd/system").is_dir() or shutil.which("systemctl") is None:
        return None
    return subprocess.run(["systemctl", "is-enabled", "--quiet", SERVICE], check=False).returncode == 0


def _is_synchronised() -> bool | None:
    known = {pb.CLOCK_SYNC_SYNCHRONISED: True, pb.CLOCK_SYNC_UNSYNCHRONISED: False}
    return known.get(clock_sync())


def _broker_findings(settings: AgentSettings, is_running: bool) -> Iterator[Finding]:
    try:
        from edge_agent.operation.check_brokers import call_brokers
    except ModuleNotFoundError as error:
        text = f"expected what a station needs to be installed, but there is no module {error.name}"
        yield Finding("FAIL", "brokers", text, "pip install 'fieldpost[edge]'")
        return
    yield from judge_brokers(call_brokers(settings, is_agent_running=is_running))


def _instrument_findings(
    settings: AgentSettings, account: str, report: Mapping[str, Any] | None, now_unix_s: float, *, is_running: bool
) -> Iterator[Finding]:
    reported = {one["instrument"]: unix_s(one["last_capture_time"]) for one in (report or {}).get("instruments", [])}
    captured = {name: at_unix_s for name, at_unix_s in reported.items() if at_unix_s is not None}
    names = {instrument.name for instrument in settings.instruments}
    if not names <= set(captured):
        captured = last_captures(settings.buffer_folder, names) | captured
    for instrument in settings.instruments:
        facts = _instrument_facts(instrument, account, captured.get(instrument.name), is_running=is_running)
        yield from judge_instrument(facts, now_unix_s)


def _instrument_facts(
    instrument: InstrumentSettings, account: str, last_capture_unix_s: float | None, *, is_running: bool
) -> InstrumentFacts:
    path, mode = _path_of(instrument)
    is_in_unit = None
    if isinstance(instrument, FolderSettings) and FOLDERS_FILE.exists():
        is_in_unit = write_line(instrument.folder, "-") in FOLDERS_FILE.read_text().splitlines()
    return InstrumentFacts(
        name=instrument.name,
        source=instrument.source,
        path=str(path or ""),
        is_there=path is None or path.exists(),
        is_usable=path is None or may_use([(path, mode)], account)[0],
        is_in_unit=is_in_unit,
        account=account or "this user",
        last_capture_unix_s=last_capture_unix_s,
        silent_after_s=None if isinstance(instrument, ReplaySettings) else instrument.silent_after_s,
        port=instrument.port if isinstance(instrument, TcpServerSettings | UdpSettings) else None,
        # A second connection, or a second listener, would disturb the agent; it says itself what is wrong.
        problem=port_problem(instrument) if isinstance(instrument, StreamSettings) and not is_running else "",
    )


def _path_of(instrument: InstrumentSettings) -> tuple[Path | None, int]:
    """What the source works on, and what it must be allowed there, as os.access takes it."""
    match instrument:
        case FolderSettings():
            return instrument.folder, os.R_OK | os.W_OK | os.X_OK
        case SerialSettings():
            return instrument.device, os.R_OK | os.W_OK
        case ReplaySettings():
            return instrument.path, os.R_OK
    return None, 0


def _quick_look_finding() -> Finding:
    """In a process of its own: a library for another processor ends whoever imports it."""
    subject = "quick look"
    if importlib.util.find_spec("ai_edge_litert") is None:
        return Finding("FAIL", subject, "it is on, but not installed", "pip install 'fieldpost[quick-look]'")
    command = [sys.executable, "-c", "import ai_edge_litert.interpreter"]
    try:
        status = subprocess.run(command, capture_output=True, timeout=IMPORT_TIMEOUT_S, check=False).returncode
    except subprocess.TimeoutExpired:
        status = -1
    if status:
        text = f"the library does not work on this machine (status {status})"
        return Finding("FAIL", subject, text, 'set quick_look = "off"; recording does not need it')
    return Finding("OK", subject, "the library works")
