"""Makes predictions again from a bag's NetCDF file, each as the store had it.

Read some rows at a time. Files of older bags, which say less, are read as far as they go. Knows no bag and no store.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import netCDF4
import numpy as np

from fieldpost.errors import BrokenStateError
from fieldpost.v1 import prediction_pb2
from flows.bags.cf import NO_SAMPLE, file_variable
from server.cf import netcdf_errors

PAGE_ROWS = 2048
_NANOS_PER_S = 10**9
_TEXTS = ("failure", "variable_names")
_NUMBERS = ("sequence", "time", "predict_time", "sample_unix_nanos", "predict_unix_nanos", "is_provisional")


class BagPrediction(NamedTuple):
    """A prediction, as a bag has it.

    Attributes:
        analysis: The question.
        version: Of the model.
        epoch: Of its observation.
        sequence: Likewise.
        predict_unix_nanos: When it was stored first.
        is_provisional: Whether it was to be made again.
        message: Samples, variables and failure alone, as a row of the store keeps them.
    """

    analysis: str
    version: int
    epoch: str
    sequence: int
    predict_unix_nanos: int
    is_provisional: bool
    message: prediction_pb2.Prediction


@dataclass(frozen=True, slots=True)
class _Kind:
    """What all values of a variable have in common."""

    name: str
    column: str
    unit: str
    flag_meanings: tuple[str, ...]


def read_predictions(path: Path, first_unix_nanos: int) -> Iterator[BagPrediction]:
    """The predictions of a file, in its order.

    Args:
        path: The file.
        first_unix_nanos: The first instant of its day.

    Raises:
        BrokenStateError: It is not such a file.
    """
    try:
        with netcdf_errors(path, BrokenStateError), netCDF4.Dataset(path) as file:
            file.set_auto_mask(False)
            yield from _Reader(file, first_unix_nanos).read()
    except (OSError, AttributeError, IndexError, ValueError) as error:
        raise BrokenStateError(f"expected predictions in {path}, but it cannot be read: {error!r}") from error


class _Reader:
    """Reads one open file."""

    def __init__(self, file: netCDF4.Dataset, first_unix_nanos: int) -> None:
        self._file = file
        self._first_unix_nanos = first_unix_nanos
        self._model = str(file.analysis), int(file.model_version)
        self._epochs = str(file["epoch"].flag_meanings).split()
        self._kinds = {kind.name: kind for kind in map(self._describe, _variable_names(file))}

    def read(self) -> Iterator[BagPrediction]:
        """Page by page; the last prediction of a page may go on in the next one, and is left to it."""
        start, page_rows = 0, PAGE_ROWS
        count = len(self._file["sequence"])
        while start < count:
            stop = min(start + page_rows, count)
            epochs, sequences = (self._file[name][start:stop] for name in ("epoch", "sequence"))
            is_first = np.ones(stop - start, bool)
            is_first[1:] = (np.diff(epochs) != 0) | (np.diff(sequences) != 0)
            firsts = np.flatnonzero(is_first).tolist()
            if stop < count and len(firsts) == 1:
                page_rows *= 2  # one prediction of more samples than that
                continue
            ends = firsts if stop < count else [*firsts, stop - start]
            yield from self._read_page(start, start + ends[-1], ends, epochs.tolist())
            start += ends[-1]

    def _read_page(self, start: int, stop: int, ends: list[int], epochs: list[int]) -> Iterator[BagPrediction]:
        page = {name: self._column(name, start, stop) for name in (*_NUMBERS, *_TEXTS)}
        values = {kind.name: self._column(kind.column, start, stop) for kind in self._kinds.values()}
        for first, end in pairwise(ends):
            message = self._to_message(page, values, first, end)
            exact_nanos, predict_s = page["predict_unix_nanos"], page["predict_time"][first]
            yield BagPrediction(
                *self._model,
                self._epochs[epochs[first]],
                page["sequence"][first],
                exact_nanos[first] if exact_nanos else self._to_unix_nanos(predict_s),
                bool(page["is_provisional"] and page["is_provisional"][first]),
                message,
            )

    def _to_message(
        self, page: dict[str, list[Any]], values: dict[str, list[float]], first: int, end: int
    ) -> prediction_pb2.Prediction:
        failure = page["failure"][first] if page["failure"] else ""
        message = prediction_pb2.Prediction(failure=failure)
        if page["sample_unix_nanos"]:
            if page["sample_unix_nanos"][first] != NO_SAMPLE:
                message.sample_unix_nanos.extend(page["sample_unix_nanos"][first:end])
        elif not failure:
            message.sample_unix_nanos.extend(map(self._to_unix_nanos, page["time"][first:end]))
        if page["variable_names"]:
            kinds = [self._kinds[name] for name in page["variable_names"][first].split()]
        else:
            kinds = [] if failure else list(self._kinds.values())
        for kind in kinds:
            message.variables.add(
                name=kind.name, unit=kind.unit, values=values[kind.name][first:end], flag_meanings=kind.flag_meanings
            )
        return message

    def _column(self, name: str, start: int, stop: int) -> list[Any]:
        """Some rows of a variable; nothing where the file does not have it."""
        return list(self._file[name][start:stop].tolist()) if name in self._file.variables else []

    def _to_unix_nanos(self, seconds: float) -> int:
        return self._first_unix_nanos + round(seconds * _NANOS_PER_S)

    def _describe(self, name: str) -> _Kind:
        variable = self._file[file_variable(name)]
        words = variable.ncattrs()
        meanings: object = str(variable.flag_meanings).split() if "flag_meanings" in words else []
        if "flag_labels" in words:
            meanings = variable.flag_labels
        labels = (meanings,) if isinstance(meanings, str) else tuple(meanings)  # type: ignore[arg-type]
        return _Kind(name, file_variable(name), str(variable.units), labels)


def _variable_names(file: netCDF4.Dataset) -> list[str]:
    """The names that the analysis gave its variables, in the order in which predictions have them."""
    if "predicted_variables" in file.ncattrs():
        return str(file.predicted_variables).split()
    # In older files alone: the name in the file differs where the file needs it itself, but the long name tells.
    own = [name for name, variable in file.variables.items() if variable.dtype == np.float32]
    return [_analysis_name(name, str(file[name].long_name)) for name in own]


def _analysis_name(name: str, long_name: str) -> str:
    stem = name.removeprefix("predicted_")
    return stem if long_name == stem.replace("_", " ") else name
