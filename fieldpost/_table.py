"""Predictions as columns of numbers, one row for each sample. Asks no server."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from fieldpost._times import from_timestamp, iso_utc
from fieldpost.errors import BrokenStateError, InvalidRequestError
from fieldpost.v1 import prediction_pb2 as pb

_Scalar = TypeVar("_Scalar", bound=np.generic)


@dataclass(frozen=True, slots=True, eq=False)
class PredictionTable:
    """Predicted quantities over time; all columns have the same length, one row a sample, ascending in time.

    Attributes:
        time: The instants that the values belong to, UTC, (rows,), datetime64[ns].
        station: (rows,), str.
        instrument: (rows,), str.
        analysis: (rows,), str.
        model_version: (rows,), int32.
        prediction_id: (rows,), int64; the samples of one prediction share it.
        variables: The quantities by name, each (rows,), float32, in units[name]; NaN where missing.
        units: The UDUNITS string of each variable.
        failures: The predictions that have no value, whose `failure` says why. They have no row.
        is_provisional: (rows,), bool: whether the prediction will be made again, since some of the history that it
            depends on was still to come, or came since.
        flag_meanings: By name of the variable whose values are numbers of classes: what 0, 1, 2 and so on mean.
    """

    time: NDArray[np.datetime64]
    station: NDArray[np.str_]
    instrument: NDArray[np.str_]
    analysis: NDArray[np.str_]
    model_version: NDArray[np.int32]
    prediction_id: NDArray[np.int64]
    variables: dict[str, NDArray[np.float32]]
    units: dict[str, str]
    failures: tuple[pb.Prediction, ...]
    is_provisional: NDArray[np.bool_]
    flag_meanings: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.time)

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        """The values of one variable."""
        try:
            return self.variables[name]
        except KeyError:
            known = ", ".join(self.variables) or "none: the table is empty"
            raise KeyError(f"expected one of the variables ({known}), but got {name!r}") from None

    def labels(self, name: str) -> list[str | None]:
        """The names of the classes that a variable predicts, one a row; None where it is missing."""
        return label_names(self.flag_meanings, name, self[name])

    def __repr__(self) -> str:
        names = ", ".join(f"{name} ({self.units[name]})" for name in self.variables)
        return f"<PredictionTable: {len(self)} rows; {names or 'no variables'}; {len(self.failures)} failures>"

    def to_dict(self) -> list[dict[str, object]]:
        """One dict for each row, as `pandas.DataFrame` takes them: time as datetime in UTC (microseconds), floats."""
        return [
            {
                "time": datetime.fromtimestamp(0, UTC) + micros.item(),
                "station": str(self.station[row]),
                "instrument": str(self.instrument[row]),
                "analysis": str(self.analysis[row]),
                "model_version": int(self.model_version[row]),
                "prediction_id": int(self.prediction_id[row]),
                "is_provisional": bool(self.is_provisional[row]),
                **{name: float(values[row]) for name, values in self.variables.items()},
            }
            for row, micros in enumerate(self.time.astype("datetime64[us]") - np.datetime64(0, "us"))
        ]


def to_table(predictions: Iterable[pb.Prediction]) -> PredictionTable:
    """Puts predictions into columns.

    Raises:
        InvalidRequestError: Two of them give the same variable in different units.
        BrokenStateError: One has not as many values as samples.
    """
    answered: list[pb.Prediction] = []
    failures: list[pb.Prediction] = []
    for prediction in predictions:
        (failures if prediction.failure else answered).append(prediction)
    units = _units(answered)
    counts = [len(prediction.sample_unix_nanos) for prediction in answered]
    nanos = [np.array(prediction.sample_unix_nanos, dtype=np.int64) for prediction in answered]
    time = np.concatenate([np.empty(0, np.int64), *nanos]).view("datetime64[ns]")
    order = np.argsort(time, kind="stable")  # files of two instruments overlap in time

    def column(values: list[str] | list[int] | list[bool], dtype: type[_Scalar]) -> NDArray[_Scalar]:
        return np.repeat(np.array(values, dtype=dtype), counts)[order]

    return PredictionTable(
        time=time[order],
        station=column([each.station for each in answered], np.str_),
        instrument=column([each.instrument for each in answered], np.str_),
        analysis=column([each.analysis for each in answered], np.str_),
        model_version=column([each.model_version for each in answered], np.int32),
        prediction_id=column([each.prediction_id for each in answered], np.int64),
        variables={name: _variable(name, answered, counts)[order] for name in units},
        units=units,
        failures=tuple(failures),
        is_provisional=column([each.is_provisional for each in answered], np.bool_),
        flag_meanings=_flag_meanings(answered),
    )


def _units(predictions: list[pb.Prediction]) -> dict[str, str]:
    units: dict[str, str] = {}
    for prediction in predictions:
        for variable in prediction.variables:
            unit = units.setdefault(variable.name, variable.unit)
            if unit != variable.unit:
                raise InvalidRequestError(
                    f"expected {variable.name} in one unit, but got {unit!r} and {variable.unit!r} "
                    f"(from {prediction.analysis}@{prediction.model_version})",
                    hint="ask for one analysis and one model_version",
                )
    return units


def _flag_meanings(predictions: list[pb.Prediction]) -> dict[str, tuple[str, ...]]:
    meanings: dict[str, tuple[str, ...]] = {}
    for prediction in predictions:
        for variable in prediction.variables:
            meant = tuple(variable.flag_meanings)
            if meant and meanings.setdefault(variable.name, meant) != meant:
                raise InvalidRequestError(
                    f"expected the classes of {variable.name} to mean the same, but got "
                    f"{meanings[variable.name]} and {meant} (from {prediction.analysis}@{prediction.model_version})",
                    hint="ask for one analysis and one model_version",
                )
    return meanings


def label_names(flag_meanings: Mapping[str, Sequence[str]], name: str, values: NDArray[np.float32]) -> list[str | None]:
    """The names of classes; None where a value is none of them."""
    meanings = flag_meanings.get(name)
    if meanings is None:
        known = ", ".join(flag_meanings) or "none"
        raise KeyError(f"expected a variable whose values are classes ({known}), but got {name!r}")
    return [meanings[int(value)] if 0 <= value < len(meanings) else None for value in values.tolist()]


def _variable(name: str, predictions: list[pb.Prediction], counts: list[int]) -> NDArray[np.float32]:
    """One variable over all samples, (samples,), float32; NaN where a prediction does not have it."""
    column = np.full(sum(counts), np.nan, np.float32)
    start = 0
    for prediction, count in zip(predictions, counts, strict=True):
        for variable in prediction.variables:
            if variable.name == name:
                column[start : start + count] = _values(prediction, variable)
        start += count
    return column


def _values(prediction: pb.Prediction, variable: pb.Variable) -> list[float]:
    if len(variable.values) != len(prediction.sample_unix_nanos):
        raise BrokenStateError(
            f"expected {len(prediction.sample_unix_nanos)} values of {variable.name}, but got {len(variable.values)} "
            f"(prediction {prediction.prediction_id})",
            hint="the server stored a damaged prediction; tell its operator",
        )
    return list(variable.values)


def _shown(prediction: pb.Prediction, variable: pb.Variable) -> Sequence[float | str | None]:
    values = _values(prediction, variable)
    if variable.flag_meanings:
        name = variable.name
        return label_names({name: variable.flag_meanings}, name, np.array(values, np.float32))
    return [value if math.isfinite(value) else None for value in values]


def json_rows(prediction: pb.Prediction) -> Iterator[dict[str, object]]:
    """One prediction as rows for JSON: one for each sample, or one with its failure.

    NaN and infinity become None, and a class its name.
    """
    base: dict[str, object] = {
        "prediction_id": prediction.prediction_id,
        "station": prediction.station,
        "instrument": prediction.instrument,
        "analysis": prediction.analysis,
        "model_version": prediction.model_version,
        "is_provisional": prediction.is_provisional,
    }
    if prediction.failure:
        yield {"time": iso_utc(from_timestamp(prediction.measure_time)), **base, "failure": prediction.failure}
        return
    columns = {variable.name: _shown(prediction, variable) for variable in prediction.variables}
    for row, nanos in enumerate(prediction.sample_unix_nanos):
        values = {name: column[row] for name, column in columns.items()}
        yield {"time": iso_utc(nanos), **base, **values}
