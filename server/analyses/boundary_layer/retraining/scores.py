"""Two versions on the same days, instant by instant, as sums that a comparison can be drawn from.

Heights are compared where the truth defines one and both versions give one; what a version leaves out is counted
apart, so that leaving out what is hard gains nothing. Knows not what is decided.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fieldpost.errors import InvalidRequestError
from server.analyses import Analysis, AnalysisResult
from server.analyses.boundary_layer import MAX_BATCH, NAME
from server.analyses.boundary_layer.classical.gradient import GradientHeight
from server.analyses.boundary_layer.classical.remembering import RememberingHeight
from server.analyses.boundary_layer.classical.wavelet_height import BoundaryLayerHeight
from server.analyses.boundary_layer.learned.retrieval import LearnedHeight
from server.analyses.boundary_layer.retraining.days import KnownDay
from server.analyses.boundary_layer.retraining.measures import COVERAGE, FALSE_HEIGHT, NO_HEIGHT, RMSE, WRONG_LAYER
from server.analyses.retraining import ALL, DayScore

WRONG_LAYER_M = 300.0
STANDARD_ERRORS = 1.645
"""Half the central 90 % interval of a normal distribution."""
_THICKNESS = "atmosphere_boundary_layer_thickness"


@dataclass(frozen=True, slots=True)
class Heights:
    """What a version says of a day; each (times,), m; NaN where it says nothing."""

    height_m: NDArray[np.float64]
    lower_m: NDArray[np.float64]
    upper_m: NDArray[np.float64]


def retrieve(analysis: Analysis, day: KnownDay) -> Heights:
    """The heights of a course."""
    return to_heights(answer(analysis, day))


def answer(analysis: Analysis, day: KnownDay) -> Sequence[AnalysisResult | Exception]:
    """What a version says about a course, each profile in the light of those before it where it remembers."""
    if isinstance(analysis, LearnedHeight | RememberingHeight):
        ((answers, _),) = analysis.follow_profiles([(b"", day.observations, day.latitude_deg, day.longitude_deg)])
        return answers
    if isinstance(analysis, BoundaryLayerHeight | GradientHeight):
        parts = [
            analysis.predict_profiles(day.observations[first : first + MAX_BATCH], day.latitude_deg, day.longitude_deg)
            for first in range(0, len(day.observations), MAX_BATCH)
        ]
        return [each for part in parts for each in part]
    raise InvalidRequestError(f"expected a version of {NAME}, but got {type(analysis).__name__}")


def to_heights(answers: Sequence[AnalysisResult | Exception]) -> Heights:
    """The heights of observations of one profile each; one that could not be answered has none."""
    columns = np.full((3, len(answers)), np.nan)
    for place, answer in enumerate(answers):
        if isinstance(answer, AnalysisResult):
            named = {each.name: float(each.values[0]) for each in answer.variables}
            height_m = named[_THICKNESS]
            reach_m = STANDARD_ERRORS * named.get(f"{_THICKNESS}_standard_error", np.nan)
            lower_m, upper_m = named.get(f"{_THICKNESS}_lower"), named.get(f"{_THICKNESS}_upper")
            columns[0, place] = height_m
            columns[1, place] = height_m - reach_m if lower_m is None else lower_m
            columns[2, place] = height_m + reach_m if upper_m is None else upper_m
    return Heights(*columns)


def score_day(name: str, kind: str, day: KnownDay, active: Heights, candidate: Heights) -> Iterator[DayScore]:
    """The sums of a day, of all instants and of each group.

    Args:
        name: Of the day.
        kind: Of which kind of days it is; a group of its own.
        day: With the truth.
        active: What the version at work says.
        candidate: What the trained one says.
    """
    true_m = day.true_m
    is_defined = np.isfinite(true_m)
    has = [np.isfinite(each.height_m) for each in (active, candidate)]
    is_common = is_defined & has[0] & has[1]
    error_m = [np.where(is_common, each.height_m - true_m, 0.0) for each in (active, candidate)]
    has_interval = is_common & np.isfinite(active.lower_m) & np.isfinite(candidate.lower_m)
    inside = [(each.lower_m <= true_m) & (true_m <= each.upper_m) for each in (active, candidate)]
    columns = {
        RMSE.name: (error_m[0] ** 2, error_m[1] ** 2, is_common),
        WRONG_LAYER.name: (np.abs(error_m[0]) > WRONG_LAYER_M, np.abs(error_m[1]) > WRONG_LAYER_M, is_common),
        NO_HEIGHT.name: (~has[0], ~has[1], is_defined),
        FALSE_HEIGHT.name: (has[0], has[1], day.is_undefined),
        COVERAGE.name: (inside[0], inside[1], has_interval),
    }
    everywhere = np.ones(len(true_m), np.bool_)
    for group, members in {ALL: everywhere, kind: everywhere, **day.groups}.items():
        for measure, (ours, theirs, counted) in columns.items():
            here = members & counted
            if here.any():
                yield DayScore(
                    name, group, measure, float(ours[here].sum()), float(theirs[here].sum()), int(here.sum())
                )
