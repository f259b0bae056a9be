"""Reads NetCDF files from memory, with errors of ours instead of the library's. Knows no instrument."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import netCDF4
import numpy as np
from numpy.typing import NDArray

from fieldpost.errors import InvalidObservationError
from server.analyses.boundary_layer.decoding.netcdf_header import check_header

TIME_UNITS = re.compile(
    r"(seconds|minutes|hours|days) since (\d{4})-(\d{1,2})-(\d{1,2})(?:[ T](\d{2}):(\d{2}):(\d{2}))?"
)
SECONDS = {"seconds": 1, "minutes": 60, "hours": 3600, "days": 86400}
LATEST_UNIX_S = 4102444800
"""2100-01-01: instruments with a broken clock write times far beyond."""
IMPOSSIBLE_BACKSCATTER = 1.0
"""m-1 sr-1; the densest cloud has 1e-2."""


@contextmanager
def open_netcdf(payload: bytes, name: str) -> Iterator[netCDF4.Dataset]:
    """The data set in these bytes.

    Raises:
        InvalidObservationError: It cannot be opened, or breaks while it is read.
    """
    check_header(payload, name)
    try:
        # damaged bytes make numbers of any size; what becomes of them is checked, not warned of
        with np.errstate(over="ignore", invalid="ignore"), netCDF4.Dataset("observation.nc", memory=payload) as dataset:
            yield dataset
    except (
        OSError,
        RuntimeError,
        ValueError,
        OverflowError,
        IndexError,
        TypeError,
        AttributeError,
        MemoryError,
    ) as error:
        raise InvalidObservationError(
            f"expected a NetCDF file of a {name}, but it cannot be read: {type(error).__name__}: {error}"
        ) from error


def read(dataset: netCDF4.Dataset, name: str, dimension_count: int | None = None) -> NDArray[np.float64]:
    """A numeric variable, with NaN where it is masked.

    Raises:
        InvalidObservationError: There is none of that name, or it has another number of dimensions.
    """
    if name not in dataset.variables:
        raise InvalidObservationError(
            f"expected a variable {name!r}, but the file has {', '.join(sorted(dataset.variables))[:400]}"
        )
    values = np.ma.asarray(dataset.variables[name][...])
    if values.dtype.kind not in "fiu":
        raise InvalidObservationError(f"expected numbers in {name!r}, but got {values.dtype}")
    if dimension_count is not None and values.ndim != dimension_count:
        raise InvalidObservationError(
            f"expected {dimension_count} dimensions in {name!r}, but got shape {values.shape}"
        )
    filled: NDArray[np.float64] = np.ma.filled(values.astype(np.float64), np.nan)
    return filled


def to_backscatter(signal: NDArray[np.float64], factor: float) -> NDArray[np.float32]:
    """Attenuated backscatter, m-1 sr-1, float32; NaN where it is beyond anything that air or cloud can have."""
    beta = signal * factor
    return np.where(np.abs(beta) < IMPOSSIBLE_BACKSCATTER, beta, np.nan).astype(np.float32)


def read_times(dataset: netCDF4.Dataset) -> NDArray[np.int64]:
    """The variable `time` as nanoseconds since 1970-01-01 UTC: (times,), int64.

    Raises:
        InvalidObservationError: The unit is no CF unit of time, or a time lies before 1970 or after 2100.
    """
    values = read(dataset, "time", 1)
    units = str(getattr(dataset.variables["time"], "units", ""))
    match = TIME_UNITS.match(units)
    if match is None:
        raise InvalidObservationError(
            f"expected a unit such as 'seconds since 1970-01-01 00:00:00', but got {units!r} (time)"
        )
    year, month, day, hour, minute, second = (int(part or 0) for part in match.groups()[1:])
    origin_s = datetime(year, month, day, hour, minute, second, tzinfo=UTC).timestamp()
    unix_s = values * SECONDS[match[1]] + origin_s
    if not np.all((unix_s >= 0) & (unix_s < LATEST_UNIX_S)):
        raise InvalidObservationError("expected times between 1970 and 2100, but some are not (variable time)")
    # whole seconds and the rest apart: a double holds 1.6e9 s to 0.2 µs only
    whole = np.floor(unix_s)
    return whole.astype(np.int64) * 1_000_000_000 + np.rint((unix_s - whole) * 1e6).astype(np.int64) * 1000


def read_height(dataset: netCDF4.Dataset, tilt_deg: float, gate_count: int) -> NDArray[np.float64]:
    """The variable `range` in metres, times the cosine of the tilt: (gates,).

    Raises:
        InvalidObservationError: It is not ascending in even steps, or has another length.
    """
    distance = read(dataset, "range", 1)
    if str(getattr(dataset.variables["range"], "units", "m")).lower() in ("km", "kilometers", "kilometres"):
        distance = distance * 1000
    if len(distance) != gate_count or gate_count < 2:
        raise InvalidObservationError(f"expected a range for each of {gate_count} gates, but got {len(distance)}")
    steps = np.diff(distance)
    if not (steps[0] > 0 and np.allclose(steps, steps[0], rtol=0.01)):
        raise InvalidObservationError("expected a range that ascends in even steps, but got another (variable range)")
    height: NDArray[np.float64] = distance * np.cos(np.deg2rad(tilt_deg))
    return height


def median_or(values: NDArray[np.float64], default: float) -> float:
    """The median of the values that are there; default where there is none."""
    present = values[np.isfinite(values)]
    return float(np.median(present)) if present.size else default
