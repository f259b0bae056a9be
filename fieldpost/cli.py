"""The command line `fieldpost`: asks a server, and prints. What it prints is made in _render.py."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from typing import Annotated, TypeAlias

import typer

from fieldpost._cli_options import DEFAULT_SERVER, Certificates, Debug, Server, connected, one_line_for_errors
from fieldpost._render import csv_lines, json_lines, station_json, station_lines, table_lines, watch_line
from fieldpost._requests import PredictionQuery
from fieldpost._station_cli import station_app
from fieldpost._table import json_rows
from fieldpost._times import parse_moment
from fieldpost.client import Client
from fieldpost.errors import InvalidRequestError
from fieldpost.v1.prediction_pb2 import Prediction

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

Json: TypeAlias = Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")]
Station: TypeAlias = Annotated[str | None, typer.Option(metavar="NAME", help="Only this station.")]
Instrument: TypeAlias = Annotated[
    str | None, typer.Option(metavar="NAME", help="Only this instrument; needs --station.")
]
Analysis: TypeAlias = Annotated[
    str | None, typer.Option(metavar="NAME", help="Only this analysis, for example boundary-layer-height.")
]


app.add_typer(station_app)


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
    with one_line_for_errors(debug), connected(server, certificates) as client:
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
    with one_line_for_errors(debug), connected(server, certificates) as client:
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
    with one_line_for_errors(debug), connected(server, certificates) as client:
        for prediction in client.watch(
            station=station, instrument=instrument, analysis=analysis, after_prediction_id=after
        ):
            for line in json_lines(prediction) if as_json else map(watch_line, json_rows(prediction)):
                typer.echo(line)
            sys.stdout.flush()


def main() -> None:
    """Runs the command line."""
    app(prog_name="fieldpost")
