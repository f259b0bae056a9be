"""Two versions on the same days, instant by instant, as sums that a comparison can be drawn from.

Heights are compared where the truth defines one and both versions give one; what a version leaves out is counted
apart, so that leaving out what is hard gains nothing. Knows not what is decided.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from fieldpost.errors import InvalidRequestError
from server.analyses import Analysis, AnalysisResult
from server.analyses.boundary_layer.retraining.days import KnownDay
from server.analyses.boundary_layer.retraining.measures import COVERAGE, FALSE_HEIGHT, NO_HEIGHT, RMSE, WRONG_LAYER
from server.analyses.boundary_layer.scoring.simulated_courses import (
    FollowsProfiles,
    Heights,
    PredictsProfiles,
    ask,
    read_heights,
)
from server.analyses.retraining import ALL, DayScore

WRONG_LAYER_M = 300.0


def retrieve(analysis: Analysis, day: KnownDay) -> Heights:
    """The heights of a course; an observation that could not be answered has none."""
    return read_heights(answer(analysis, day))


def answer(analysis: Analysis, day: KnownDay) -> Sequence[AnalysisResult | Exception]:
    """What a version says about a course, each profile in the light of those before it where it remembers."""
    if not isinstance(analysis, FollowsProfiles | PredictsProfiles):
        raise InvalidRequestError(f"expected a version that takes profiles, but got {type(analysis).__name__}")
    return ask(analysis, day.observations, day.latitude_deg, day.longitude_deg)


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
