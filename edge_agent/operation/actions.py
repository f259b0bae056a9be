"""What each command but run does: asks the running agent where there is one, and prints. Decides nothing.

Each takes the parsed command line and returns the exit status.
"""

from __future__ import annotations

import argparse
import json
import os
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from edge_agent.control import ANSWER_TIMEOUT_S, SOCKET_NAME, ask
from edge_agent.operation.privileges import become_owner_of
from edge_agent.operation.status_text import Presence, status_page
from edge_agent.settings import AgentSettings, load_settings
from fieldpost.errors import InvalidRequestError, RejectedError, TryAgainError
from fieldpost.v1 import command_pb2
from fieldpost.words import count, size, tree

EXIT_FAILED = 1
ASK_TIMEOUT_S = 20.0


def install(options: argparse.Namespace) -> int:
    """The command `install`."""
    from edge_agent.operation import install as installing

    folders = {}
    for text in options.instrument_folder:
        name, equals, path = text.partition("=")
        if not equals or not name or not path:
            raise InvalidRequestError(f"expected --instrument-folder NAME=PATH, but got {text!r}")
        folders[name] = Path(path)
    steps: list[dict[str, str]] = []

    def say(done: str, what: str) -> None:
        steps.append({"done": done, "what": what})
        if not options.json:
            _print(f"{done:13} {what}")

    request = installing.InstallRequest(
        station=options.station,
        broker_urls=options.broker,
        instrument_folders=folders,
        config_file=options.config,
        program=options.program or installing.own_program(),
        root=options.root.absolute(),
        is_started=not options.no_start,
        is_dry_run=options.dry_run,
    )
    installing.install(request, say)
    if options.json:
        _print(json.dumps(steps, indent=1))
    elif request.root == installing.SYSTEM and not options.dry_run:
        _print("\nNow: sudo fieldpost-agent check")
        _print("To ask without sudo, become a member of the group: sudo usermod -aG fieldpost $USER, and log in anew")
    return 0


def check(options: argparse.Namespace) -> int:
    """The command `check`."""
    from edge_agent.operation.check import check_station

    findings = []
    for finding in check_station(options.config, os.environ):
        findings.append(finding)
        if not options.json:
            _print("\n".join(finding.lines()))
    failed = sum(finding.level == "FAIL" for finding in findings)
    warned = sum(finding.level == "WARN" for finding in findings)
    if options.json:
        _print(json.dumps([finding.to_dict() for finding in findings], indent=1))
    else:
        _print(f"\n{count(failed, 'thing')} wrong, {warned:,} to look at, {len(findings) - failed - warned:,} good")
    return EXIT_FAILED if failed else 0


def status(options: argparse.Namespace) -> int:
    """The command `status`."""
    settings = load_settings(options.config, os.environ)
    try:
        report, presence = _live_report(settings), Presence.LIVE
    except TryAgainError:
        from edge_agent.operation.check_disk import is_locked

        report = _written_report(settings)
        presence = Presence.MUTE if is_locked(settings.buffer_folder) else Presence.GONE
    if options.json:
        _print(json.dumps({"is_live": presence is Presence.LIVE, "agent": presence.value, **report}, indent=1))
    else:
        _print(status_page(report, time.time(), presence))
    return 0


def _live_report(settings: AgentSettings) -> dict[str, Any]:
    command = command_pb2.Command(report=command_pb2.ReportCommand())
    answer = _ask(settings, command, ASK_TIMEOUT_S)
    report = answer.get("report")
    if not isinstance(report, dict):
        raise TryAgainError(f"expected the agent's report, but got {answer.get('detail') or 'none'}")
    return report


def _written_report(settings: AgentSettings) -> dict[str, Any]:
    path = settings.buffer_folder / "status.json"
    try:
        report: dict[str, Any] = json.loads(path.read_bytes())
    except PermissionError:
        raise
    except FileNotFoundError as error:
        message = f"expected the station's status at {path}, but there is none: it has not run yet"
        raise TryAgainError(message, hint="sudo fieldpost-agent check") from error
    except (OSError, ValueError) as error:
        # Unsynced on purpose: a power cut may leave it empty.
        message = f"expected the station's status at {path}, but it cannot be read: {error}"
        raise TryAgainError(message, hint="a running agent writes it anew: sudo fieldpost-agent check") from error
    return report


def replay(options: argparse.Namespace) -> int:
    """The command `replay`."""
    settings = load_settings(options.config, os.environ)
    has_sequences = options.first is not None or options.last is not None
    has_times = options.since is not None or options.until is not None
    if (
        has_sequences == has_times
        or (has_sequences and None in (options.first, options.last))
        or (has_times and options.since is None)
    ):
        raise InvalidRequestError("expected --from and --to, or --since and perhaps --until, but got something else")
    until = options.until or datetime.now(UTC)
    command = command_pb2.Command()
    command.replay.epoch = _epoch(settings)
    if has_sequences:
        command.replay.ranges.add(first_sequence=options.first, last_sequence=options.last)
    else:
        command.replay.start_time.FromDatetime(options.since)
        command.replay.end_time.FromDatetime(until)
    try:
        return _print_answer(_ask(settings, command), options, "the station sends them again, behind what is fresh")
    except TryAgainError:
        times = None if has_sequences else (options.since.timestamp(), until.timestamp())
        return _replay_alone(settings, options, times)


def _replay_alone(settings: AgentSettings, options: argparse.Namespace, times: tuple[float, float] | None) -> int:
    """Without an agent the buffer is opened here; its lock tells whether there really is none."""
    from edge_agent.buffer import Buffer
    from fieldpost.ranges import RangeSet

    become_owner_of(settings.buffer_folder)
    buffer = Buffer(settings.buffer_folder, settings.station, day_file_max_bytes=settings.day_file_max_bytes)
    try:
        if times is None and not 1 <= options.first <= options.last:
            text = f"{options.first}..{options.last}"
            raise InvalidRequestError(f"expected sequences from 1 on, the first not above the last, but got {text}")
        wanted = RangeSet([(options.first, options.last)]) if times is None else buffer.sequences_between(*times)
        held = buffer.held()
        present = RangeSet(part for first, last in wanted for part in held.common(first, last))
        if not present:
            raise InvalidRequestError("expected observations that the buffer still has, but it has none of these")
        buffer.reopen(list(present))
        buffer.save()
    finally:
        buffer.close()
    text = f"no agent is running: {count(len(present), 'observation')} will go again when it starts"
    return _print_answer({"is_accepted": True, "detail": ""}, options, text)


def _epoch(settings: AgentSettings) -> str:
    path = settings.buffer_folder / "epoch"
    try:
        return path.read_text().strip()
    except PermissionError:
        raise
    except OSError as error:
        message = f"expected a buffer at {settings.buffer_folder}, but got {error.strerror}"
        raise InvalidRequestError(message, hint="has the agent run yet?") from error


def set_setting(options: argparse.Namespace) -> int:
    """The command `set`."""
    settings = load_settings(options.config, os.environ)
    value = "" if options.reset else options.value
    command = command_pb2.Command(set_setting=command_pb2.SetSettingCommand(key=options.key, value=value))
    done = f"{options.key} is as in the settings file" if options.reset else f"{options.key} = {value}"
    return _print_answer(_ask(settings, command), options, done)


def model_take(options: argparse.Namespace) -> int:
    """The command `model take`."""
    settings = load_settings(options.config, os.environ)
    package, signature = (_read(path) for path in (options.file, options.signature))
    command = command_pb2.Command(take_model=command_pb2.TakeModelCommand(package=package, signature=signature))
    return _print_answer(_ask(settings, command), options, "the model was tried, and is used from now on")


def model_show(options: argparse.Namespace) -> int:
    """The command `model show`."""
    try:
        from edge_agent.quick_look.package import describe
    except ModuleNotFoundError as error:
        message = f"expected what a quick look needs to be installed, but there is no module {error.name}"
        raise InvalidRequestError(message, hint="pip install 'fieldpost[quick-look]'") from error
    facts = describe(options.file)
    if options.json:
        _print(json.dumps(facts, indent=1, default=str))
    else:
        for line in tree(facts):
            _print(line)
    return 0


def buffer_list(options: argparse.Namespace) -> int:
    """The command `buffer list`."""
    from edge_agent.storage.inspection import list_files

    settings = load_settings(options.config, os.environ)
    files = list_files(settings.buffer_folder)
    if options.json:
        _print(json.dumps([file.to_dict() for file in files], indent=1))
        return 0
    for file in files:
        undelivered = file.observation_count - file.delivered_count
        counts = f"{file.observation_count:7} observations  {undelivered:7} undelivered"
        _print(f"{file.name}  {counts}  {size(file.size_bytes)}")
    return 0


def buffer_check(options: argparse.Namespace) -> int:
    """The command `buffer check`."""
    from edge_agent.storage.inspection import check_file, list_files

    settings = load_settings(options.config, os.environ)
    checks = [check_file(settings.buffer_folder, file) for file in list_files(settings.buffer_folder)]
    if options.json:
        _print(json.dumps([check.to_dict() for check in checks], indent=1))
    else:
        for one in checks:
            damaged = ", ".join(f"{first}..{last}" for first, last in one.damaged) or "none"
            tail = f"  {one.tail_bytes} bytes of an unfinished write" if one.tail_bytes else ""
            _print(f"{one.name}  {one.good_count:7} good  damaged: {damaged}{tail}")
    return EXIT_FAILED if any(one.damaged for one in checks) else 0


ACTIONS: dict[str, Callable[[argparse.Namespace], int]] = {
    "install": install,
    "check": check,
    "status": status,
    "replay": replay,
    "set": set_setting,
    "model take": model_take,
    "model show": model_show,
    "buffer list": buffer_list,
    "buffer check": buffer_check,
}


def _ask(
    settings: AgentSettings, command: command_pb2.Command, timeout_s: float = ANSWER_TIMEOUT_S + 5
) -> dict[str, Any]:
    command.command_id = uuid.uuid4().hex
    return ask(settings.buffer_folder / SOCKET_NAME, command, timeout_s)


def _print_answer(answer: dict[str, Any], options: argparse.Namespace, done: str) -> int:
    """Says what became of it.

    Raises:
        RejectedError: The agent refused.
    """
    if options.json:
        _print(json.dumps(answer, indent=1))
        return 0 if answer["is_accepted"] else EXIT_FAILED
    if not answer["is_accepted"]:
        raise RejectedError(f"the station refused: {answer['detail']}")
    _print(done)
    return 0


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidRequestError(f"expected to read {path}, but got {error.strerror}") from error


def _print(text: str) -> None:
    print(text, flush=True)  # noqa: T201
