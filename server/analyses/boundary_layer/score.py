"""How well heights agree with the truth, by the regime of the boundary layer; on simulated days, where it is known.

Knows no algorithm: any version of the analysis is scored alike. On the command line:

    python -m server.analyses.boundary_layer.score [--version 1] [--first-seed 1] [--days 10] [--step-s 60] [--json]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from fieldpost.simulation import SimulatedCl51
from server.analyses import Analysis, AnalysisInput, AnalysisResult, load_analysis
from server.analyses.boundary_layer import NAME
from server.analyses.boundary_layer.layers import FLAG_GOOD

REGIMES: Mapping[str, tuple[tuple[float, float], ...]] = MappingProxyType(
    {
        "night": ((0.0, 6.5), (19.5, 24.0)),
        "growth": ((6.5, 12.0),),
        "mature": ((12.0, 17.0),),
        "decay": ((17.0, 19.5),),
    }
)
"""Hours of the simulated day, UTC."""
FIRST_DAY = 20_100
"""Counted from 1970-01-01; each seed has a day of its own, a week after the one before."""
ATTRIBUTION_ERROR_M = 300.0


@dataclass(frozen=True, slots=True)
class Score:
    """Agreement of heights with the truth.

    Attributes:
        sample_count: How many instants there were.
        available: Share of them with a height.
        mean_absolute_error_m: Of those with a height, as all that follow.
        bias_m: Mean of found minus true.
        median_absolute_error_m: Half of the heights are nearer than this.
        within_100_m: Share of errors up to 100 m.
        wrong_layer: Share of errors beyond 300 m: another layer was taken for the mixing layer.
        within_standard_error: Share of errors up to the standard error that came with the height.
    """

    sample_count: int
    available: float
    mean_absolute_error_m: float
    bias_m: float
    median_absolute_error_m: float
    within_100_m: float
    wrong_layer: float
    within_standard_error: float


def score_heights(
    found_m: NDArray[np.float32], standard_error_m: NDArray[np.float32], true_m: NDArray[np.float64]
) -> Score:
    """Compares heights with the truth; each (samples,), found_m NaN where there is no height."""
    has_height = np.isfinite(found_m)
    error_m = (found_m - true_m)[has_height]
    if not len(error_m):
        return Score(len(found_m), 0.0, *[float("nan")] * 6)
    size_m = np.abs(error_m)
    return Score(
        sample_count=len(found_m),
        available=float(has_height.mean()),
        mean_absolute_error_m=float(size_m.mean()),
        bias_m=float(error_m.mean()),
        median_absolute_error_m=float(np.median(size_m)),
        within_100_m=float((size_m <= 100).mean()),
        wrong_layer=float((size_m > ATTRIBUTION_ERROR_M).mean()),
        within_standard_error=float((size_m <= standard_error_m[has_height]).mean()),
    )


def regime_of(hour: NDArray[np.float64]) -> NDArray[np.str_]:
    """The regime at each hour of the simulated day."""
    regime = np.full(len(hour), "", "U8")
    for name, spans in REGIMES.items():
        for start, end in spans:
            regime[(hour >= start) & (hour < end)] = name
    return regime


def score_simulated_days(analysis: Analysis, seeds: range, step_s: float) -> dict[str, Score]:
    """Scores an analysis on one simulated day for each seed: by regime, all, and those flagged good."""
    rows = np.concatenate([_one_day(analysis, seed, step_s) for seed in seeds])
    hour, true_m, found_m, error_m, flag = rows.T
    regime = regime_of(hour)
    selections = {name: regime == name for name in REGIMES}
    selections |= {"all": np.ones(len(hour), np.bool_), "flag good": flag == FLAG_GOOD}
    return {name: score_heights(found_m[s], error_m[s], true_m[s]) for name, s in selections.items()}


def _one_day(analysis: Analysis, seed: int, step_s: float) -> NDArray[np.float64]:
    """Columns hour, true height, found height, its standard error, flag: (samples, 5)."""
    instrument = SimulatedCl51(seed)
    start_unix_s = (FIRST_DAY + 7 * seed) * 86400.0
    since_midnight_s = np.arange(0, 86400, step_s)
    times = start_unix_s + since_midnight_s
    inputs = [AnalysisInput(instrument.telegram(t), "cl51", int(t * 1e9)) for t in times]
    found = []
    for first in range(0, len(inputs), analysis.max_batch):
        for answer in analysis.predict(inputs[first : first + analysis.max_batch]):
            if not isinstance(answer, AnalysisResult):
                raise answer
            named = {variable.name: float(variable.values[0]) for variable in answer.variables}
            thickness = "atmosphere_boundary_layer_thickness"
            found.append([named[thickness], named[f"{thickness}_standard_error"], named["quality_flag"]])
    true_m = instrument.atmosphere.truth(times).mixing_height_m
    return np.column_stack([since_midnight_s / 3600, true_m, np.array(found)])


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--version", type=int, default=1)
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--days", type=int, default=10, help="simulated days, each with a seed of its own")
    parser.add_argument("--step-s", type=float, default=60)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    seeds = range(options.first_seed, options.first_seed + options.days)
    scores = score_simulated_days(load_analysis(NAME, options.version), seeds, options.step_s)
    if options.json:
        sys.stdout.write(json.dumps({name: asdict(score) for name, score in scores.items()}) + "\n")
        return
    sys.stdout.write("regime     samples  available  MAE m  bias m  median m  <=100 m  wrong layer  <=standard error\n")
    for name, s in scores.items():
        sys.stdout.write(
            f"{name:<10} {s.sample_count:7d} {s.available:9.0%} {s.mean_absolute_error_m:7.0f} {s.bias_m:+7.0f}"
            f" {s.median_absolute_error_m:9.0f} {s.within_100_m:8.0%} {s.wrong_layer:12.0%}"
            f" {s.within_standard_error:17.0%}\n"
        )


if __name__ == "__main__":
    main()
