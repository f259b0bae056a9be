"""The predictions of one model version on a day as a CF-NetCDF file: a time series at one place.

One row is one sample; a prediction without samples (it failed, and says why) has one row in which every value is
missing, so that nothing of the store is left out. How the file describes itself stands in cf.py. Knows no bag.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import netCDF4
import numpy as np
from numpy.typing import NDArray

from fieldpost.errors import BrokenStateError, InvalidRequestError, TryAgainError
from fieldpost.names import NAME_PATTERN
from fieldpost.v1 import prediction_pb2
from flows.bags.cf import NO_SAMPLE, create_header, file_variable
from flows.bags.day import Contents, Series, row_instants
from server.archive.bags import DayPrediction, InstrumentDay
from server.cf import netcdf_errors

PAGE_PREDICTIONS = 500


@dataclass(frozen=True, slots=True)
class Columns:
    """Some rows, as they stand in the file.

    Attributes:
        values: By variable of the file, each (rows,).
        texts: The same for variables that hold words, each (rows,): why a row has no values, and which it has, where
            the file tells.
        row_count: How many.
    """

    values: dict[str, NDArray[np.generic]]
    texts: dict[str, list[str]]
    row_count: int


def file_name(series: Series) -> str:
    """For example "predictions-boundary-layer-height-v1.nc".

    Raises:
        InvalidRequestError: The analysis has a name that cannot be part of a file's name.
    """
    analysis = series.model.analysis
    if not NAME_PATTERN.fullmatch(analysis):
        raise InvalidRequestError(
            f"expected an analysis name of a-z, 0-9 and '-', but got {analysis!r}", hint="rename the analysis"
        )
    return f"predictions-{analysis}-v{series.model.version}.nc"


def write_predictions(
    path: Path,
    day: InstrumentDay,
    contents: Contents,
    series: Series,
    predictions: Iterable[DayPrediction],
    *,
    history: str,
) -> None:
    """Writes the file.

    Args:
        path: Where to.
        day: Which day of which instrument.
        contents: What the day holds.
        series: What the model version said, in numbers.
        predictions: Its predictions, in the order of their observations.
        history: The file's first line of history.

    Raises:
        TryAgainError: The disk refuses.
    """
    with netcdf_errors(path, TryAgainError), netCDF4.Dataset(path, "x", format="NETCDF4") as file:
        create_header(file, day, contents, series, history)
        start = 0
        for columns in read_columns(day, contents, series, predictions):
            stop = start + columns.row_count
            for name, values in columns.values.items():
                file[name][start:stop] = values
            for name, texts in columns.texts.items():
                file[name][start:stop] = np.array(texts, dtype=object)
            start = stop


def verify_predictions(
    path: Path, day: InstrumentDay, contents: Contents, series: Series, predictions: Iterable[DayPrediction]
) -> int:
    """Reads the file again and compares every value with the store.

    Returns:
        How many rows were compared.

    Raises:
        BrokenStateError: The file differs from the store; the message says where.
    """
    start = 0
    with netcdf_errors(path, BrokenStateError), netCDF4.Dataset(path) as file:
        file.set_auto_mask(False)
        for columns in read_columns(day, contents, series, predictions):
            stop = start + columns.row_count
            for name, values in columns.values.items():
                if not np.array_equal(file[name][start:stop], values, equal_nan=values.dtype.kind == "f"):
                    raise BrokenStateError(f"expected rows {start} to {stop} of {name} as stored, but {path} differs")
            for name, texts in columns.texts.items():
                if list(file[name][start:stop]) != texts:
                    raise BrokenStateError(f"expected rows {start} to {stop} of {name} as stored, but {path} differs")
            start = stop
    if start != series.row_count:
        raise BrokenStateError(f"expected {series.row_count} rows in {path}, but compared {start}")
    return start


def read_columns(
    day: InstrumentDay, contents: Contents, series: Series, predictions: Iterable[DayPrediction]
) -> Iterator[Columns]:
    """The predictions as the columns of the file, some at a time."""
    remaining = iter(predictions)
    epochs = {epoch: number for number, epoch in enumerate(contents.epochs)}
    while page := list(islice(remaining, PAGE_PREDICTIONS)):
        yield _to_columns(day, epochs, series, page)


def _to_columns(
    day: InstrumentDay, epochs: Mapping[str, int], series: Series, page: Sequence[DayPrediction]
) -> Columns:
    parsed = [prediction_pb2.Prediction.FromString(row.content) for row in page]
    instants = [row_instants(row, prediction) for row, prediction in zip(page, parsed, strict=True)]
    row_counts = [len(each) for each in instants]
    values: dict[str, NDArray[np.generic]] = {
        "time": seconds_of_day(day.first_unix_nanos, [instant for each in instants for instant in each]),
        "epoch": np.repeat(np.array([epochs[row.epoch] for row in page], np.int32), row_counts),
        "sequence": np.repeat(np.array([row.sequence for row in page], np.int64), row_counts),
        "predict_time": np.repeat(
            seconds_of_day(day.first_unix_nanos, [row.predict_unix_nanos for row in page]), row_counts
        ),
        "sample_unix_nanos": np.array(
            [nanos for prediction in parsed for nanos in prediction.sample_unix_nanos or [NO_SAMPLE]], np.int64
        ),
        "predict_unix_nanos": np.repeat(np.array([row.predict_unix_nanos for row in page], np.int64), row_counts),
        "is_provisional": np.repeat(np.array([row.is_provisional for row in page], np.int8), row_counts),
    }
    variables = [{variable.name: variable for variable in prediction.variables} for prediction in parsed]
    for name in series.variables:
        values[file_variable(name)] = _values(name, [each.get(name) for each in variables], row_counts)
    texts: dict[str, list[str]] = {}
    if series.failure_count:
        texts["failure"] = _repeat([_to_text(prediction.failure) for prediction in parsed], row_counts)
    if not series.is_uniform:
        names = [" ".join(variable.name for variable in prediction.variables) for prediction in parsed]
        texts["variable_names"] = _repeat(names, row_counts)
    return Columns(values, texts, sum(row_counts))


def _repeat(texts: Sequence[str], row_counts: Sequence[int]) -> list[str]:
    return [text for text, count in zip(texts, row_counts, strict=True) for _ in range(count)]


def _to_text(failure: str) -> str:
    """NetCDF's strings end at a null character."""
    return failure.replace("\0", "\N{SYMBOL FOR NULL}")


def _values(
    name: str, variables: Sequence[prediction_pb2.Variable | None], row_counts: Sequence[int]
) -> NDArray[np.float32]:
    """A variable of all predictions, (rows,); NaN where a prediction does not have it."""
    found: list[float] = []  # one list for all: an array for each prediction costs ten times the time
    for variable, row_count in zip(variables, row_counts, strict=True):
        if variable is None:
            found += [np.nan] * row_count
        elif len(variable.values) == row_count:
            found += variable.values
        else:
            raise BrokenStateError(
                f"expected {row_count} values of {name}, one a sample, but got {len(variable.values)}",
                hint="delete the prediction of this observation, so that it is made again",
            )
    return np.array(found, np.float32)


def seconds_of_day(first_unix_nanos: int, unix_nanos: Sequence[int]) -> NDArray[np.float64]:
    """Seconds since the day began, float64: within a day they hold every nanosecond exactly enough to give it back."""
    return (np.array(unix_nanos, np.int64) - first_unix_nanos) / 1e9
