"""The commands `fieldpost station ...`: what an operator asks of a station from afar."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from fieldpost._cli_options import DEFAULT_SERVER, Certificates, Debug, Server, connected, one_line_for_errors
from fieldpost._commands import model_command, replay_command, report_command, setting_command
from fieldpost._times import parse_moment
from fieldpost.v1 import command_pb2

station_app = typer.Typer(
    name="station",
    help="Asks a station for something, by way of the server, and waits for its answer.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Name: TypeAlias = Annotated[str, typer.Argument(metavar="STATION", help="The station's name.")]


@station_app.command()
def report(
    station: Name, server: Server = DEFAULT_SERVER, certificates: Certificates = None, debug: Debug = False
) -> None:
    """Make a station say how it is, now; `fieldpost stations` then prints it."""
    _ask(station, report_command(), "it has said how it is", server, certificates, debug)


@station_app.command()
def replay(
    station: Name,
    first: Annotated[int | None, typer.Option("--from", min=1, metavar="SEQUENCE", help="The first sequence.")] = None,
    last: Annotated[int | None, typer.Option("--to", min=1, metavar="SEQUENCE", help="The last sequence.")] = None,
    since: Annotated[
        str | None, typer.Option(metavar="TIME", help="Captured at or after: 2d (ago), 2026-06-01, 2026-06-01T12:00Z.")
    ] = None,
    until: Annotated[str | None, typer.Option(metavar="TIME", help="Captured before: the same forms.")] = None,
    server: Server = DEFAULT_SERVER,
    certificates: Certificates = None,
    debug: Debug = False,
) -> None:
    """Send observations again that the station still has: --from and --to, or --since and --until.

    They come behind what the station has just measured. What the server holds already is not stored twice.
    """
    with one_line_for_errors(debug):
        now = datetime.now(UTC)
        start = None if since is None else parse_moment(since, now)
        end = now if until is None and since is not None else None if until is None else parse_moment(until, now)
        ranges = [] if first is None and last is None else [(first or 1, last or first or 0)]
        command = replay_command(ranges, start, end)
    _ask(station, command, "it sends them again", server, certificates, debug)


@station_app.command("set")
def set_setting(
    station: Name,
    key: Annotated[str, typer.Argument(metavar="SETTING", help="For example rate_limit_bytes_per_s.")],
    value: Annotated[str, typer.Argument(metavar="VALUE", help="As in its settings file; '' to go back to that file.")],
    server: Server = DEFAULT_SERVER,
    certificates: Certificates = None,
    debug: Debug = False,
) -> None:
    """Change a setting of a station until it is changed again. Settings that could cut it off are refused."""
    _ask(
        station,
        setting_command(key, value),
        f"{key} is {value or 'as in its settings file'}",
        server,
        certificates,
        debug,
    )


@station_app.command()
def model(
    station: Name,
    package: Annotated[Path, typer.Argument(metavar="FILE", exists=True, dir_okay=False, help="The model package.")],
    signature: Annotated[
        Path, typer.Option(metavar="FILE", exists=True, dir_okay=False, help="Its Ed25519 signature, 64 bytes.")
    ],
    server: Server = DEFAULT_SERVER,
    certificates: Certificates = None,
    debug: Debug = False,
) -> None:
    """Make a station use a model for its first estimates, if it passes its trial there."""
    command = model_command(package.read_bytes(), signature.read_bytes())
    _ask(station, command, "it uses the model", server, certificates, debug)


def _ask(
    station: str, command: command_pb2.Command, done: str, server: str, certificates: Path | None, debug: bool
) -> None:
    with one_line_for_errors(debug), connected(server, certificates) as client:
        client.command(station, command)
        typer.echo(f"{station}: {done}")
