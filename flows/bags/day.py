"""One day of one instrument, read from the store: a first look that counts everything, then the same again in detail.

The store is read in pages, each in a short transaction, so that memory stays flat and the running server is never
held up. Knows no file, no bag and no Prefect.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeVar

from google.protobuf.message import DecodeError

from fieldpost.errors import BrokenStateError, InvalidObservationError
from fieldpost.payload import decode_checked
from fieldpost.v1 import observation_pb2 as pb
from fieldpost.v1 import prediction_pb2
from server.archive.bags import (
    DayModel,
    DayObservation,
    DayPrediction,
    Extent,
    InstrumentDay,
    Position,
    list_day_models,
    list_day_observations,
    list_day_predictions,
    read_extent,
)
from server.storage.store import Store

PAGE_ROWS = 500


class VariableKind(NamedTuple):
    """What all values of a variable have in common.

    Attributes:
        unit: UDUNITS string.
        flag_meanings: Where the values are numbers of classes, what 0, 1, 2 and so on mean.
    """

    unit: str
    flag_meanings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Series:
    """What a model version said about a day, before its values are read.

    Attributes:
        model: The model version.
        prediction_count: Predictions, failed ones too.
        failure_count: Those that say only why there is no value.
        row_count: Samples; a prediction that has none counts as one row.
        variables: The variables by name, in the order in which they first came.
        is_uniform: Whether every prediction has all of them in this order, but for the failed ones, which have none.
        is_ascending: Whether the instants of the rows ascend strictly.
    """

    model: DayModel
    prediction_count: int
    failure_count: int
    row_count: int
    variables: dict[str, VariableKind]
    is_uniform: bool
    is_ascending: bool


class SeriesCount:
    """Counts the predictions of a model version on a day, one after the other."""

    def __init__(self, model: DayModel) -> None:
        self._model = model
        self._prediction_count = self._failure_count = self._row_count = 0
        self._variables: dict[str, VariableKind] = {}
        self._layouts: set[tuple[bool, tuple[str, ...]]] = set()
        self._last_unix_nanos: int | None = None
        self._is_ascending = True

    def add(self, row: DayPrediction) -> bytes:
        """Counts a prediction; returns the line that stands for it in the digest of the day.

        Raises:
            BrokenStateError: The model version contradicts what it said before about a variable.
        """
        prediction = prediction_pb2.Prediction.FromString(row.content)
        self._prediction_count += 1
        self._failure_count += bool(prediction.failure)
        for variable in prediction.variables:
            self._check(row, variable.name, VariableKind(variable.unit, tuple(variable.flag_meanings)))
        names = tuple(variable.name for variable in prediction.variables)
        self._layouts.add((bool(prediction.failure), names))
        for unix_nanos in row_instants(row, prediction):
            self._row_count += 1
            self._is_ascending &= self._last_unix_nanos is None or unix_nanos > self._last_unix_nanos
            self._last_unix_nanos = unix_nanos
        identity = f"{self._model.analysis} {self._model.version} {row.epoch} {row.sequence}"
        content_sha256 = hashlib.sha256(row.content).hexdigest()
        standing = " provisional" if row.is_provisional else ""
        return f"{identity} {row.predict_unix_nanos} {content_sha256}{standing}\n".encode()

    def _check(self, row: DayPrediction, name: str, kind: VariableKind) -> None:
        first = self._variables.setdefault(name, kind)
        if kind != first:
            raise BrokenStateError(
                f"expected {name} as in earlier predictions of the model version, {first}, but got {kind} "
                f"(observation {row.epoch}-{row.sequence})",
                hint="delete the predictions of this model version on this day, so that they are made again alike",
            )

    def series(self) -> Series:
        """All that was counted."""
        return Series(
            self._model,
            self._prediction_count,
            self._failure_count,
            self._row_count,
            self._variables,
            is_uniform=self._layouts <= {(True, ()), (False, tuple(self._variables))},
            is_ascending=self._is_ascending,
        )


@dataclass(frozen=True, slots=True)
class Contents:
    """All that the store holds of a day, in numbers.

    Attributes:
        extent: What was there at the look.
        observation_count: Observations.
        payload_bytes: The instrument's bytes, all together.
        epochs: The epochs that the observations belong to, in the order in which they first came.
        series: One for each model version.
        sha256: A digest of every row: two looks with the same digest saw the same day.
    """

    extent: Extent
    observation_count: int
    payload_bytes: int
    epochs: tuple[str, ...]
    series: tuple[Series, ...]
    sha256: str

    @property
    def prediction_count(self) -> int:
        """Predictions of all model versions together."""
        return sum(each.prediction_count for each in self.series)

    @property
    def epoch_characters(self) -> int:
        """How many characters of an epoch tell the epochs of the day apart: 8, but for a rare accident."""
        return 8 if len({epoch[:8] for epoch in self.epochs}) == len(self.epochs) else 32


class DayReader:
    """Reads a day of an instrument.

    Args:
        store: Where it is.
        day: Which.
    """

    def __init__(self, store: Store, day: InstrumentDay) -> None:
        self._store = store
        self.day = day

    def look(self) -> Contents:
        """Counts what is there now."""
        with self._store.read() as connection:
            extent = read_extent(connection)
            models = list_day_models(connection, self.day, extent)
        digest = hashlib.sha256()
        count = payload_bytes = 0
        epochs: dict[str, None] = {}
        for row in self.observations(extent):
            count += 1
            payload_bytes += row.payload_bytes
            epochs[row.epoch] = None
            instants = f"{row.measure_unix_nanos} {row.capture_unix_nanos}"
            digest.update(f"{row.epoch} {row.sequence} {instants} {row.payload_bytes} {row.sha256.hex()}\n".encode())
        series = tuple(self._look_at_series(extent, model, digest.update) for model in models)
        return Contents(extent, count, payload_bytes, tuple(epochs), series, digest.hexdigest())

    def _look_at_series(self, extent: Extent, model: DayModel, update: Callable[[bytes], None]) -> Series:
        count = SeriesCount(model)
        for row in self.predictions(extent, model):
            update(count.add(row))
        return count.series()

    def observations(self, extent: Extent) -> Iterator[DayObservation]:
        """The rows of the observations, in order of measure time and then of sequence."""

        def list_page(after: Position | None) -> list[DayObservation]:
            with self._store.read() as connection:
                return list_day_observations(connection, self.day, extent, after, PAGE_ROWS)

        return _each(list_page)

    def predictions(self, extent: Extent, model: DayModel) -> Iterator[DayPrediction]:
        """The rows of the predictions of a model version, in the order of their observations."""

        def list_page(after: Position | None) -> list[DayPrediction]:
            with self._store.read() as connection:
                return list_day_predictions(connection, self.day, extent, model, after, PAGE_ROWS)

        return _each(list_page)

    def read(self, row: DayObservation) -> tuple[pb.ObservationHeader, bytes]:
        """The header of an observation and the instrument's bytes, checked against the row.

        Raises:
            BrokenStateError: The segment is damaged, or holds something else at this place.
        """
        where = f"at offset {row.place.offset} of segment {row.place.segment}"
        try:
            observation = pb.Observation.FromString(self._store.read_segment(row.place))
            content = decode_checked(observation)
        except (InvalidObservationError, DecodeError) as error:
            raise BrokenStateError(
                f"expected observation {row.epoch}-{row.sequence} {where}, but it cannot be read: {error}", hint=_HINT
            ) from error
        header = observation.header
        if (header.epoch, header.sequence, header.sha256) != (row.epoch, row.sequence, row.sha256):
            raise BrokenStateError(
                f"expected observation {row.epoch}-{row.sequence} with SHA-256 {row.sha256.hex()} {where}, "
                f"but got {header.epoch}-{header.sequence} with {header.sha256.hex()}",
                hint=_HINT,
            )
        return header, content


_HINT = "restore the segments folder from its backup, or ask the station to replay the observation"


def row_instants(row: DayPrediction, prediction: prediction_pb2.Prediction) -> list[int]:
    """The instants of a prediction's rows; that of its observation where it has no samples of its own."""
    return list(prediction.sample_unix_nanos) or [row.measure_unix_nanos]


class _HasPosition(Protocol):
    @property
    def position(self) -> Position: ...


T = TypeVar("T", bound=_HasPosition)


def _each(list_page: Callable[[Position | None], list[T]]) -> Iterator[T]:
    after: Position | None = None
    while page := list_page(after):
        yield from page
        if len(page) < PAGE_ROWS:
            return
        after = page[-1].position
