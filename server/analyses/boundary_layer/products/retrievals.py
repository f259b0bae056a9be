"""Puts the predictions of one model version for one instrument into columns, one row a profile, ascending in time.

Knows what the versions of this analysis call their variables, and that not each of them has all; knows no file, no
server, and nothing of averages.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import islice
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from fieldpost.errors import BrokenStateError
from fieldpost.v1.prediction_pb2 import Prediction

MIXING_HEIGHT = "atmosphere_boundary_layer_thickness"
STANDARD_ERROR = "atmosphere_boundary_layer_thickness_standard_error"
LOWER, UPPER = "atmosphere_boundary_layer_thickness_lower", "atmosphere_boundary_layer_thickness_upper"
RESIDUAL_LAYER = "residual_layer_height"
CLOUD_BASE = "cloud_base_height"
HEIGHTS = (MIXING_HEIGHT, RESIDUAL_LAYER, CLOUD_BASE)
QUALITY = "quality_flag"
SKY = "sky_condition"
PAGE_PREDICTIONS = 500

STANDARD_ERRORS_IN_90_PERCENT = 2 * 1.6449
"""Width of the central 90 % interval of a normal distribution, in standard deviations."""
_Scalar = TypeVar("_Scalar", bound=np.generic)


class Sky(IntEnum):
    """What was over the instrument; UNKNOWN where the version does not say."""

    UNKNOWN = -1
    CLEAR = 0
    CLOUD = 1
    RAIN = 2
    FOG = 3


@dataclass(frozen=True, slots=True, eq=False)
class Retrievals:
    """What was found profile by profile; each column (profiles,).

    Attributes:
        unix_nanos: When, int64, strictly ascending.
        heights_m: By variable, the mixing height and what else the version has, float64; NaN where nothing was found.
        standard_error_m: Of the mixing height, float64; NaN where the version does not say.
        quality: Of the mixing height, int8: 0 none, 1 low, 2 good.
        sky: A Sky, int8.
        is_provisional: Whether it will be made again.
    """

    unix_nanos: NDArray[np.int64]
    heights_m: dict[str, NDArray[np.float64]]
    standard_error_m: NDArray[np.float64]
    quality: NDArray[np.int8]
    sky: NDArray[np.int8]
    is_provisional: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.unix_nanos)

    @property
    def nothing(self) -> NDArray[np.float64]:
        """A height that was never found, (profiles,)."""
        return np.full(len(self), np.nan)

    def take(self, rows: NDArray[np.generic]) -> Retrievals:
        """These rows of all columns."""
        return Retrievals(
            self.unix_nanos[rows],
            {name: values[rows] for name, values in self.heights_m.items()},
            self.standard_error_m[rows],
            self.quality[rows],
            self.sky[rows],
            self.is_provisional[rows],
        )


def gather(predictions: Iterable[Prediction]) -> Retrievals:
    """Puts predictions into columns.

    An instant that two observations measured, as when a file was sent under two names, counts once: the first.

    Args:
        predictions: Of one model version and one instrument, in any order; those that only say why there is nothing
            have no row.

    Raises:
        BrokenStateError: One has not as many values as samples.
    """
    answered = (_Answer(each) for each in predictions if not each.failure)
    pages = [_to_columns(page) for page in iter(lambda: list(islice(answered, PAGE_PREDICTIONS)), [])]
    names = {MIXING_HEIGHT: None} | {name: None for page in pages for name in page.heights_m}
    rows = Retrievals(
        _join([page.unix_nanos for page in pages], np.int64),
        {name: _join([page.heights_m.get(name, page.nothing) for page in pages], np.float64) for name in names},
        _join([page.standard_error_m for page in pages], np.float64),
        _join([page.quality for page in pages], np.int8),
        _join([page.sky for page in pages], np.int8),
        _join([page.is_provisional for page in pages], np.bool_),
    )
    if np.all(np.diff(rows.unix_nanos) > 0):
        return rows  # as nearly always; of a million profiles a copy is 50 MB
    return rows.take(np.unique(rows.unix_nanos, return_index=True)[1])


def _to_columns(answered: Sequence[_Answer]) -> Retrievals:
    """Some predictions in columns, in their order: so that no more messages are held than a page has."""
    names = {name for each in answered for name in each.variables}
    standard_error_m = _column(answered, STANDARD_ERROR)
    half_width_m = (_column(answered, UPPER) - _column(answered, LOWER)) / STANDARD_ERRORS_IN_90_PERCENT
    return Retrievals(
        _join([np.array(each.unix_nanos, np.int64) for each in answered], np.int64),
        {name: _column(answered, name) for name in HEIGHTS if name in names},
        np.where(np.isfinite(standard_error_m), standard_error_m, half_width_m),
        np.nan_to_num(_column(answered, QUALITY)).astype(np.int8),
        _join([_sky(each) for each in answered], np.int8),
        _join([np.full(len(each.unix_nanos), each.is_provisional) for each in answered], np.bool_),
    )


class _Answer:
    """A prediction, with its variables by name."""

    def __init__(self, prediction: Prediction) -> None:
        self.unix_nanos: Sequence[int] = prediction.sample_unix_nanos
        self.is_provisional = prediction.is_provisional
        self.variables = {each.name: each for each in prediction.variables}
        for each in prediction.variables:
            if len(each.values) != len(self.unix_nanos):
                raise BrokenStateError(
                    f"expected {len(self.unix_nanos)} values of {each.name}, one a sample, but got {len(each.values)}",
                    hint="delete the prediction of this observation, so that it is made again",
                )


def _column(answered: Sequence[_Answer], name: str) -> NDArray[np.float64]:
    """A variable over all samples; NaN where a prediction does not have it."""
    found: list[float] = []  # one list for all: an array for each prediction costs several times the time
    for each in answered:
        variable = each.variables.get(name)
        found += [np.nan] * len(each.unix_nanos) if variable is None else variable.values
    return np.array(found, np.float64)


def _sky(answer: _Answer) -> NDArray[np.int8]:
    """Classes go by what the prediction says that they mean, not by their numbers."""
    variable = answer.variables.get(SKY)
    if variable is None:
        return np.full(len(answer.unix_nanos), Sky.UNKNOWN, np.int8)
    known = {each.name.lower(): each for each in Sky}
    meanings = [known.get(meaning, Sky.UNKNOWN) for meaning in variable.flag_meanings]
    places = [int(value) if 0 <= value < len(meanings) else -1 for value in variable.values]
    return np.array([*meanings, Sky.UNKNOWN], np.int8)[places]  # -1 is the last: unknown


def _join(parts: Sequence[NDArray[_Scalar]], dtype: type[_Scalar]) -> NDArray[_Scalar]:
    return np.concatenate([np.empty(0, dtype), *parts])
