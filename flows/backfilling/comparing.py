"""How a version's predictions of a range compare with another's: in numbers, for each instrument and quantity.

Reads two series side by side, in order of time, a page at a time; memory stays flat. Knows no analysis.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, literal, select, tuple_

from fieldpost.v1 import prediction_pb2
from flows.backfilling.span import Span
from server.prediction.course_rows import held_in_course
from server.storage.store import Store
from server.storage.tables import observations, predictions

PAGE_ROWS = 500


@dataclass(slots=True)
class Agreement:
    """Two versions on the same samples of one quantity.

    Attributes:
        pair_count: Samples of which both give a value.
        ours_only_count: Of which only ours does.
        theirs_only_count: Of which only the other does.
    """

    pair_count: int = 0
    ours_only_count: int = 0
    theirs_only_count: int = 0
    _difference: float = 0.0
    _absolute: float = 0.0
    _mean_ours: float = 0.0
    _mean_theirs: float = 0.0
    _square_ours: float = 0.0
    _square_theirs: float = 0.0
    _product: float = 0.0

    def add(self, ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> None:
        """Takes samples in.

        Args:
            ours: (samples,), float64; NaN where there is no value.
            theirs: The same.
        """
        has_ours, has_theirs = np.isfinite(ours), np.isfinite(theirs)
        self.ours_only_count += int((has_ours & ~has_theirs).sum())
        self.theirs_only_count += int((has_theirs & ~has_ours).sum())
        both = has_ours & has_theirs
        if not both.any():
            return
        x, y = ours[both], theirs[both]
        self._difference += float((x - y).sum())
        self._absolute += float(np.abs(x - y).sum())
        # Chan, Golub and LeVeque (1983): the sums of squares about the means of two sets together.
        count, before = len(x), self.pair_count
        step_x, step_y = float(x.mean()) - self._mean_ours, float(y.mean()) - self._mean_theirs
        weight = before * count / (before + count)
        self._square_ours += float(((x - x.mean()) ** 2).sum()) + step_x * step_x * weight
        self._square_theirs += float(((y - y.mean()) ** 2).sum()) + step_y * step_y * weight
        self._product += float(((x - x.mean()) * (y - y.mean())).sum()) + step_x * step_y * weight
        self._mean_ours += step_x * count / (before + count)
        self._mean_theirs += step_y * count / (before + count)
        self.pair_count += count

    @property
    def mean_difference(self) -> float:
        """Ours minus the other's; NaN without pairs."""
        return self._difference / self.pair_count if self.pair_count else math.nan

    @property
    def mean_absolute_difference(self) -> float:
        """NaN without pairs."""
        return self._absolute / self.pair_count if self.pair_count else math.nan

    @property
    def correlation(self) -> float:
        """Pearson's; NaN where one of the two does not vary."""
        scale = math.sqrt(self._square_ours * self._square_theirs)
        return self._product / scale if scale > 0 else math.nan


@dataclass(frozen=True, slots=True)
class Quantity:
    """What is compared."""

    station: str
    instrument: str
    name: str
    unit: str


def compare_spans(
    store: Store, spans: Iterable[Span], our_row_id: int, their_row_id: int, found: dict[Quantity, Agreement]
) -> None:
    """Compares over all observations of these pieces that both versions have predicted.

    Args:
        store: Where predictions are.
        spans: The pieces.
        our_row_id: Of the version that predicted them.
        their_row_id: Of the one to hold it against.
        found: Takes what was found in.
    """
    for span in spans:
        for ours, theirs in _pairs(store, span, our_row_id, their_row_id):
            for name, unit, our_values, their_values in match_values(ours, theirs):
                quantity = Quantity(span.instrument.station, span.instrument.instrument, name, unit)
                found.setdefault(quantity, Agreement()).add(our_values, their_values)


def match_values(ours: bytes, theirs: bytes) -> Iterator[tuple[str, str, NDArray[np.float64], NDArray[np.float64]]]:
    """The quantities of two predictions of one observation, where they can be compared: at the same instants.

    Numbers of classes have no mean, and are left out.
    """
    mine, other = prediction_pb2.Prediction.FromString(ours), prediction_pb2.Prediction.FromString(theirs)
    if mine.sample_unix_nanos != other.sample_unix_nanos:
        return
    by_name = {(each.name, each.unit): each for each in other.variables}
    for variable in mine.variables:
        their = by_name.get((variable.name, variable.unit))
        if their is not None and not variable.flag_meanings and len(their.values) == len(variable.values):
            yield variable.name, variable.unit, np.array(variable.values), np.array(their.values)


def _pairs(store: Store, span: Span, our_row_id: int, their_row_id: int) -> Iterator[tuple[bytes, bytes]]:
    after: tuple[int, int] | None = None
    while True:
        with store.read() as connection:
            page = _list_pairs(connection, span, our_row_id, their_row_id, after)
        for _, _, ours, theirs in page:
            yield ours, theirs
        if len(page) < PAGE_ROWS:
            return
        after = page[-1][0], page[-1][1]


def _list_pairs(
    connection: Connection, span: Span, our_row_id: int, their_row_id: int, after: tuple[int, int] | None
) -> Sequence[tuple[int, int, bytes, bytes]]:
    ours, theirs = predictions.alias(), predictions.alias()
    position = (observations.c.measure_unix_nanos, observations.c.id)
    query = (
        select(*position, ours.c.content, theirs.c.content)
        .join(ours, ours.c.observation_id == observations.c.id)
        .join(theirs, theirs.c.observation_id == observations.c.id)
        .where(*held_in_course(span.instrument.instrument_id, span.course))
        .where(ours.c.model_version_id == our_row_id, theirs.c.model_version_id == their_row_id)
        .where(~ours.c.is_failure, ~theirs.c.is_failure)
        .order_by(*position)
        .limit(PAGE_ROWS)
    )
    if after is not None:
        query = query.where(position[0] >= after[0], tuple_(*position) > tuple_(*map(literal, after)))
    return [(row[0], row[1], row[2], row[3]) for row in connection.execute(query)]
