"""The commands `fieldpost station ...`: what an operator asks of a station from afar."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from fieldpost._cli_options import asks_server
from fieldpost._commands import model_command, replay_command, report_command, setting_command
from fieldpost._times import parse_moment
from fieldpost.client import Client
from fieldpost.v1 import command_pb2

station_app = typer.Typer(
    name="station",
    help="Asks a station for something, by way of the server, and waits for its answer.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Name: TypeAlias = Annotated[str, typer.Argument(metavar="STATION", help="The station's name.")]


@station_app.command()
@asks_server
def report(client: Client, station: Name) -> None:
    """Make a station say how it is, now; `fieldpost stations` then prints it."""
    _ask(client, station, report_command(), "it has said how it is")


@station_app.command()
@asks_server
def replay(
    client: Client,
    station: Name,
    first: Annotated[int | None, typer.Option("--from", min=1, metavar="SEQUENCE", help="The first sequence.")] = None,
    last: Annotated[int | None, typer.Option("--to", min=1, metavar="SEQUENCE", help="The last sequence.")] = None,
    since: Annotated[
        str | None, typer.Option(metavar="TIME", help="Captured at or after: 2d (ago), 2026-06-01, 2026-06-01T12:00Z.")
    ] = None,
    until: Annotated[str | None, typer.Option(metavar="TIME", help="Captured before: the same forms.")] = None,
) -> None:
    """Send observations again that the station still has: --from and --to, or --since and --until.

    They come behind what the station has just measured. What the server holds already is not stored twice.
    """
    now = datetime.now(UTC)
    start = None if since is None else parse_moment(since, now)
    end = now if until is None and since is not None else None if until is None else parse_moment(until, now)
    ranges = [] if first is None and last is None else [(first or 1, last or first or 0)]
    command = replay_command(ranges, start, end)
    _ask(client, station, command, "it sends them again")


@station_app.command("set")
@asks_server
def set_setting(
    client: Client,
    station: Name,
    key: Annotated[str, typer.Argument(metavar="SETTING", help="For example rate_limit_bytes_per_s.")],
    value: Annotated[str, typer.Argument(metavar="VALUE", help="As in its settings file; '' to go back to that file.")],
) -> None:
    """Change a setting of a station until it is changed again. Settings that could cut it off are refused."""
    done = f"{key} is {value or 'as in its settings file'}"
    _ask(client, station, setting_command(key, value), done)


@station_app.command()
@asks_server
def model(
    client: Client,
    station: Name,
    package: Annotated[Path, typer.Argument(metavar="FILE", exists=True, dir_okay=False, help="The model package.")],
    signature: Annotated[
        Path, typer.Option(metavar="FILE", exists=True, dir_okay=False, help="Its Ed25519 signature, 64 bytes.")
    ],
) -> None:
    """Make a station use a model for its first estimates, if it passes its trial there."""
    command = model_command(package.read_bytes(), signature.read_bytes())
    _ask(client, station, command, "it uses the model")


def _ask(client: Client, station: str, command: command_pb2.Command, done: str) -> None:
    client.command(station, command)
    typer.echo(f"{station}: {done}")
