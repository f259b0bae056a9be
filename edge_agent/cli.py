"""The command fieldpost-agent: runs a station, says how it is, looks into its buffer. Translates; does no work."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edge_agent.settings import AgentSettings, load_settings
from fieldpost.errors import FieldpostError, InvalidRequestError, TryAgainError

EXIT_FAILED = 1
EXIT_WRONG_USAGE = 2
EXIT_TRY_AGAIN = 75  # EX_TEMPFAIL


def main(arguments: Sequence[str] | None = None) -> None:
    """The entry point; ends the process with its exit status."""
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Carries out a command line.

    Returns:
        0 done, 1 failed, 2 wrong usage, 75 try again later.
    """
    options = _parser().parse_args(arguments)
    try:
        settings = load_settings(options.config, os.environ)
        status: int = options.action(settings, options)
        return status
    except FieldpostError as error:
        if options.debug:
            raise
        print(f"fieldpost-agent: {error}", file=sys.stderr)  # noqa: T201
        if error.hint:
            print(f"  {error.hint}", file=sys.stderr)  # noqa: T201
        if isinstance(error, TryAgainError):
            return EXIT_TRY_AGAIN
        return EXIT_WRONG_USAGE if isinstance(error, InvalidRequestError) else EXIT_FAILED


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--config", type=Path, required=True, metavar="FILE", help="the station's settings (TOML)")
    common.add_argument("--debug", action="store_true", help="show where an error came from")
    as_json = argparse.ArgumentParser(add_help=False)
    as_json.add_argument("--json", action="store_true", help="print JSON, for programs")

    parser = argparse.ArgumentParser(prog="fieldpost-agent", description=f"{__doc__.split(':', maxsplit=1)[0]}.")
    nouns = parser.add_subparsers(required=True, metavar="COMMAND")
    verb = nouns.add_parser("run", parents=[common], help="run the station until SIGTERM")
    verb.add_argument(
        "--exit-when-delivered",
        action="store_true",
        help="end once every finite source is done and the server has answered for everything",
    )
    verb.set_defaults(action=_run)
    verb = nouns.add_parser("status", parents=[common, as_json], help="how the station is, by its own word")
    verb.set_defaults(action=_status)
    buffer = nouns.add_parser("buffer", help="look into the buffer").add_subparsers(required=True, metavar="COMMAND")
    verb = buffer.add_parser("list", parents=[common, as_json], help="the day files")
    verb.set_defaults(action=_buffer_list)
    verb = buffer.add_parser("check", parents=[common, as_json], help="read every record and hold its checksum")
    verb.set_defaults(action=_buffer_check)
    return parser


def _run(settings: AgentSettings, options: argparse.Namespace) -> int:
    # Imported here: the other commands need no MQTT.
    try:
        from edge_agent.assembly import build_agent
    except ModuleNotFoundError as error:
        message = f"expected what a station needs to be installed, but there is no module {error.name}"
        raise InvalidRequestError(message, hint="pip install 'fieldpost[edge]'") from error
    from fieldpost.logs import configure_logging

    configure_logging(settings.log_level)
    agent = build_agent(settings)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: agent.stop())
    agent.run(exit_when_delivered=options.exit_when_delivered)
    return 0


def _status(settings: AgentSettings, options: argparse.Namespace) -> int:
    path = settings.buffer_folder / "status.json"
    try:
        report: dict[str, Any] = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        message = f"expected the station's status at {path}, but got {error}"
        raise TryAgainError(message, hint="is the agent running?") from error
    if options.json:
        _print(json.dumps(report, indent=1))
        return 0
    for key, value in report.items():
        if not isinstance(value, list):
            _print(f"{key:18} {value}")
    for instrument in report["instruments"]:
        _print("instrument         " + ", ".join(f"{key} {value}" for key, value in instrument.items()))
    for alarm in report["alarms"]:
        _print(f"ALARM              {alarm}")
    return 0


def _buffer_list(settings: AgentSettings, options: argparse.Namespace) -> int:
    from edge_agent.storage.inspection import list_files

    files = list_files(settings.buffer_folder)
    if options.json:
        _print(json.dumps([file.to_dict() for file in files], indent=1))
        return 0
    for file in files:
        undelivered = file.observation_count - file.delivered_count
        counts = f"{file.observation_count:7} observations  {undelivered:7} undelivered"
        _print(f"{file.name}  {counts}  {file.size_bytes:11} bytes")
    return 0


def _buffer_check(settings: AgentSettings, options: argparse.Namespace) -> int:
    from edge_agent.storage.inspection import check_file, list_files

    checks = [check_file(settings.buffer_folder, file) for file in list_files(settings.buffer_folder)]
    if options.json:
        _print(json.dumps([check.to_dict() for check in checks], indent=1))
    else:
        for check in checks:
            damaged = ", ".join(f"{first}..{last}" for first, last in check.damaged) or "none"
            tail = f"  {check.tail_bytes} bytes of an unfinished write" if check.tail_bytes else ""
            _print(f"{check.name}  {check.good_count:7} good  damaged: {damaged}{tail}")
    return EXIT_FAILED if any(check.damaged for check in checks) else 0


def _print(text: str) -> None:
    print(text)  # noqa: T201
