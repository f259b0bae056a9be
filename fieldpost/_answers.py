"""A prediction made at once, as columns of numbers. Asks no server."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fieldpost._table import label_names
from fieldpost._times import iso_utc
from fieldpost.errors import BrokenStateError, RejectedError
from fieldpost.v1 import inference_service_pb2 as pb


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """What a model version says about one payload.

    Attributes:
        analysis: The question.
        model_version: The model version that was asked.
        time: The instants that the values belong to, UTC, (samples,), datetime64[ns].
        variables: The predicted quantities by name, each (samples,), float32; NaN where missing.
        units: The UDUNITS string of each variable.
        flag_meanings: By name of the variable whose values are numbers of classes: what 0, 1, 2 and so on mean.
        failure: Why there are no values: the model refuses this payload, and would again. Only where many were asked.
    """

    analysis: str
    model_version: int
    time: NDArray[np.datetime64]
    variables: dict[str, NDArray[np.float32]]
    units: dict[str, str]
    flag_meanings: dict[str, tuple[str, ...]]
    failure: RejectedError | None = None

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        """The values of one variable."""
        try:
            return self.variables[name]
        except KeyError:
            known = ", ".join(self.variables) or "none"
            raise KeyError(f"expected one of the variables ({known}), but got {name!r}") from None

    def labels(self, name: str) -> list[str | None]:
        """The names of the classes that a variable predicts, one a sample; None where it is missing."""
        return label_names(self.flag_meanings, name, self[name])

    def rows(self) -> list[dict[str, object]]:
        """One dict a sample, for JSON: classes by their names, None where a value is missing."""
        columns: dict[str, list[object]] = {}
        for name, values in self.variables.items():
            if name in self.flag_meanings:
                columns[name] = list(self.labels(name))
            else:
                columns[name] = [value if np.isfinite(value) else None for value in values.tolist()]
        return [
            {"time": iso_utc(int(nanos)), **{name: column[row] for name, column in columns.items()}}
            for row, nanos in enumerate(self.time.view(np.int64))
        ]


def to_answer(analysis: str, result: pb.PredictResult) -> Answer:
    """The columns of a result that has values.

    Raises:
        BrokenStateError: A variable has not as many values as there are samples.
    """
    time = np.array(result.sample_unix_nanos, dtype=np.int64).view("datetime64[ns]")
    variables = {}
    units = {}
    flag_meanings = {}
    for variable in result.variables:
        name = variable.name
        if len(variable.values) != len(time):
            raise BrokenStateError(
                f"expected {len(time)} values of {name}, but got {len(variable.values)} "
                f"({analysis}@{result.model_version})",
                hint="the model answers in a wrong shape; tell who submitted it",
            )
        variables[name] = np.array(variable.values, dtype=np.float32)
        units[name] = variable.unit
        if variable.flag_meanings:
            flag_meanings[name] = tuple(variable.flag_meanings)
    return Answer(analysis, result.model_version, time, variables, units, flag_meanings)


def refused_answer(analysis: str, model_version: int, failure: RejectedError) -> Answer:
    """The answer for a payload that the model refuses."""
    return Answer(analysis, model_version, np.empty(0, "datetime64[ns]"), {}, {}, {}, failure)
