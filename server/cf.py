"""What every NetCDF file of ours says alike, after the CF conventions, https://cfconventions.org: where and since when.

Such a file is a discrete sampling geometry of one time series (CF section 9 and appendix H.2), provided that its place
is known: CF wants one. Knows no values.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import netCDF4
import numpy as np

from fieldpost.errors import BrokenStateError, TryAgainError

CF_VERSION = "CF-1.11"


@dataclass(frozen=True, slots=True)
class Site:
    """An instrument and where it stands; None where the registry does not know."""

    station: str
    instrument: str
    instrument_model: str
    latitude_deg: float | None
    longitude_deg: float | None
    altitude_m: float | None


def create_site(file: netCDF4.Dataset, site: Site) -> list[str]:
    """Creates station and position as scalar coordinates; returns their names, for the attribute `coordinates`."""
    station = file.createVariable("station", str, ())
    station.setncattr("long_name", "station")
    station[...] = site.station
    if site.latitude_deg is not None and site.longitude_deg is not None:
        file.setncattr("featureType", "timeSeries")
        station.setncattr("cf_role", "timeseries_id")
    places = (
        ("latitude", site.latitude_deg, "degrees_north", "Y"),
        ("longitude", site.longitude_deg, "degrees_east", "X"),
        ("altitude", site.altitude_m, "m", "Z"),
    )
    created = []
    for name, value, units, axis in places:
        if value is not None:
            variable = file.createVariable(name, "f8", ())
            attributes = {"standard_name": name, "long_name": f"{name} of the station", "units": units, "axis": axis}
            variable.setncatts(attributes)
            if name == "altitude":
                variable.setncattr("positive", "up")
            variable[...] = value
            created.append(name)
    return [*created, "station"]


def clock_attributes(day: date) -> dict[str, str]:
    """How instants are counted, in seconds from the first instant of a UTC day."""
    return {
        "units": f"seconds since {day}T00:00:00Z",
        "calendar": "standard",
        "units_metadata": "leap_seconds: none",  # Unix time counts none
    }


def create_column(
    file: netCDF4.Dataset,
    name: str,
    kind: str,
    dimensions: tuple[str, ...],
    attributes: Mapping[str, object],
    fill_value: np.float32 | np.int64 | None = None,
) -> None:
    """Creates a compressed variable."""
    variable = file.createVariable(
        name, kind, dimensions, compression="zlib", complevel=4, shuffle=True, fill_value=fill_value
    )
    variable.setncatts(attributes)


@contextmanager
def netcdf_errors(path: Path, kind: type[TryAgainError | BrokenStateError]) -> Iterator[None]:
    """The NetCDF library says RuntimeError for whatever the disk refuses, and for whatever it cannot read."""
    try:
        yield
    except RuntimeError as error:
        message = f"the file {path} could not be written or read: {error}"
        raise kind(message, hint="check the disk and its free space") from error
