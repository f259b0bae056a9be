"""The command that fetches predictions from a server and averages them: 10-minute and hourly mixing height.

    python -m server.analyses.boundary_layer.products.command lindenberg/cl51 --day 2026-05-01 -o day.nc --plot day.png

It asks over the SDK, with the options of `fieldpost`; it needs no access to the server's database.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from fieldpost._cli_options import Json, asks_server
from fieldpost._times import iso_utc
from fieldpost.client import Client
from fieldpost.errors import InvalidRequestError, RejectedError, TryAgainError, UnknownInstrumentError
from fieldpost.v1.model_pb2 import MODEL_STATE_ACTIVE
from server.analyses.boundary_layer import NAME
from server.analyses.boundary_layer.classical.layers import FLAG_GOOD, FLAG_LOW
from server.analyses.boundary_layer.products.cells import NANOS, Product, average
from server.analyses.boundary_layer.products.netcdf_file import describe_rules, write_product
from server.analyses.boundary_layer.products.retrievals import Retrievals, gather
from server.analyses.boundary_layer.products.rules import DAY_S, HOUR_S, TEN_MINUTES_S, Reason, Rules
from server.cf import Site

FILE_SPAN_MAX = timedelta(hours=1)
"""An observation may have begun so long before the first day and reach into it: a file that holds an hour."""
MODULE = "server.analyses.boundary_layer.products.command"


class Every(StrEnum):
    """How long a cell is."""

    TEN_MINUTES = "10min"
    HOUR = "1h"


app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"max_content_width": 100, "help_option_names": ["-h", "--help"]},
)


@app.command(epilog="Exit status: 0 done, 1 failed, 2 wrong usage, 75 not now: the same may succeed later.")
@asks_server
def products(
    client: Client,
    instrument: Annotated[str, typer.Argument(metavar="STATION/INSTRUMENT", help="Whose heights.")],
    day: Annotated[datetime, typer.Option(formats=["%Y-%m-%d"], metavar="DATE", help="The first UTC day.")],
    days: Annotated[int, typer.Option(min=1, max=366, help="How many days.")] = 1,
    every: Annotated[Every, typer.Option(help="How long a cell is.")] = Every.TEN_MINUTES,
    version: Annotated[int | None, typer.Option(min=1, help="The model version; else the active one.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write CF-NetCDF here.", dir_okay=False)
    ] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw them here, as PNG.", dir_okay=False)] = None,
    as_json: Json = False,
    keep_cloud: Annotated[
        bool, typer.Option("--keep-cloud", help="Let profiles under a cloud count; the network's rule drops them.")
    ] = False,
    only_good: Annotated[
        bool, typer.Option("--only-good", help="Let no profile count whose quality flag is below 2.")
    ] = False,
    cadence_s: Annotated[
        float | None,
        typer.Option(min=0.1, max=DAY_S, metavar="SECONDS", help="From profile to profile; else found in the data."),
    ] = None,
) -> None:
    """Average retrieved mixing heights over 10 minutes or an hour, by the rules of a ceilometer network.

    Rain, fog and cloud are screened, half of the profiles have to count, and they may scatter by 200 m. Each cell
    without a value says why; the file also has the means without any rule.
    """
    if output is None and plot is None and not as_json:
        raise InvalidRequestError("expected --output, --plot or --json, but got none of them", hint="add -o FILE.nc")
    site = find_site(client, instrument)
    chosen = version or find_active(client)
    found = fetch(client, site, chosen, day.replace(tzinfo=UTC), days)
    rules = Rules(
        is_cloud_screened=not keep_cloud, quality_min=FLAG_GOOD if only_good else FLAG_LOW, cadence_s=cadence_s
    )
    cell_s = {Every.TEN_MINUTES: TEN_MINUTES_S, Every.HOUR: HOUR_S}[every]
    product = average(found, int(day.replace(tzinfo=UTC).timestamp()) * NANOS, days, cell_s, rules)
    if output is not None:
        history = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} averaged from predictions of {client.address}: {MODULE}"
        write_aside(output, product, site, chosen, history)
    if plot is not None:
        from server.analyses.boundary_layer.products.figure import draw_products

        draw_products(plot, f"{instrument}, {NAME}@{chosen}, every {every.value}", product, found)
    for line in json_lines(product) if as_json else summary_lines(product):
        typer.echo(line)


def find_site(client: Client, instrument: str) -> Site:
    """Looks an instrument up at the server.

    Raises:
        InvalidRequestError: It is not written as station/instrument.
        UnknownInstrumentError: The server knows none of that name.
    """
    station_name, slash, name = instrument.partition("/")
    if not (station_name and slash and name):
        raise InvalidRequestError(f"expected STATION/INSTRUMENT, but got {instrument!r}", hint="e.g. lindenberg/cl51")
    stations = client.stations()
    for station in stations:
        for each in station.instruments:
            if (station.station, each.instrument) == (station_name, name):
                place = (each.latitude_deg, each.longitude_deg, each.altitude_m)
                known = (None if math.isnan(value) else value for value in place)
                return Site(station_name, name, each.instrument_model, *known)
    names = ", ".join(f"{station.station}/{each.instrument}" for station in stations for each in station.instruments)
    raise UnknownInstrumentError(
        f"expected an instrument of {client.address}, but got {instrument}", hint=f"it has {names or 'none'}"
    )


def find_active(client: Client) -> int:
    """The active version of the analysis."""
    for model in client.models.list(NAME):
        if model.state == MODEL_STATE_ACTIVE:
            return model.model_version
    raise RejectedError(f"expected an active version of {NAME}, but the server has none", hint="name one: --version")


def fetch(client: Client, site: Site, version: int, first_day: datetime, day_count: int) -> Retrievals:
    """Reads what a version found on some days.

    Raises:
        RejectedError: Nothing.
    """
    found = gather(
        client.iter_predictions(
            station=site.station,
            instrument=site.instrument,
            analysis=NAME,
            model_version=version,
            since=first_day - FILE_SPAN_MAX,
            until=first_day + timedelta(days=day_count),
        )
    )
    if not len(found):
        raise RejectedError(
            f"expected predictions of {NAME}@{version} for {site.station}/{site.instrument} on {first_day:%Y-%m-%d}"
            f"{f' and {day_count - 1} days after it' if day_count > 1 else ''}, but there are none",
            hint=f"see `fieldpost observations --station {site.station}` and `fieldpost models list`",
        )
    return found


def write_aside(path: Path, product: Product, site: Site, version: int, history: str) -> None:
    """Writes the file; it has its name when it is whole, and takes the place of one that was there.

    Raises:
        TryAgainError: The disk refuses.
    """
    part = path.with_name(f"{path.name}.part")
    try:
        part.unlink(missing_ok=True)
        write_product(part, product, site, version, history)
        part.replace(path)
    except OSError as error:
        raise TryAgainError(f"the file {path} could not be written: {error}", hint="check the folder") from error
    finally:
        part.unlink(missing_ok=True)


def json_lines(product: Product) -> Iterator[str]:
    """One JSON object a cell: what is missing is null."""
    for cell, start in enumerate(product.start_unix_nanos.tolist()):
        row: dict[str, object] = {
            "start": iso_utc(start),
            "end": iso_utc(start + product.cell_s * NANOS),
            "expected_count": int(product.expected_count[cell]),
            "is_provisional": bool(product.is_provisional[cell]),
        }
        for name, cells in product.heights.items():
            row |= {
                name: _shown(cells.mean_m[cell]),
                f"{name}_median": _shown(cells.median_m[cell]),
                f"{name}_standard_deviation": _shown(cells.standard_deviation_m[cell]),
                f"{name}_standard_error": _shown(cells.standard_error_m[cell]),
                f"{name}_count": int(cells.count[cell]),
                f"{name}_missing_reason": reason_names(int(cells.reasons[cell])),
            }
        yield json.dumps(row, allow_nan=False)


def _shown(value: float) -> float | None:
    return round(float(value), 1) if math.isfinite(value) else None


def reason_names(reasons: int) -> list[str]:
    """The bits of a mask in words."""
    return [str(each.name).lower() for each in Reason if reasons & each]


def summary_lines(product: Product) -> Iterator[str]:
    """How many cells have a value, and how often which rule left one out."""
    for name, cells in product.heights.items():
        valid_count = int((cells.reasons == 0).sum())
        often = {each: int((cells.reasons & each > 0).sum()) for each in Reason}
        why = ", ".join(f"{str(each.name).lower()} {count}" for each, count in often.items() if count)
        yield f"{name}: {valid_count} of {len(cells.reasons)} cells have a value" + (f" ({why})" if why else "")
    yield describe_rules(product)


def main() -> None:
    """Runs the command line."""
    app(prog_name=f"python -m {MODULE}")


if __name__ == "__main__":
    main()
