"""The commands `fieldpost archive ...`: what is archived, and fetching it."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from fieldpost._archive_render import bag_facts, bag_lines, total_line
from fieldpost._archive_requests import ArchivedBag, parse_day
from fieldpost._cli_options import Instrument, Json, Station, asks_server, progress_bar
from fieldpost.client import Client
from fieldpost.errors import InvalidRequestError, UnknownObservationError

archive_app = typer.Typer(
    name="archive",
    help="Lists what is archived, and fetches it.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Days: TypeAlias = Annotated[
    str, typer.Argument(metavar="DAY", help="A UTC day such as 2025-06-01, or several: 2025-06-01..2025-06-30.")
]


@archive_app.command("list")
@asks_server
def list_bags(
    client: Client,
    station: Station = None,
    instrument: Instrument = None,
    first_day: Annotated[str | None, typer.Option(metavar="DAY", help="Only this UTC day and later ones.")] = None,
    last_day: Annotated[str | None, typer.Option(metavar="DAY", help="Only this UTC day and earlier ones.")] = None,
    all_versions: Annotated[
        bool, typer.Option("--all-versions", help="Every version of a day; else the newest alone.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Print what is archived: one line for each day of each instrument.

    "measured" is what the instrument wrote, "archived" what the bag takes, "ratio" the one by the other; "checked"
    and "copy" say when the bag, and its copy in the second place, were last read from the first to the last byte.
    """
    found = client.archive.iter(
        station=station, instrument=instrument, first_day=first_day, last_day=last_day, all_versions=all_versions
    )
    if as_json:
        for bag in found:
            typer.echo(json.dumps(bag_facts(bag)))
        return
    bags = list(found)
    if not bags:
        typer.echo("no bags match", err=True)
        return
    for line in bag_lines(bags, datetime.now(UTC)):
        typer.echo(line)
    typer.echo(total_line(bags), err=True)


@archive_app.command("get")
@asks_server
def get_bags(
    client: Client,
    name: Annotated[str, typer.Argument(metavar="STATION/INSTRUMENT", help="Whose days.")],
    days: Days,
    version: Annotated[int | None, typer.Option(min=1, help="This version; else the newest.")] = None,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="Below which the bags go.")] = Path(),
    as_json: Json = False,
) -> None:
    """Fetch bags, and compare every file with its manifest.

    A bag appears as FOLDER/station/instrument/YYYY/YYYY-MM-DD.vN when all of it has come. Run it again where it broke
    off: it goes on from the byte, and what is there already is only read through. Days of a range that are not archived
    are passed over.
    """
    station, instrument = _parse_name(name)
    for bag in _find(client, station, instrument, *_parse_days(days), version):
        bag_bytes = bag.bag_bytes or sum(each.file_bytes for each in client.archive.files(bag))
        with progress_bar(str(bag), bag_bytes) as show:
            folder = client.archive.fetch(bag, output, progress=lambda done_bytes, _: show(done_bytes))
        facts = {**bag_facts(bag), "folder": str(folder)}
        typer.echo(json.dumps(facts) if as_json else str(folder))


def _find(
    client: Client, station: str, instrument: str, first_day: date, last_day: date, version: int | None
) -> list[ArchivedBag]:
    if first_day == last_day:
        return [client.archive.get(station, instrument, first_day, version=version)]
    if version is not None:
        raise InvalidRequestError(
            "expected one day together with --version, but got several", hint="fetch the days one by one"
        )
    bags = client.archive.list(station=station, instrument=instrument, first_day=first_day, last_day=last_day)
    if not bags:
        raise UnknownObservationError(
            f"expected bags of {station}/{instrument} from {first_day} to {last_day}, but none of them is archived",
            hint="`fieldpost archive list` shows what is",
        )
    return bags


def _parse_name(name: str) -> tuple[str, str]:
    station, slash, instrument = name.partition("/")
    if not (station and slash and instrument):
        raise InvalidRequestError(
            f"expected an instrument as STATION/INSTRUMENT, but got {name!r}",
            hint="`fieldpost archive list` prints them in this form",
        )
    return station, instrument


def _parse_days(days: str) -> tuple[date, date]:
    first, dots, last = days.partition("..")
    span = parse_day(first), parse_day(last if dots else first)
    if span[1] < span[0]:
        raise InvalidRequestError(f"expected the first day before the last, but got {days}")
    return span
