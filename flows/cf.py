"""How a NetCDF file of predictions describes itself: the CF conventions, version 1.11, https://cfconventions.org.

The file is a discrete sampling geometry of one time series (CF section 9 and appendix H.2). Knows no values.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import netCDF4
import numpy as np

from fieldpost.errors import InvalidRequestError
from flows.day import Contents, Series
from server.archive.bags import InstrumentDay

CF_VERSION = "CF-1.11"
STANDARD_NAMES = frozenset({"atmosphere_boundary_layer_thickness", "cloud_base_altitude"})
"""Names of the CF standard name table that predictions carry; other names go without the attribute."""
ERROR_SUFFIX = "_standard_error"
QUALITY_FLAG = "quality_flag"
_OWN_NAMES = frozenset(
    {"time", "sample", "station", "latitude", "longitude", "altitude", "epoch", "sequence", "predict_time", "failure"}
)
_VARIABLE_PATTERN = re.compile(r"[A-Za-z][A-Za-z0-9_]*")


def create_header(file: netCDF4.Dataset, day: InstrumentDay, contents: Contents, series: Series, history: str) -> None:
    """Creates all dimensions, variables and attributes of a new file.

    The dimension is `time` where instants ascend strictly, as CF asks of a coordinate variable; where a station
    measured one instant twice it is `sample`, with time as an auxiliary coordinate.
    """
    file.setncatts(_global_attributes(day, series, history))
    dimension = "time" if series.is_ascending else "sample"
    file.createDimension(dimension, series.row_count)
    _create_place(file, day)
    _create_identities(file, dimension, day, contents, series)
    coordinates = [name for name in ("time", "latitude", "longitude", "altitude", "station") if name in file.variables]
    if dimension == "time":
        coordinates.remove("time")  # a coordinate variable is found by its name
    for name, unit in series.units.items():
        attributes = {"units": unit, **describe(name, series.units), "coordinates": " ".join(coordinates)}
        _create(file, file_variable(name), "f4", dimension, attributes, fill_value=np.float32(np.nan))


def file_variable(name: str) -> str:
    """The name in the file: the analysis's own, unless the file needs that one for itself.

    Raises:
        InvalidRequestError: CF does not allow such a name.
    """
    if not _VARIABLE_PATTERN.fullmatch(name):
        raise InvalidRequestError(
            f"expected a variable name of letters, digits and '_' that begins with a letter, but got {name!r}",
            hint="correct the analysis: CF allows no others",
        )
    return f"predicted_{name}" if name in _OWN_NAMES else name


def _global_attributes(day: InstrumentDay, series: Series, history: str) -> dict[str, str]:
    model = f"{series.model.analysis}@{series.model.version}"
    attributes = {
        "Conventions": CF_VERSION,
        "featureType": "timeSeries",
        "title": f"{series.model.analysis} at {day.station}/{day.instrument} on {day.day}",
        "source": f"model version {model} on observations of a {day.instrument_model}",
        "history": history,
        "references": "the observations lie beside this file in observations.tar.zst, the software in provenance.json",
        "comment": "epoch and sequence name the observation that a row was predicted from",
        "station_name": day.station,
        "instrument": day.instrument,
        "instrument_model": day.instrument_model,
        "analysis": series.model.analysis,
    }
    return attributes | {"model_version": str(series.model.version)}


def _create_place(file: netCDF4.Dataset, day: InstrumentDay) -> None:
    """Station and position as scalar coordinates; what the registry does not know is left out."""
    station = file.createVariable("station", str, ())
    station.setncatts({"long_name": "station", "cf_role": "timeseries_id"})
    station[...] = day.station
    places = (
        ("latitude", day.latitude_deg, "degrees_north", "Y"),
        ("longitude", day.longitude_deg, "degrees_east", "X"),
        ("altitude", day.altitude_m, "m", "Z"),
    )
    for name, value, units, axis in places:
        if value is not None:
            variable = file.createVariable(name, "f8", ())
            attributes = {"standard_name": name, "long_name": f"{name} of the station", "units": units, "axis": axis}
            variable.setncatts(attributes)
            if name == "altitude":
                variable.setncattr("positive", "up")
            variable[...] = value


def _create_identities(
    file: netCDF4.Dataset, dimension: str, day: InstrumentDay, contents: Contents, series: Series
) -> None:
    """When a row was measured and predicted, from which observation, and why there may be no value."""
    clock = {
        "units": f"seconds since {day.day}T00:00:00Z",
        "calendar": "standard",
        "units_metadata": "leap_seconds: none",  # Unix time counts none
    }
    epochs = {
        "flag_values": np.arange(len(contents.epochs), dtype=np.int32),
        "flag_meanings": " ".join(contents.epochs),
    }
    time = {"standard_name": "time", "long_name": "time of the sample", "axis": "T", **clock}
    _create(file, "time", "f8", dimension, time)
    _create(file, "predict_time", "f8", dimension, {"long_name": "time at which the prediction was stored", **clock})
    _create(file, "epoch", "i4", dimension, {"long_name": "epoch of the observation", **epochs})
    _create(file, "sequence", "i8", dimension, {"long_name": "sequence of the observation in its epoch"})
    if series.failure_count:
        failure = file.createVariable("failure", str, (dimension,))
        failure.setncattr("long_name", "why the observation could not be predicted")


def describe(name: str, names: Iterable[str]) -> dict[str, str]:
    """Long name, standard name where CF has one, and which other variables speak of this one."""
    attributes = {"long_name": name.replace("_", " ")}
    stem = name.removesuffix(ERROR_SUFFIX)
    if name in STANDARD_NAMES:
        attributes["standard_name"] = name
    elif stem in STANDARD_NAMES:
        attributes["standard_name"] = f"{stem} standard_error"
    if name in STANDARD_NAMES:
        speaks_of_it = [file_variable(other) for other in names if other in (name + ERROR_SUFFIX, QUALITY_FLAG)]
        attributes |= {"ancillary_variables": " ".join(speaks_of_it)} if speaks_of_it else {}
    return attributes


def _create(
    file: netCDF4.Dataset,
    name: str,
    kind: str,
    dimension: str,
    attributes: Mapping[str, object],
    fill_value: np.float32 | None = None,
) -> None:
    variable = file.createVariable(
        name, kind, (dimension,), compression="zlib", complevel=4, shuffle=True, fill_value=fill_value
    )
    variable.setncatts(attributes)
