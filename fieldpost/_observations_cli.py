"""The commands `fieldpost observations`, `read` and `send`."""

from __future__ import annotations

import json
import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from fieldpost._cli_options import Instrument, Json, Since, Station, Until, asks_server, moments, progress_bar
from fieldpost._render import message_json
from fieldpost._render_server import observation_lines
from fieldpost._sending import SendReport
from fieldpost._sent_files import SentFiles, state_folder
from fieldpost._times import Moment, parse_moment
from fieldpost.client import Client
from fieldpost.errors import RejectedError, TryAgainError


@asks_server
def observations(
    client: Client,
    station: Station = None,
    instrument: Instrument = None,
    since: Since = None,
    until: Until = None,
    as_json: Json = False,
) -> None:
    """Print the observations that the server holds."""
    first, last = moments(since, until)
    found = client.iter_observations(station=station, instrument=instrument, since=first, until=last)
    if as_json:
        for held in found:
            typer.echo(message_json(held))
        return
    lines = list(observation_lines(found))
    if len(lines) == 1:
        typer.echo("no observations match", err=True)
        return
    for line in lines:
        typer.echo(line)


@asks_server
def read(
    client: Client,
    observation_id: Annotated[int, typer.Argument(metavar="ID", min=1, help="As `fieldpost observations` prints it.")],
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="FILE", help="Where to put it; - for standard output.")
    ] = "-",
) -> None:
    """Fetch the bytes of an observation.

    They are as the instrument wrote them, and their SHA-256 is checked. The file appears when all of it has come.
    """
    if output == "-":
        for piece in client.iter_read(observation_id):
            sys.stdout.buffer.write(piece)
        return
    path = Path(output)
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("wb") as file:
            for piece in client.iter_read(observation_id):
                file.write(piece)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


@asks_server
def send(
    client: Client,
    files: Annotated[list[Path], typer.Argument(metavar="FILE", exists=True, dir_okay=False, help="What to send.")],
    station: Annotated[str, typer.Option(metavar="NAME", help="In whose name.")],
    instrument: Annotated[str, typer.Option(metavar="NAME", help="What wrote the files, as registered.")],
    measured: Annotated[
        str | None,
        typer.Option(
            metavar="TIME", help="When they were measured; 'mtime' for when each file was written. Else: what is in it."
        ),
    ] = None,
    payload_format: Annotated[str, typer.Option("--format", metavar="NAME", help="For example netcdf or png.")] = "",
    as_json: Json = False,
) -> None:
    """Send files, one observation each; a file of any size.

    Run it again where it broke off: nothing is stored twice, and a large file goes on where it was. For that, which
    file has which number is kept in a journal for each station, under ~/.local/state/fieldpost/sent. A file that was
    changed or moved is a new observation.
    """
    with SentFiles(state_folder(os.environ), station) as sent:
        numbered = sent.number(instrument, files)
        measures = _measured(files, measured)
        total_bytes = sum(path.stat().st_size for _, path in numbered)
        with progress_bar("sending", total_bytes) as progress:
            outgoing = sent.observations(instrument, numbered, measures, payload_format)
            report = client.send(outgoing, progress=progress)
        _print_report(report, dict(numbered), as_json=as_json)


def _measured(files: list[Path], measured: str | None) -> dict[Path, Moment]:
    if measured is None:
        return {}
    if measured == "mtime":
        return {path: datetime.fromtimestamp(path.stat().st_mtime, UTC) for path in files}
    return dict.fromkeys(files, parse_moment(measured, datetime.now(UTC)))


def _print_report(report: SendReport, files: dict[int, Path], *, as_json: bool) -> None:
    refused = [{"file": str(files.get(no.sequence, "")), "detail": no.detail} for no in report.refused]
    if as_json:
        facts = {
            "sent_count": report.sent_count,
            "held_count": report.held_count,
            "duplicate_count": report.duplicate_count,
            "refused": refused,
        }
        typer.echo(json.dumps(facts))
    else:
        typer.echo(f"{report.held_count} of {report.sent_count} held, {report.duplicate_count} of them before")
        for each in refused:
            typer.echo(f"refused: {each['file']}: {each['detail']}", err=True)
    if report.undecided:
        raise TryAgainError("expected an answer for each file, but got none for some", hint="send the same again")
    if refused:
        raise RejectedError(
            f"expected {report.sent_count} files to be held, but {len(refused)} were refused",
            hint="bring about what the reasons ask for, then send the same again",
        )
