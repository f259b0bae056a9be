"""The benchmark: every method on the same instants, the keys that are promised, the same numbers again."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.boundary_layer import score_methods
from benchmarks.boundary_layer_methods import (
    NAMES,
    WAVELET_MEDIAN,
    WHOLE_DAY_PATH,
    Found,
    methods_of,
    trailing_median,
)
from fieldpost.simulation import HELD_OUT
from server.analyses.boundary_layer import GRADIENT, SHORTEST_PATH, VARIANCE, WAVELET
from server.analyses.boundary_layer.scoring.metrics import Compared
from server.analyses.boundary_layer.scoring.simulated_courses import simulate_course

ROOT = Path(__file__).parent.parent
PROMISED = {
    "bias_m",
    "mae_m",
    "rmse_m",
    "r2",
    "within_100_m",
    "within_200_m",
    "availability",
    "wrong_layer",
    "coverage_90",
}
BASELINES = {NAMES[v] for v in (WAVELET, GRADIENT, VARIANCE, SHORTEST_PATH)} | {WAVELET_MEDIAN, WHOLE_DAY_PATH}


def run(seeds: range) -> list[dict[str, Found]]:
    methods = methods_of((WAVELET, GRADIENT, VARIANCE, SHORTEST_PATH))
    days = []
    for seed in seeds:
        course = simulate_course(seed, HELD_OUT, step_s=300.0)
        found: dict[str, Found] = {}
        for method in methods:
            found |= method(course)
        days.append(found)
    return days


@pytest.fixture(scope="module")
def days() -> list[dict[str, Found]]:
    return run(range(4, 8))


def without_speed(result: dict[str, Any]) -> str:
    for scores in result["baselines"].values():
        del scores["profiles_per_s"]
    return json.dumps(result, allow_nan=False, sort_keys=True)


def test_every_method_is_scored_on_the_same_instants(days: list[dict[str, Found]]) -> None:
    assert set(days[0]) == BASELINES
    for day in days:
        first, *others = (found.compared for found in day.values())
        for other in others:
            np.testing.assert_array_equal(other.unix_s, first.unix_s)
            np.testing.assert_array_equal(other.true_m, first.true_m)


def test_the_result_has_the_promised_keys_for_all_and_for_parts(days: list[dict[str, Found]]) -> None:
    result = score_methods(days)
    assert set(result["baselines"]) == BASELINES
    assert result["learned"] is None
    for scores in result["baselines"].values():
        assert PROMISED | {"r", "jumps_per_hour", "lag_min", "profiles_per_s"} <= set(scores)
        assert set(scores["regimes"]) == {"night", "growth", "mature", "decay", "cloudy"}
        assert set(scores["instruments"]) == {"cl31", "cl51", "cl61", "chm15k"}
        assert all(set(part) >= PROMISED for part in (*scores["regimes"].values(), *scores["instruments"].values()))
    common = {scores["common"]["height_count"] for scores in result["baselines"].values()}
    assert len(common) == 1
    assert common.pop() <= min(scores["height_count"] for scores in result["baselines"].values())


def test_a_learned_version_stands_apart_from_the_baselines(days: list[dict[str, Found]]) -> None:
    result = score_methods([{**day, "learned": day["gradient"]} for day in days])
    assert result["learned"]["rmse_m"] == result["baselines"]["gradient"]["rmse_m"]
    assert "learned" not in result["baselines"]


def test_the_same_day_gives_the_same_numbers(days: list[dict[str, Found]]) -> None:
    assert without_speed(score_methods(days[:1])) == without_speed(score_methods(run(range(4, 5))))


def test_a_median_over_ten_minutes_looks_back_only_and_wants_half_of_them() -> None:
    found_m = np.array([100.0, 900, 100, 100, np.nan, np.nan, np.nan, np.nan, np.nan, np.nan, np.nan, np.nan, 500])
    count = len(found_m)
    names = np.full(count, "")
    heights = Compared(
        course=np.zeros(count, np.int64),
        unix_s=60.0 * np.arange(count),
        instrument=names,
        regime=names,
        sky=names,
        true_m=found_m,
        others_m=found_m[:, None],
        found_m=found_m,
        lower_m=found_m - 10,
        upper_m=found_m + 10,
        flag=np.where(np.isfinite(found_m), 2.0, 0.0),
    )
    median = trailing_median(heights.unix_s, heights)
    expected = [100, 500, 100, 100, 100, 100, 100, 100, *[np.nan] * 5]
    np.testing.assert_array_equal(median.found_m, expected)
    np.testing.assert_array_equal((median.upper_m - median.lower_m)[:8], 20)
    assert median.flag[-1] == 0
    later = replace(heights, found_m=np.where(np.arange(count) > 3, 3000.0, found_m))
    np.testing.assert_array_equal(trailing_median(later.unix_s, later).found_m[:4], expected[:4])


def test_the_command_says_what_it_takes_and_refuses_what_it_does_not_know() -> None:
    command = [sys.executable, "-m", "benchmarks.boundary_layer", "--versions", "77"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert "--quick" in done.stderr and "77" in done.stderr
