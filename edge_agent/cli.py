"""The command fieldpost-agent: runs a station, installs it, says how it is and what is wrong. Translates; does no work.

What a command does stands in operation/actions.py, which is imported only when it is called: the agent itself stays
small.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from fieldpost._version import __version__
from fieldpost.errors import FieldpostError, InvalidRequestError, TryAgainError

CONFIG_FILE = Path("/etc/fieldpost/station.toml")
EXIT_FAILED = 1
EXIT_WRONG_USAGE = 2
EXIT_TRY_AGAIN = 75  # EX_TEMPFAIL

DESCRIPTION = """\
Runs a Fieldpost station: keeps what the instruments measure on the station's
own disk, and sends it to the server.

  sudo fieldpost-agent install --station NAME --broker mqtts://HOST:8883
  sudo fieldpost-agent check
  sudo fieldpost-agent status
"""
EPILOGUE = "Exit status: 0 done, 1 failed, 2 wrong usage, 75 try again later. More: docs/station.md."


def main(arguments: Sequence[str] | None = None) -> None:
    """The entry point; ends the process with its exit status."""
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Carries out a command line.

    Returns:
        0 done, 1 failed, 2 wrong usage, 75 try again later.
    """
    options = parser().parse_args(arguments)
    try:
        return _act(options)
    except FieldpostError as error:
        if options.debug:
            raise
        _say_error(str(error), error.hint)
        if isinstance(error, TryAgainError):
            return EXIT_TRY_AGAIN
        return EXIT_WRONG_USAGE if isinstance(error, InvalidRequestError) else EXIT_FAILED
    except PermissionError as error:
        # A person who may not look into the station's folders. Of the agent itself it is worth a traceback.
        if options.debug or options.action == "run":
            raise
        from edge_agent.control import NOT_ALLOWED_HINT

        return _say_error(f"expected to read {error.filename}, but got {error.strerror}", NOT_ALLOWED_HINT)
    except KeyboardInterrupt:
        return EXIT_FAILED
    except BrokenPipeError:
        # Whoever read what we print has seen enough (head, less). Nothing more can be written at the exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED


def _say_error(text: str, hint: str) -> int:
    print(f"fieldpost-agent: {text}", file=sys.stderr)  # noqa: T201
    if hint:
        print(f"  {hint}", file=sys.stderr)  # noqa: T201
    return EXIT_FAILED


def _act(options: argparse.Namespace) -> int:
    if options.action == "run":
        from edge_agent.operation.run import run_agent

        return run_agent(options)
    from edge_agent.operation.actions import ACTIONS

    return ACTIONS[options.action](options)


def parser() -> argparse.ArgumentParser:
    """What may stand on the command line."""
    common = argparse.ArgumentParser(add_help=False)
    about = f"the station's settings (TOML); default {CONFIG_FILE}"
    common.add_argument("--config", type=Path, default=CONFIG_FILE, metavar="FILE", help=about)
    common.add_argument("--debug", action="store_true", help="show where an error came from")
    as_json = argparse.ArgumentParser(add_help=False)
    as_json.add_argument("--json", action="store_true", help="print JSON, for programs")

    top = argparse.ArgumentParser(
        prog="fieldpost-agent",
        description=DESCRIPTION,
        epilog=EPILOGUE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"fieldpost-agent {__version__}")
    verbs = top.add_subparsers(required=True, metavar="COMMAND")
    _add_run(_add(verbs, "run", "run the station until SIGTERM", common))
    _add_install(_add(verbs, "install", "make a service of it: user, folders, settings, unit", common, as_json))
    _add(verbs, "check", "look for what is wrong, and say what to do; 1 where something is", common, as_json)
    _add(verbs, "status", "how the station is, by its own word", common, as_json)
    buffer = verbs.add_parser("buffer", help="look into the buffer", description="Looks into the buffer.")
    nouns = buffer.add_subparsers(required=True, metavar="COMMAND")
    _add(nouns, "list", "the day files", common, as_json, action="buffer list")
    _add(nouns, "check", "read every record and hold its checksum", common, as_json, action="buffer check")
    _add_replay(_add(verbs, "replay", "send observations again that the server has had before", common, as_json))
    _add_set(_add(verbs, "set", "change a setting while the station runs", common, as_json))
    model = verbs.add_parser("model", help="the quick look's model", description="The quick look's model.")
    nouns = model.add_subparsers(required=True, metavar="COMMAND")
    _add_model_take(_add(nouns, "take", "try a model, and use it if it is good", common, as_json, action="model take"))
    verb = _add(nouns, "show", "what a model package says of itself", common, as_json, action="model show")
    verb.add_argument("file", type=Path, metavar="FILE", help="the model package")
    return top


_Verbs = argparse._SubParsersAction  # argparse gives it no other name


def _add(
    verbs: _Verbs[argparse.ArgumentParser], name: str, about: str, *parents: argparse.ArgumentParser, action: str = ""
) -> argparse.ArgumentParser:
    description = f"{about[0].upper()}{about[1:]}."
    verb = verbs.add_parser(name, parents=parents, help=about, description=description)
    verb.set_defaults(action=action or name)
    return verb


def _add_run(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--exit-when-delivered",
        action="store_true",
        help="end once every finite source is done and the server has answered for everything",
    )


def _add_install(verb: argparse.ArgumentParser) -> None:
    verb.description = (
        "Makes a service of this software. May be called again at any time: after an upgrade, and after a change of "
        "the folders in the settings file. An existing settings file is never changed."
    )
    verb.add_argument("--station", default="", metavar="NAME", help="the station's name; needed the first time")
    verb.add_argument(
        "--broker",
        action="append",
        default=[],
        metavar="URL",
        help="mqtts://HOST:8883 or mqtt://HOST:1883; may be given several times; needed the first time",
    )
    verb.add_argument(
        "--instrument-folder",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="an instrument that puts files into this folder; may be given several times",
    )
    verb.add_argument("--program", type=Path, metavar="PATH", help="the fieldpost-agent to run; default: this one")
    verb.add_argument(
        "--root", type=Path, default=Path("/"), metavar="DIR", help="install into an image that lies here"
    )
    verb.add_argument("--no-start", action="store_true", help="do not start the service")
    verb.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")


def _add_replay(verb: argparse.ArgumentParser) -> None:
    verb.description = (
        "Sends observations again, behind what is fresh. The server drops what it has. Give sequences or times; times "
        "without a zone are UTC. Without a running agent they are marked, and go when it starts."
    )
    verb.add_argument("--from", type=int, dest="first", metavar="SEQUENCE", help="the first sequence")
    verb.add_argument("--to", type=int, dest="last", metavar="SEQUENCE", help="the last sequence")
    verb.add_argument("--since", type=_time, metavar="TIME", help="captured from this time on: 2026-05-01T12:00:00Z")
    verb.add_argument("--until", type=_time, metavar="TIME", help="captured before this time; default: now")


def _add_set(verb: argparse.ArgumentParser) -> None:
    verb.description = (
        "Changes a setting of the running station until it is changed again; it stands over the settings file. Only "
        "settings that cannot cut the station off can be changed: docs/settings.md."
    )
    verb.add_argument("key", metavar="KEY", help="for example rate_limit_bytes_per_s")
    choice = verb.add_mutually_exclusive_group(required=True)
    choice.add_argument("value", nargs="?", metavar="VALUE", help="as in the settings file")
    choice.add_argument("--reset", action="store_true", help="go back to the settings file")


def _add_model_take(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("file", type=Path, metavar="FILE", help="the model package")
    about = "its Ed25519 signature by the key that the station trusts (model_key_file)"
    verb.add_argument("--signature", type=Path, required=True, metavar="FILE", help=about)


def _time(text: str) -> datetime:
    try:
        time = datetime.fromisoformat(text)
        return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
    except (ValueError, OverflowError) as error:
        message = f"expected a time such as 2026-05-01T12:00:00Z, but got {text!r}"
        raise argparse.ArgumentTypeError(message) from error
