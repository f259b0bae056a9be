"""Starts flows from a command line, and tells a Prefect server of them.

    python -m flows serve                                     register the deployments and run them when they are due
    python -m flows deploy                                    register them for workers of the pools cpu and gpu
    python -m flows list                                      what runs when, and how it went
    python -m flows archive --first-day 2024-05-01            archive now, and show it on Prefect's page
    python -m flows archive --first-day 2024-05-01 --local    the same without any Prefect
    python -m flows retrain --training-days 768 --epochs 16   train a version now, and activate it where it is better

Exit status: 0 done, 1 failed, 2 wrong usage, 75 try again later.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from fieldpost.errors import FieldpostError, InvalidRequestError, OfflineError, TryAgainError
from fieldpost.logs import configure_logging
from flows.archiving.parameters import ArchiveParams
from flows.deployments.catalogue import ARCHIVE, CATALOGUE, DeploymentDefinition
from flows.deployments.loading import load_flow, load_params
from flows.options import add_options, read_options
from flows.parameters import make_params
from server.settings import load_settings

EXIT_FAILED, EXIT_USAGE, EXIT_TRY_AGAIN = 1, 2, 75
WAIT_S, RETRY_S = 60.0, 1.0

logger = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    options = _make_parser(given).parse_args(given)
    try:
        _run(options)
    except FieldpostError as error:
        sys.stderr.write(f"{error}\n{error.hint}\n" if error.hint else f"{error}\n")
        return exit_status(error)
    return 0


def exit_status(error: FieldpostError) -> int:
    """What a script is told of an error."""
    if isinstance(error, InvalidRequestError):
        return EXIT_USAGE
    return EXIT_TRY_AGAIN if isinstance(error, TryAgainError) else EXIT_FAILED


def _make_parser(given: Sequence[str]) -> argparse.ArgumentParser:
    """The parser; of the flows only the one that is asked for is imported, since some take seconds."""
    parser = argparse.ArgumentParser(
        prog="python -m flows", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_bootstrap(commands.add_parser("serve", help="register the deployments and run them when they are due"))
    _add_bootstrap(commands.add_parser("deploy", help="register the deployments for workers, and make their pools"))
    listing = commands.add_parser("list", help="each deployment: its next run, and how the last one ended")
    listing.add_argument("--json", action="store_true", help="for scripts")
    asked = next((each for each in given if not each.startswith("-")), "")
    for each in CATALOGUE:
        running = commands.add_parser(each.flow, help=f"run the flow {each.flow} now", description=_summarise(each))
        if each.flow == asked:
            add_options(running, load_params(each))
        if each is ARCHIVE:
            running.add_argument(
                "--local", action="store_true", help="without any Prefect: no page, no retries, no pictures"
            )
    return parser


def _add_bootstrap(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--reset",
        nargs="?",
        action="append",
        const="all",
        default=[],
        metavar="FLOW/NAME",
        help="forget what was changed on Prefect's page: of this deployment, or without a name of all",
    )
    parser.add_argument(
        "--wait-s", type=float, default=WAIT_S, metavar="N", help="wait so long for the Prefect server; default: 60"
    )
    parser.add_argument("--settings-file", type=Path, metavar="FILE", help="the server's settings, TOML: time_zone")


def _summarise(definition: DeploymentDefinition) -> str:
    return definition.description.partition("\n\n")[0].replace("%", "%%")


def _run(options: argparse.Namespace) -> None:
    if options.command in ("serve", "deploy"):
        _bring(options)
    elif options.command == "list":
        _list(is_json=options.json)
    else:
        (definition,) = (each for each in CATALOGUE if each.flow == options.command)
        _run_flow(definition, options)


def _bring(options: argparse.Namespace) -> None:
    configure_logging("WARNING")  # of libraries: Prefect's client tells each request that it makes
    logging.getLogger("flows").setLevel(logging.INFO)
    time_zone = load_settings(options.settings_file).time_zone
    require_prefect_server(wait_s=options.wait_s)
    from flows.deployments import serving

    bring = serving.serve if options.command == "serve" else serving.deploy
    bring(CATALOGUE, time_zone=time_zone, resets=options.reset)
    if options.command == "deploy":
        _list(is_json=False)


def _list(*, is_json: bool) -> None:
    require_prefect_server()
    from flows.deployments.listing import list_deployments, to_json, to_text

    rows = list_deployments(CATALOGUE)
    sys.stdout.write((to_json(rows) if is_json else to_text(rows)) + "\n")


def _run_flow(definition: DeploymentDefinition, options: argparse.Namespace) -> None:
    model = load_params(definition)
    params = make_params(model, **read_options(options, model))
    if isinstance(params, ArchiveParams) and options.local:
        from flows.archiving.local import archive_locally

        archive_locally(params)
        return
    require_prefect_server()
    from flows.deployments.bootstrap import make_limits

    make_limits(is_reset=False)  # nothing else may ever have been registered at this server
    load_flow(definition)(params)


def require_prefect_server(*, wait_s: float = 0.0) -> str:
    """Refuses to go on without a Prefect server that answers.

    Without its address Prefect starts one of its own for the run: in the home folder, slow, and gone afterwards with
    everything that it knew of the run.

    Args:
        wait_s: For so long a server that does not answer is waited for: both may be starting.

    Returns:
        Its address.

    Raises:
        InvalidRequestError: PREFECT_API_URL is set nowhere.
        OfflineError: Nobody answers there.
    """
    from prefect import get_client
    from prefect.settings import PREFECT_API_URL

    url = PREFECT_API_URL.value()
    if not url:
        raise InvalidRequestError(
            "expected the address of a Prefect server in PREFECT_API_URL, but it is not set",
            hint="start `prefect server start` and set PREFECT_API_URL=http://127.0.0.1:4200/api, or use --local",
        )
    deadline = time.monotonic() + wait_s
    with get_client(sync_client=True) as client:
        error = client.api_healthcheck()
        if error is not None and wait_s > 0:
            logger.info("waiting for the Prefect server", extra={"url": url, "wait_s": wait_s})
        while error is not None and time.monotonic() < deadline:
            time.sleep(RETRY_S)
            error = client.api_healthcheck()
    if error is not None:
        raise OfflineError(
            f"no Prefect server answers at {url}: {error}",
            hint="start it, or correct PREFECT_API_URL; `archive --local` does without",
        )
    return str(url)


if __name__ == "__main__":
    sys.exit(main())
