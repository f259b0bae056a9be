"""The command line `fieldpost`: asks a server, and prints. What it prints is made in _render.py."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from fieldpost._archive_cli import archive_app
from fieldpost._cli_options import (
    Analysis,
    Instrument,
    Json,
    Since,
    Station,
    Until,
    asks_server,
    moments,
)
from fieldpost._models_cli import models_app
from fieldpost._observations_cli import observations, read, send
from fieldpost._predict_cli import predict
from fieldpost._render import csv_lines, json_lines, message_json, station_lines, table_lines, watch_line
from fieldpost._render_server import capacity_lines
from fieldpost._requests import PredictionQuery
from fieldpost._station_cli import station_app
from fieldpost._table import json_rows
from fieldpost.client import Client
from fieldpost.errors import InvalidRequestError
from fieldpost.v1.prediction_pb2 import Prediction

app = typer.Typer(
    name="fieldpost",
    help="Sends observations to a Fieldpost server, and asks it for them, for predictions, models and stations.",
    epilog="Exit status: 0 done, 1 failed, 2 wrong usage, 75 not now: the same may succeed later.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"max_content_width": 100, "help_option_names": ["-h", "--help"]},
)

app.add_typer(station_app)
app.add_typer(models_app)
app.add_typer(archive_app)
for command in (observations, read, send, predict):
    app.command()(command)


@app.command()
@asks_server
def predictions(
    client: Client,
    station: Station = None,
    instrument: Instrument = None,
    analysis: Analysis = None,
    model_version: Annotated[int | None, typer.Option(min=1, help="Only this model version; needs --analysis.")] = None,
    since: Since = None,
    until: Until = None,
    as_json: Json = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV with a header line.")] = False,
) -> None:
    """Print predictions, in the order of what was measured when.

    Times are UTC where they name no zone. A missing value is "-" in the table, empty in CSV, null in JSON.
    Observations that could not be predicted are counted on standard error, and are lines of their own in JSON.
    """
    if as_json and as_csv:
        raise InvalidRequestError("expected one of --json and --csv, but got both")
    first, last = moments(since, until)
    query: PredictionQuery = {
        "station": station,
        "instrument": instrument,
        "analysis": analysis,
        "model_version": model_version,
        "since": first,
        "until": last,
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
            f"the last because: {table.failures[-1].failure} (--json names all; `fieldpost retry` tries them again)",
            err=True,
        )


@app.command()
@asks_server
def retry(
    client: Client,
    analysis: Annotated[str, typer.Option(metavar="NAME", help="The analysis, for example boundary-layer-height.")],
    station: Station = None,
    instrument: Instrument = None,
    model_version: Annotated[int | None, typer.Option(min=1, help="Only this model version.")] = None,
    since: Since = None,
    until: Until = None,
) -> None:
    """Forget failures, so that their observations are predicted again."""
    first, last = moments(since, until)
    count = client.retry_predictions(
        analysis, station=station, instrument=instrument, model_version=model_version, since=first, until=last
    )
    typer.echo(f"{count} observations will be predicted again")


@app.command()
@asks_server
def stations(client: Client, as_json: Json = False) -> None:
    """Print the stations and their instruments, as the server knows them."""
    found = client.stations()
    for line in map(message_json, found) if as_json else station_lines(found):
        typer.echo(line)


@app.command()
@asks_server
def capacity(client: Client, as_json: Json = False) -> None:
    """Print what the server has to compute with, and how busy it is."""
    found = client.capacity()
    for line in [message_json(found)] if as_json else capacity_lines(found):
        typer.echo(line)


@app.command()
@asks_server
def watch(
    client: Client,
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
) -> None:
    """Print predictions as they are made, until Ctrl-C.

    Where the connection breaks, it goes on after the last prediction as soon as the server can be reached again.
    """
    for prediction in client.watch(
        station=station, instrument=instrument, analysis=analysis, after_prediction_id=after
    ):
        for line in json_lines(prediction) if as_json else map(watch_line, json_rows(prediction)):
            typer.echo(line)
        sys.stdout.flush()


def main() -> None:
    """Runs the command line."""
    app(prog_name="fieldpost")
