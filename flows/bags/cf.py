"""How a NetCDF file of predictions describes itself, by the CF conventions; what all our files say is in server/cf.py.

Knows no values.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import netCDF4
import numpy as np

from fieldpost.errors import InvalidRequestError
from flows.bags.day import Contents, Series
from server.archive.bags import InstrumentDay
from server.cf import CF_VERSION, Site, clock_attributes, create_column, create_site

STANDARD_NAMES = frozenset({"atmosphere_boundary_layer_thickness", "cloud_base_altitude"})
"""Names of the CF standard name table that predictions carry; other names go without the attribute."""
ERROR_SUFFIX = "_standard_error"
QUALITY_FLAG = "quality_flag"
_OWN_NAMES = frozenset(
    {"time", "sample", "station", "latitude", "longitude", "altitude", "epoch", "sequence", "predict_time", "failure"}
    | {"sample_unix_nanos", "predict_unix_nanos", "is_provisional", "variable_names"}
)
NO_SAMPLE = np.iinfo(np.int64).min
"""Stands in sample_unix_nanos where a prediction has no samples of its own."""
_VARIABLE_PATTERN = re.compile(r"[A-Za-z][A-Za-z0-9_]*")


def create_header(file: netCDF4.Dataset, day: InstrumentDay, contents: Contents, series: Series, history: str) -> None:
    """Creates all dimensions, variables and attributes of a new file.

    The dimension is `time` where instants ascend strictly, as CF asks of a coordinate variable; where a station
    measured one instant twice it is `sample`, with time as an auxiliary coordinate.
    """
    file.setncatts(_global_attributes(day, series, history))
    dimension = "time" if series.is_ascending else "sample"
    file.createDimension(dimension, series.row_count)
    place = create_site(file, to_site(day))
    _create_identities(file, dimension, day, contents, series)
    coordinates = place if dimension == "time" else ["time", *place]  # a coordinate variable is found by its name
    for name, kind in series.variables.items():
        words = {"units": kind.unit, **describe(name, series.variables), "coordinates": " ".join(coordinates)}
        attributes = words | describe_classes(kind.flag_meanings)
        create_column(file, file_variable(name), "f4", (dimension,), attributes, fill_value=np.float32(np.nan))


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
        "title": f"{series.model.analysis} at {day.station}/{day.instrument} on {day.day}",
        "source": f"model version {model} on observations of a {day.instrument_model}",
        "history": history,
        "references": "the observations lie beside this file in observations.tar.zst, the software in provenance.json",
        "comment": "epoch and sequence name the observation that a row was predicted from",
        "station_name": day.station,
        "instrument": day.instrument,
        "instrument_model": day.instrument_model,
        "analysis": series.model.analysis,
        "predicted_variables": " ".join(series.variables),
    }
    return attributes | {"model_version": str(series.model.version)}


def to_site(day: InstrumentDay) -> Site:
    """Which instrument it is, and where."""
    return Site(day.station, day.instrument, day.instrument_model, day.latitude_deg, day.longitude_deg, day.altitude_m)


def _create_identities(
    file: netCDF4.Dataset, dimension: str, day: InstrumentDay, contents: Contents, series: Series
) -> None:
    """When a row was measured and predicted, from which observation, and why there may be no value."""
    clock = clock_attributes(day.day)
    epochs = {
        "flag_values": np.arange(len(contents.epochs), dtype=np.int32),
        "flag_meanings": " ".join(contents.epochs),
    }
    time = {"standard_name": "time", "long_name": "time of the sample", "axis": "T", **clock}
    create_column(file, "time", "f8", (dimension,), time)
    create_column(
        file, "predict_time", "f8", (dimension,), {"long_name": "time at which the prediction was stored", **clock}
    )
    create_column(file, "epoch", "i4", (dimension,), {"long_name": "epoch of the observation", **epochs})
    create_column(file, "sequence", "i8", (dimension,), {"long_name": "sequence of the observation in its epoch"})
    _create_exact_instants(file, dimension)
    standing = {
        "long_name": "whether it was to be predicted again, once what came before it was there",
        "standard_name": "status_flag",
        "flag_values": np.array([0, 1], np.int8),
        "flag_meanings": "final provisional",
    }
    create_column(file, "is_provisional", "i1", (dimension,), standing)
    if series.failure_count:
        failure = file.createVariable("failure", str, (dimension,))
        failure.setncattr("long_name", "why the observation could not be predicted")
    if not series.is_uniform:
        names = file.createVariable("variable_names", str, (dimension,))
        names.setncattr("long_name", "which of the predicted variables the prediction has, in its order")


def _create_exact_instants(file: netCDF4.Dataset, dimension: str) -> None:
    """A number of seconds holds every nanosecond near its day only, and a prediction may be made years later."""
    since = "in nanoseconds since 1970-01-01T00:00:00Z"
    sample = {"long_name": f"time of the sample {since}; missing where the prediction has no samples of its own"}
    create_column(file, "sample_unix_nanos", "i8", (dimension,), sample, fill_value=np.int64(NO_SAMPLE))
    stored = {"long_name": f"time at which the prediction was stored, {since}"}
    create_column(file, "predict_unix_nanos", "i8", (dimension,), stored)


def describe_classes(meanings: Sequence[str]) -> dict[str, object]:
    """Attributes of a variable whose values are numbers of classes, CF section 3.5; none where there are no classes.

    CF parts the meanings by blanks. Where one has a blank in it, an attribute of our own keeps them as they are.
    """
    if not meanings:
        return {}
    words = ["_".join(meaning.split()) or "_" for meaning in meanings]
    attributes: dict[str, object] = {"flag_values": np.arange(len(words), dtype=np.float32)}
    attributes["flag_meanings"] = " ".join(words)
    return attributes if words == list(meanings) else attributes | {"flag_labels": list(meanings)}


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
