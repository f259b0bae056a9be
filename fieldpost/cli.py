"""The command line `fieldpost`: asks a server, and prints. What it prints is made in _render.py."""

from __future__ import annotations

import os
import sys
from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from fieldpost._channel import Tls
from fieldpost._render import csv_lines, json_lines, station_json, station_lines, table_lines, watch_line
from fieldpost._requests import PredictionQuery
from fieldpost._table import json_rows
from fieldpost._times import parse_moment
from fieldpost.client import Client
from fieldpost.errors import FieldpostError, InvalidRequestError, TryAgainError
from fieldpost.v1.prediction_pb2 import Prediction

EXIT_FAILED = 1
EXIT_WRONG_USAGE = 2
EXIT_TRY_AGAIN = 75  # EX_TEMPFAIL of sysexits.h: a script may try the same later
EXIT_INTERRUPTED = 130

app = typer.Typer(
    name="fieldpost",
    help="Asks a Fieldpost server what its stations are and what was predicted of their observations.",
    epilog="Exit status: 0 done, 1 failed, 2 wrong usage, 75 not now: the same may succeed later.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"max_content_width": 100, "help_option_names": ["-h", "--help"]},
)

Server: TypeAlias = Annotated[
    str, typer.Option("--server", envvar="FIELDPOST_SERVER", metavar="HOST:PORT", help="The server to ask.")
]
Certificates: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        envvar="FIELDPOST_CERTIFICATES",
        metavar="FOLDER",
        help="Connect by TLS. The folder holds ca.crt, the server's authority, and, where the server wants to know who "
        "asks, client.crt and client.key.",
    ),
]
Debug: TypeAlias = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Json: TypeAlias = Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")]
Station: TypeAlias = Annotated[str | None, typer.Option(metavar="NAME", help="Only this station.")]
Instrument: TypeAlias = Annotated[
    str | None, typer.Option(metavar="NAME", help="Only this instrument; needs --station.")
]
Analysis: TypeAlias = Annotated[
    str | None, typer.Option(metavar="NAME", help="Only this analysis, for example boundary-layer-height.")
]

DEFAULT_SERVER = "127.0.0.1:50051"


@app.command()
def predictions(
    station: Station = None,
    instrument: Instrument = None,
    analysis: Analysis = None,
    model_version: Annotated[int | None, typer.Option(min=1, help="Only this model version; needs --analysis.")] = None,
    since: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Measured at or after: 2h (ago), 30min, 1d, 2025-06-01, 2025-06-01T12:00Z."),
    ] = None,
    until: Annotated[str | None, typer.Option(metavar="TIME", help="Measured before: the same forms.")] = None,
    as_json: Json = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV with a header line.")] = False,
    server: Server = DEFAULT_SERVER,
    certificates: Certificates = None,
    debug: Debug = False,
) -> None:
    """Print predictions, by the time at which was measured.

    Times are UTC where they name no zone. A missing value is "-" in the table, empty in CSV, null in JSON.
    Observations that could not be predicted are counted on standard error, and are lines of their own in JSON.
    """
    with _one_line_for_errors(debug), _connected(server, certificates) as client:
        if as_json and as_csv:
            raise InvalidRequestError("expected one of --json and --csv, but got both")
        now = datetime.now(UTC)
        query: PredictionQuery = {
            "station": station,
            "instrument": instrument,
            "analysis": analysis,
            "model_version": model_version,
            "since": None if since is None else parse_moment(since, now),
            "until": None if until is None else parse_moment(until, now),
        }
        if as_json:
            for prediction in client.iter_predictions(**query):
                _print_json(prediction)
        else:
            _print_table(client, query, as_csv=as_csv)


def _print_json(prediction: Prediction) -> None:
    for line in json_lines(prediction):
        typer.echo(line)


def _print_table(client: Client, query: PredictionQuery, *, as_csv: bool) -> None:
    table = client.predictions(**query)
    if len(table) or as_csv:
        for line in csv_lines(table) if as_csv else table_lines(table):
            typer.echo(line)
    else:
        typer.echo("no predictions match", err=True)
    if table.failures:
        typer.echo(
            f"{len(table.failures)} observations could not be predicted, "
            f"the last because: {table.failures[-1].failure} (--json names all)",
            err=True,
        )


@app.command()
def stations(
    as_json: Json = False, server: Server = DEFAULT_SERVER, certificates: Certificates = None, debug: Debug = False
) -> None:
    """Print the stations and their instruments, as the server knows them."""
    with _one_line_for_errors(debug), _connected(server, certificates) as client:
        found = client.stations()
        for line in map(station_json, found) if as_json else station_lines(found):
            typer.echo(line)


@app.command()
def watch(
    station: Station = None,
    instrument: Instrument = None,
    analysis: Analysis = None,
    after: Annotated[
        int | None,
        typer.Option(
            min=0, metavar="ID", help="Begin after this prediction_id; 0: with all there are. Else: with new ones."
        ),
    ] = None,
    as_json: Json = False,
    server: Server = DEFAULT_SERVER,
    certificates: Certificates = None,
    debug: Debug = False,
) -> None:
    """Print predictions as they are made, until Ctrl-C.

    Where the connection breaks, it goes on after the last prediction as soon as the server can be reached again.
    """
    with _one_line_for_errors(debug), _connected(server, certificates) as client:
        for prediction in client.watch(
            station=station, instrument=instrument, analysis=analysis, after_prediction_id=after
        ):
            for line in json_lines(prediction) if as_json else map(watch_line, json_rows(prediction)):
                typer.echo(line)
            sys.stdout.flush()


@contextmanager
def _connected(server: str, certificates: Path | None) -> Generator[Client]:
    with Client(server, tls=None if certificates is None else _read_tls(certificates)) as client:
        yield client


def _read_tls(folder: Path) -> Tls:
    def read(name: str) -> bytes | None:
        path = folder / name
        return path.read_bytes() if path.exists() else None

    root = read("ca.crt")
    if root is None:
        raise InvalidRequestError(
            f"expected the server's authority in {folder / 'ca.crt'}, but there is no such file",
            hint="ask the server's operator for it",
        )
    return Tls(root_certificates=root, certificate=read("client.crt"), private_key=read("client.key"))


@contextmanager
def _one_line_for_errors(debug: bool) -> Generator[None]:
    """Turns errors into one line that says what, one that says what to do, and an exit status."""
    try:
        yield
        sys.stdout.flush()  # so that a reader that went away is noticed here, and not at the interpreter's end
    except FieldpostError as error:
        if debug:
            raise
        typer.echo(f"fieldpost: {error}", err=True)
        typer.echo(error.hint or "--debug shows where it came from", err=True)
        raise typer.Exit(_exit_status(error)) from error
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt as error:
        raise typer.Exit(EXIT_INTERRUPTED) from error


def _exit_status(error: FieldpostError) -> int:
    if isinstance(error, TryAgainError):
        return EXIT_TRY_AGAIN
    return EXIT_WRONG_USAGE if isinstance(error, InvalidRequestError) else EXIT_FAILED


def main() -> None:
    """Runs the command line."""
    app(prog_name="fieldpost")
