"""Averaged heights as a CF-NetCDF file: one time series at one place, each cell with its bounds. Knows no average.

Each height has its mean under its own name, and beside it `_median`, `_standard_deviation`, `_count`, `_completeness`
and `_missing_reason`, to which `ancillary_variables` leads.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import date
from pathlib import Path

import netCDF4
import numpy as np
from numpy.typing import NDArray

from fieldpost.errors import TryAgainError
from fieldpost.v1.prediction_pb2 import Prediction
from server.analyses.boundary_layer import NAME
from server.analyses.boundary_layer.products.cells import IN_ANY_SKY, NANOS, Cells, Product, average
from server.analyses.boundary_layer.products.retrievals import CLOUD_BASE, MIXING_HEIGHT, RESIDUAL_LAYER, gather
from server.analyses.boundary_layer.products.rules import DAY_S, HOUR_S, TEN_MINUTES_S, Reason, Rules
from server.cf import CF_VERSION, Site, clock_attributes, create_site, netcdf_errors

CELL_NAMES = {TEN_MINUTES_S: "10min", HOUR_S: "1h"}
CELL_WORDS = {TEN_MINUTES_S: "10-minute", HOUR_S: "hourly"}
LONG_NAMES = {
    MIXING_HEIGHT: "mixing height",
    MIXING_HEIGHT + IN_ANY_SKY: "mixing height in any sky, without any rule",
    RESIDUAL_LAYER: "height of the top of the residual layer",
    CLOUD_BASE: "height of the lowest cloud base",
}
REFERENCES = (
    "rules of the Unified Ceilometer Network: Caicedo et al. 2020, J. Atmos. Oceanic Technol. 37, number 10; "
    "docs/boundary-layer.md of Fieldpost"
)


def write_products(
    folder: Path, site: Site, version: int, day: date, predictions: Iterable[Prediction], history: str
) -> list[Path]:
    """Writes the 10-minute and the hourly file of a UTC day, by the network's rules; none where nothing was found.

    Args:
        folder: Where to.
        site: Which instrument.
        version: The model version that made the predictions.
        day: Which.
        predictions: Of the day.
        history: What is done here, when.

    Raises:
        TryAgainError: The disk refuses.
    """
    found = gather(predictions)
    if not len(found):
        return []
    written = []
    for cell_s, name in CELL_NAMES.items():
        product = average(found, (day - date(1970, 1, 1)).days * DAY_S * NANOS, 1, cell_s, Rules())
        written.append(folder / f"products-{NAME}-v{version}-{name}.nc")
        write_product(written[-1], product, site, version, history)
    return written


def write_product(path: Path, product: Product, site: Site, version: int, history: str) -> None:
    """Writes one file; there must be none of that name.

    Raises:
        TryAgainError: The disk refuses.
    """
    with netcdf_errors(path, TryAgainError), netCDF4.Dataset(path, "x", format="NETCDF4") as file:
        file.setncatts(_global_attributes(product, site, version, history))
        file.createDimension("time", len(product.start_unix_nanos))
        file.createDimension("bounds", 2)
        coordinates = {"coordinates": " ".join(create_site(file, site))}
        _create_time(file, product)
        for name, cells in product.heights.items():
            _create_height(file, name, cells, product, coordinates)
        _create(
            file,
            "expected_count",
            product.expected_count,
            {"long_name": "number of profiles in a cell without gaps; 0 where it cannot be told", "units": "1"}
            | coordinates,
        )
        provisional: dict[str, object] = {
            "long_name": "whether a profile of the cell will be predicted again, once what came before it is there",
            "standard_name": "status_flag",
            "flag_values": np.array([0, 1], np.int8),
            "flag_meanings": "final provisional",
        }
        _create(file, "is_provisional", product.is_provisional.astype(np.int8), provisional | coordinates)


def describe_rules(product: Product) -> str:
    """The rules in a sentence, for whoever opens the file."""
    rules = product.rules
    share = f"{100 * rules.completeness_min:g} %"
    screens = "rain, fog or cloud" if rules.is_cloud_screened else "rain or fog"
    hour = "" if product.cell_s == TEN_MINUTES_S else f"; an hour needs {share} of its 10-minute means"
    return (
        f"profiles hit by {screens} do not count (clouds up to {rules.cloud_ceiling_m:g} m); 10 minutes need {share} "
        f"of the expected profiles, with a quality flag of at least {rules.quality_min} and a standard deviation of at "
        f"most {rules.spread_max_m:g} m{hour}. Standard errors of the mean: errors of two profiles are correlated as "
        f"exp(-distance / {rules.error_correlation_s:g} s); what profiles that do not count would have told is not in "
        "them. Heights are above the ground"
    )


def _global_attributes(product: Product, site: Site, version: int, history: str) -> dict[str, str]:
    days = (product.start_unix_nanos[[0, -1]] // (DAY_S * NANOS)).astype("M8[D]")
    span = str(days[0]) if days[0] == days[1] else f"{days[0]} to {days[1]}"
    return {
        "Conventions": CF_VERSION,
        "title": f"{CELL_WORDS[product.cell_s]} mixing height at {site.station}/{site.instrument}, {span}",
        "source": f"model version {NAME}@{version} on observations of a {site.instrument_model}",
        "history": history,
        "references": REFERENCES,
        "comment": describe_rules(product),
        "station_name": site.station,
        "instrument": site.instrument,
        "instrument_model": site.instrument_model,
        "analysis": NAME,
        "model_version": str(version),
    }


def _create_time(file: netCDF4.Dataset, product: Product) -> None:
    """The middle of each cell, and its ends."""
    first = int(product.start_unix_nanos[0])
    clock = clock_attributes(np.datetime64(first // (DAY_S * NANOS), "D").item())
    start_s = (product.start_unix_nanos - first) / NANOS
    time = {"standard_name": "time", "long_name": "middle of the cell", "axis": "T", "bounds": "time_bounds", **clock}
    _create(file, "time", start_s + product.cell_s / 2, time)
    bounds = file.createVariable("time_bounds", "f8", ("time", "bounds"))  # CF 7.1: they have the units of time
    bounds[:] = np.stack([start_s, start_s + product.cell_s], axis=1)


def _create_height(
    file: netCDF4.Dataset, name: str, cells: Cells, product: Product, coordinates: dict[str, str]
) -> None:
    """A height with all that speaks of it."""
    title = LONG_NAMES[name]
    is_ruled = not name.endswith(IN_ANY_SKY)
    is_mean_of_means = product.cell_s == HOUR_S and is_ruled
    mean = "mean (of valid 10-minute means)" if is_mean_of_means else "mean"
    metres: dict[str, object] = {"units": "m", **coordinates}
    ones: dict[str, object] = {"units": "1", **coordinates}
    beside = ["_count", "_completeness"]
    if name.startswith(MIXING_HEIGHT):
        metres["standard_name"] = MIXING_HEIGHT
        beside.append("_standard_error")
        long_name = f"standard error of the mean of the {title}"
        error = metres | {"long_name": long_name, "standard_name": f"{MIXING_HEIGHT} standard_error"}
        _create(file, f"{name}_standard_error", cells.standard_error_m.astype(np.float32), error)
    if is_ruled:
        beside.append("_missing_reason")
        reasons: dict[str, object] = {
            "long_name": f"why there is no {title}; 0 where there is one",
            "standard_name": "status_flag",
            "flag_masks": np.array([each.value for each in Reason], np.int16),
            "flag_meanings": " ".join(str(each.name).lower() for each in Reason),
        }
        _create(file, f"{name}_missing_reason", cells.reasons, reasons | coordinates)
    leads_to = " ".join([*(name + suffix for suffix in beside), "is_provisional"])
    for suffix, long_name, values, method in (
        ("", title, cells.mean_m, mean),
        ("_median", f"median of the {title}", cells.median_m, "median"),
        ("_standard_deviation", f"standard deviation of the {title}", cells.standard_deviation_m, "standard_deviation"),
    ):
        attributes = metres | {"long_name": long_name, "cell_methods": f"time: {method}"}
        link = {} if suffix else {"ancillary_variables": leads_to}
        _create(file, name + suffix, values.astype(np.float32), attributes | link)
    count = {"long_name": f"profiles that count for the {title}", "standard_name": "number_of_observations"}
    _create(file, f"{name}_count", cells.count, ones | count)
    share = {"long_name": f"share of the expected profiles that counts for the {title}"}
    _create(file, f"{name}_completeness", _completeness(cells, product), ones | share)


def _completeness(cells: Cells, product: Product) -> NDArray[np.float32]:
    """NaN where the expected count cannot be told; an instrument a little faster than its cadence has 1."""
    expected = np.where(product.expected_count > 0, product.expected_count, np.nan)
    return np.minimum(cells.count / expected, 1).astype(np.float32)


def _create(file: netCDF4.Dataset, name: str, values: NDArray[np.generic], attributes: Mapping[str, object]) -> None:
    """Not compressed: with so few values that would make the file larger (measured: 111 kB a day, and not 62)."""
    fill_value = np.float32(np.nan) if values.dtype == np.float32 else None
    variable = file.createVariable(name, values.dtype.str[1:], ("time",), fill_value=fill_value)
    variable.setncatts(attributes)
    variable[:] = values
