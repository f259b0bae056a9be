"""Starts flows from a command line.

    python -m flows serve                                     run the deployments when they are due
    python -m flows archive --first-day 2024-05-01            archive now, and show it on Prefect's page
    python -m flows archive --first-day 2024-05-01 --local    the same without any Prefect
    python -m flows retrain --training-days 768 --epochs 16   train a version now, and activate it where it is better

Exit status: 0 done, 1 failed, 2 wrong usage, 75 try again later.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from datetime import UTC, date, datetime
from pathlib import Path

from fieldpost.errors import FieldpostError, InvalidRequestError, OfflineError, TryAgainError
from fieldpost.logs import configure_logging
from flows.archiving.parameters import ArchiveParams, make_params
from flows.retraining.parameters import RetrainParams, make_retrain_params

EXIT_FAILED, EXIT_USAGE, EXIT_TRY_AGAIN = 1, 2, 75


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    options = _make_parser().parse_args(arguments)
    try:
        if options.command == "serve":
            _serve(reset=options.reset)
        elif options.command == "retrain":
            _retrain(options)
        else:
            _archive(_read_params(options), is_local=options.local)
    except FieldpostError as error:
        sys.stderr.write(f"{error}\n{error.hint}\n" if error.hint else f"{error}\n")
        return exit_status(error)
    return 0


def exit_status(error: FieldpostError) -> int:
    """What a script is told of an error."""
    if isinstance(error, InvalidRequestError):
        return EXIT_USAGE
    return EXIT_TRY_AGAIN if isinstance(error, TryAgainError) else EXIT_FAILED


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m flows", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    serving = commands.add_parser("serve", help="register the deployments and run them when they are due")
    serving.add_argument("--reset", action="store_true", help="forget what was changed on Prefect's page")
    archiving = commands.add_parser("archive", help="archive days of instruments now")
    archiving.add_argument("--first-day", type=_parse_day, metavar="YYYY-MM-DD", help="default: yesterday, UTC")
    archiving.add_argument("--last-day", type=_parse_day, metavar="YYYY-MM-DD", help="default: yesterday, UTC")
    archiving.add_argument("--late-days", type=int, default=0, metavar="N", help="look at N days before these too")
    archiving.add_argument("--station", metavar="NAME", help="only this station")
    archiving.add_argument("--instrument", metavar="NAME", help="only instruments of this name")
    archiving.add_argument("--settings-file", type=Path, metavar="FILE", help="the server's settings, TOML")
    archiving.add_argument("--local", action="store_true", help="without any Prefect: no page, no retries, no pictures")
    _add_retrain(commands.add_parser("retrain", help="train a version, and activate it where it is better"))
    return parser


def _add_retrain(parser: argparse.ArgumentParser) -> None:
    """An option for each of the flow's parameters; those that are not given have its defaults."""
    for name, each in RetrainParams.model_fields.items():
        flag = f"--{name.replace('_', '-')}"
        text = (each.description or "").replace("%", "%%")
        if isinstance(each.default, bool):
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=text)
        elif each.default == ():
            parser.add_argument(flag, action="append", metavar="TEXT", default=argparse.SUPPRESS, help=text)
        else:
            parser.add_argument(flag, metavar="VALUE", default=argparse.SUPPRESS, help=text)


def _parse_day(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected a day as YYYY-MM-DD, but got {text!r}") from error


def _read_params(options: argparse.Namespace) -> ArchiveParams:
    return make_params(**{name: getattr(options, name) for name in ArchiveParams.model_fields})


def _serve(*, reset: bool) -> None:
    require_prefect_server()
    from flows.deployments.catalogue import CATALOGUE
    from flows.deployments.serving import serve_catalogue

    serve_catalogue(CATALOGUE, reset=reset)


def _archive(params: ArchiveParams, *, is_local: bool) -> None:
    if is_local:
        archive_locally(params)
        return
    require_prefect_server()
    from flows.archive import archive

    archive(params)


def _retrain(options: argparse.Namespace) -> None:
    given = {name: value for name, value in vars(options).items() if name in RetrainParams.model_fields}
    params = make_retrain_params(**given)
    require_prefect_server()
    from flows.retrain import retrain

    retrain(params)


def archive_locally(params: ArchiveParams) -> None:
    """The flow's work by plain calls; prints its table.

    Raises:
        FieldpostError: A day could not be archived; the others are.
    """
    from flows.archiving.archivist import archive_days
    from flows.archiving.report import to_error, to_text
    from flows.site import open_archivist

    configure_logging("WARNING")
    first_day, last_day = params.days(datetime.now(UTC).date())
    with open_archivist(params.settings_file) as archivist:
        days = archivist.find_days(first_day, last_day, station=params.station, instrument=params.instrument)
        outcomes = archive_days(archivist, days, time.time_ns)
    sys.stdout.write(to_text(outcomes) + "\n")
    if error := to_error(outcomes):
        raise error


def require_prefect_server() -> None:
    """Refuses to go on without a Prefect server that answers.

    Without its address Prefect starts one of its own for the run: in the home folder, slow, and gone afterwards with
    everything that it knew of the run.

    Raises:
        InvalidRequestError: PREFECT_API_URL is set nowhere.
        OfflineError: Nobody answers there.
    """
    from prefect import get_client
    from prefect.settings import PREFECT_API_URL

    if not PREFECT_API_URL.value():
        raise InvalidRequestError(
            "expected the address of a Prefect server in PREFECT_API_URL, but it is not set",
            hint="start `prefect server start` and set PREFECT_API_URL=http://127.0.0.1:4200/api, or use --local",
        )
    with get_client(sync_client=True) as client:
        error = client.api_healthcheck()
    if error is not None:
        raise OfflineError(
            f"no Prefect server answers at {PREFECT_API_URL.value()}: {error}",
            hint="start it, or correct PREFECT_API_URL; `archive --local` does without",
        )


if __name__ == "__main__":
    sys.exit(main())
