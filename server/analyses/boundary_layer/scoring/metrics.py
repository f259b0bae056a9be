"""How well heights agree with the truth, in numbers that meteorologists use. Pure; knows no method and no simulator.

Every number is over the instants at which the truth defines a height and the method gave one, unless its line says
otherwise. So a method that stays silent in hard cases looks better than it is: look at availability beside it, and at
the scores on the instants that all methods have in common.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
NORMAL_90 = 1.645
"""A normal error lies within so many standard errors nine times of ten."""
ATTRIBUTION_ERROR_M = 300.0
JUMP_M = 200.0
LONGEST_STEP_S = 120.0
"""Two heights further apart in time tell nothing of a jump."""
LAGS_S = np.arange(0.0, 3601.0, 60.0)


@dataclass(frozen=True, slots=True)
class Compared:
    """Heights beside the truth; each attribute (instants,), courses one after the other and each by time.

    Attributes:
        course: A number of the course that the instant belongs to.
        unix_s: When.
        instrument: Model of the ceilometer.
        regime: State of the true layer: "night", "growth", "mature" or "decay".
        sky: "clear", "cloud", "rain" or "fog".
        true_m: The mixing height; NaN where none is defined, as in rain and fog.
        others_m: (instants, layers): other layers that could be mistaken for it; NaN where there is none.
        found_m: The height that was retrieved; NaN where there is none.
        lower_m: Lower end of its central 90 % interval.
        upper_m: Upper end.
        flag: Its quality: 0 none, 1 low, 2 good.
    """

    course: NDArray[np.int64]
    unix_s: Floats
    instrument: NDArray[np.str_]
    regime: NDArray[np.str_]
    sky: NDArray[np.str_]
    true_m: Floats
    others_m: Floats
    found_m: Floats
    lower_m: Floats
    upper_m: Floats
    flag: Floats

    def at(self, where: NDArray[np.bool_]) -> Compared:
        """Only the instants at which `where` is True."""
        return Compared(*(getattr(self, field.name)[where] for field in fields(self)))


@dataclass(frozen=True, slots=True)
class Score:
    """Agreement of heights with the truth; NaN where there is nothing to tell it from.

    Attributes:
        instant_count: Instants at which the truth defines a height.
        height_count: Those of them at which the method gave one.
        availability: The one over the other.
        bias_m: Mean error; an error is found minus true.
        mae_m: Mean of the absolute error.
        median_m: Median of the absolute error.
        rmse_m: Root of the mean squared error.
        r: Pearson's correlation of found and true.
        r2: Its square. It forgives a bias and a slope; the next does not.
        determination: 1 - sum of squared errors / sum of squared deviations of the truth from its mean.
        within_100_m: Share of absolute errors up to 100 m.
        within_200_m: Up to 200 m.
        beyond_300_m: Above 300 m.
        wrong_layer: Share of heights more than 300 m from the mixing height and nearer to another true layer (residual
            layer's top, cloud base).
        false_height: Share of the instants in rain and fog, where no height is defined, at which one was given.
        jumps_per_hour: Steps of more than 200 m between successive heights up to two minutes apart, for each hour of
            such steps; whether the truth defines a height does not matter.
        true_jumps_per_hour: The same of the truth.
        coverage_90: Share of true heights within the 90 % interval that came with the height: its ends where the method
            gives them, else 1.645 standard errors to either side; a height without an interval covers nothing.
        interval_m: Mean width of these intervals.
        lag_min: By how many minutes the truth has to be delayed for the least mean absolute error in growth: what the
            method lags behind; the truth's own course decides, so it is told to a few minutes at best.
    """

    instant_count: int
    height_count: int
    availability: float
    bias_m: float
    mae_m: float
    median_m: float
    rmse_m: float
    r: float
    r2: float
    determination: float
    within_100_m: float
    within_200_m: float
    beyond_300_m: float
    wrong_layer: float
    false_height: float
    jumps_per_hour: float
    true_jumps_per_hour: float
    coverage_90: float
    interval_m: float
    lag_min: float


def score(compared: Compared) -> Score:
    """Scores heights."""
    is_defined = np.isfinite(compared.true_m)
    has_height = np.isfinite(compared.found_m)
    scored = compared.at(is_defined & has_height)
    error_m = scored.found_m - scored.true_m
    size_m = np.abs(error_m)
    is_far = size_m > ATTRIBUTION_ERROR_M
    to_others_m = np.nan_to_num(np.abs(scored.others_m - scored.found_m[:, None]), nan=np.inf)
    is_other = to_others_m.min(axis=1, initial=np.inf) < size_m
    r = _correlation(scored.found_m, scored.true_m)
    spread_m2 = np.square(scored.true_m - _mean(scored.true_m)).sum()
    is_covered = (scored.lower_m <= scored.true_m) & (scored.true_m <= scored.upper_m)
    return Score(
        instant_count=int(is_defined.sum()),
        height_count=len(error_m),
        availability=_mean(has_height[is_defined]),
        bias_m=_mean(error_m),
        mae_m=_mean(size_m),
        median_m=float(np.median(size_m)) if len(size_m) else float("nan"),
        rmse_m=float(np.sqrt(_mean(np.square(error_m)))),
        r=r,
        r2=r * r,
        determination=float(1 - np.square(error_m).sum() / spread_m2) if spread_m2 > 0 else float("nan"),
        within_100_m=_mean(size_m <= 100),
        within_200_m=_mean(size_m <= 200),
        beyond_300_m=_mean(is_far),
        wrong_layer=_mean(is_far & is_other),
        false_height=_mean(has_height[np.isin(compared.sky, ("rain", "fog"))]),
        jumps_per_hour=_jumps_per_hour(compared, compared.found_m),
        true_jumps_per_hour=_jumps_per_hour(compared, compared.true_m),
        coverage_90=_mean(is_covered),
        interval_m=_mean((scored.upper_m - scored.lower_m)[np.isfinite(scored.upper_m - scored.lower_m)]),
        lag_min=_lag_min(compared),
    )


def score_parts(compared: Compared) -> dict[str, object]:
    """The score over all, and under `regimes`, `instruments` and `flag_good` those of parts; ready for JSON (NaN:
    None).

    `cloudy` is every instant with a cloud overhead, whatever the regime.
    """
    regimes = {name: compared.regime == name for name in ("night", "growth", "mature", "decay")}
    regimes["cloudy"] = compared.sky == "cloud"
    instruments = {str(name): compared.instrument == name for name in np.unique(compared.instrument)}
    good = replace(compared, found_m=np.where(compared.flag == 2, compared.found_m, np.nan))
    return {
        **facts(score(compared)),
        "regimes": {name: facts(score(compared.at(where))) for name, where in regimes.items()},
        "instruments": {name: facts(score(compared.at(where))) for name, where in instruments.items()},
        "flag_good": facts(score(good)),
    }


def facts(figures: Score) -> dict[str, float | None]:
    """A score for JSON, which has no NaN."""
    return {name: None if np.isnan(value) else value for name, value in asdict(figures).items()}


def in_common(methods: Mapping[str, Compared]) -> dict[str, Compared]:
    """The heights of some methods at those instants at which all of them gave one."""
    has_all = np.logical_and.reduce([np.isfinite(compared.found_m) for compared in methods.values()])
    return {name: compared.at(has_all) for name, compared in methods.items()}


def join(parts: Sequence[Compared]) -> Compared:
    """One after the other."""
    return Compared(*(np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(Compared)))


def _mean(values: NDArray[np.float64] | NDArray[np.bool_]) -> float:
    return float(values.mean()) if len(values) else float("nan")


def _correlation(found_m: Floats, true_m: Floats) -> float:
    if len(found_m) < 2 or np.ptp(found_m) == 0 or np.ptp(true_m) == 0:
        return float("nan")
    return float(np.corrcoef(found_m, true_m)[0, 1])


def _jumps_per_hour(compared: Compared, height_m: Floats) -> float:
    there = np.isfinite(height_m)
    unix_s, course, height_m = compared.unix_s[there], compared.course[there], height_m[there]
    step_s = np.diff(unix_s)
    follows = (np.diff(course) == 0) & (step_s > 0) & (step_s <= LONGEST_STEP_S)
    hours = step_s[follows].sum() / 3600
    return float((np.abs(np.diff(height_m))[follows] > JUMP_M).sum() / hours) if hours > 0 else float("nan")


def _lag_min(compared: Compared) -> float:
    """The delay of the truth that fits best where the layer grows; see Score."""
    asked = (compared.regime == "growth") & np.isfinite(compared.found_m) & np.isfinite(compared.true_m)
    if not asked.any():
        return float("nan")
    total_m, count = np.zeros(len(LAGS_S)), np.zeros(len(LAGS_S))
    for course in np.unique(compared.course[asked]):
        own = compared.at(compared.course == course)
        here = asked[compared.course == course]
        known = np.isfinite(own.true_m)
        delayed_s = own.unix_s[here] - LAGS_S[:, None]
        true_m = np.interp(delayed_s, own.unix_s[known], own.true_m[known])
        total_m += np.abs(own.found_m[here] - true_m).sum(axis=1)
        count += here.sum()
    return float(LAGS_S[(total_m / count).argmin()] / 60)
