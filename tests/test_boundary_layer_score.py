"""Scores are what their definitions say, and simulated courses are what a version would be given by a worker."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from boundary_layer_support import heights
from numpy.typing import ArrayLike

from fieldpost.simulation import FAIR, HELD_OUT, TRAINING
from server.analyses import load_analysis
from server.analyses.boundary_layer import NAME, WAVELET
from server.analyses.boundary_layer.classical.gradient import GradientHeight
from server.analyses.boundary_layer.classical.shortest_path import ShortestPathHeight
from server.analyses.boundary_layer.classical.variance import VarianceHeight
from server.analyses.boundary_layer.score import format_table, rows_of
from server.analyses.boundary_layer.scoring.metrics import Compared, in_common, join, score, score_parts
from server.analyses.boundary_layer.scoring.simulated_courses import (
    compare,
    retrieve,
    retrieve_telegrams,
    simulate_course,
)

NAN = math.nan


def compared(true_m: ArrayLike, found_m: ArrayLike, others_m: ArrayLike | None = None, reach_m: float = 50) -> Compared:
    """Minute by minute, a clear night of one instrument."""
    true, found = np.asarray(true_m, float), np.asarray(found_m, float)
    count = len(true)
    return Compared(
        course=np.zeros(count, np.int64),
        unix_s=60.0 * np.arange(count),
        instrument=np.full(count, "cl51"),
        regime=np.full(count, "night"),
        sky=np.full(count, "clear"),
        true_m=true,
        others_m=np.full((count, 2), NAN) if others_m is None else np.asarray(others_m, float),
        found_m=found,
        lower_m=found - reach_m,
        upper_m=found + reach_m,
        flag=np.where(np.isfinite(found), 2.0, 0.0),
    )


def test_errors_are_found_minus_true_over_what_was_given() -> None:
    scored = score(compared([100, 200, 300, 400], [110, 170, NAN, 800]))
    assert (scored.instant_count, scored.height_count, scored.availability) == (4, 3, 0.75)
    assert scored.bias_m == pytest.approx((10 - 30 + 400) / 3)
    assert scored.mae_m == pytest.approx((10 + 30 + 400) / 3)
    assert scored.median_m == 30
    assert scored.rmse_m == pytest.approx(math.sqrt((100 + 900 + 160000) / 3))
    assert scored.within_100_m == scored.within_200_m == pytest.approx(2 / 3)
    assert scored.beyond_300_m == pytest.approx(1 / 3)


def test_r2_forgives_a_slope_and_determination_does_not() -> None:
    true_m = np.linspace(100, 2000, 50)
    scored = score(compared(true_m, 0.5 * true_m + 300))
    assert scored.r2 == pytest.approx(1)
    assert scored.determination < 0.8
    perfect = score(compared(true_m, true_m))
    assert perfect.determination == pytest.approx(1) and perfect.r == pytest.approx(1)


def test_a_wrong_layer_is_far_off_and_nearer_to_another_layer() -> None:
    others = [[1500, NAN], [1500, NAN], [NAN, NAN], [NAN, 450]]
    scored = score(compared([300, 300, 300, 300], [1450, 300, 1450, 420], others))
    assert scored.beyond_300_m == 0.5  # the third is off, but nothing else is there
    assert scored.wrong_layer == 0.25  # the fourth is nearer to the cloud, but not far off


def test_a_height_in_rain_is_false_and_counts_nowhere_else() -> None:
    rain = compared([NAN, NAN, 300, 300], [500, NAN, 300, 300])
    scored = score(replace(rain, sky=np.array(["rain", "fog", "clear", "clear"])))
    assert scored.false_height == 0.5
    assert (scored.instant_count, scored.availability, scored.mae_m) == (2, 1, 0)


def test_jumps_are_counted_between_neighbours_of_one_course_only() -> None:
    steady = compared(np.full(61, 300.0), np.full(61, 300.0))
    assert score(steady).jumps_per_hour == 0
    found_m = np.full(61, 300.0)
    found_m[30:] = 900
    assert score(compared(np.full(61, 300.0), found_m)).jumps_per_hour == pytest.approx(1)
    other_course = replace(compared(np.full(61, 300.0), found_m), course=(np.arange(61) >= 30).astype(np.int64))
    assert score(other_course).jumps_per_hour == 0
    gap = compared(np.full(61, 300.0), np.where((np.arange(61) >= 28) & (np.arange(61) < 30), NAN, found_m))
    assert score(gap).jumps_per_hour == 0


def test_coverage_is_the_share_of_true_heights_within_the_interval() -> None:
    scored = score(compared([300, 300, 300, 300], [310, 349, 351, 200]))
    assert scored.coverage_90 == 0.5
    assert scored.interval_m == 100
    without = compared([300], [300])
    assert score(replace(without, lower_m=np.array([NAN]), upper_m=np.array([NAN]))).coverage_90 == 0


def test_a_method_that_trails_by_ten_minutes_is_said_to() -> None:
    true_m = 200 + 5.0 * np.arange(240)
    found_m = np.concatenate([np.full(10, 200.0), true_m[:-10]])
    growing = replace(compared(true_m, found_m), regime=np.full(240, "growth"))
    assert score(growing).lag_min == 10
    assert score(replace(growing, found_m=true_m)).lag_min == 0
    assert math.isnan(score(compared(true_m, found_m)).lag_min)  # no growth, no lag


def test_parts_are_scored_like_the_whole_and_are_ready_for_json() -> None:
    both = join([compared([300, 300], [310, NAN]), replace(compared([900], [700]), regime=np.array(["mature"]))])
    both = replace(both, sky=np.array(["clear", "cloud", "cloud"]), flag=np.array([2.0, 0.0, 1.0]))
    parts = json.loads(json.dumps(score_parts(both), allow_nan=False))
    assert parts["mae_m"] == 105
    assert parts["regimes"]["night"]["mae_m"] == 10
    assert parts["regimes"]["mature"]["mae_m"] == 200
    assert parts["regimes"]["growth"]["mae_m"] is None
    assert parts["regimes"]["cloudy"]["availability"] == 0.5
    assert parts["instruments"]["cl51"]["availability"] == pytest.approx(2 / 3)
    assert parts["flag_good"]["mae_m"] == 10
    assert "flag good" in format_table(rows_of(parts))


def test_common_instants_are_those_at_which_all_have_a_height() -> None:
    common = in_common({"a": compared([1, 2, 3], [1, NAN, 3]), "b": compared([1, 2, 3], [1, 2, NAN])})
    assert [len(each.true_m) for each in common.values()] == [1, 1]


def test_nothing_to_score_is_no_number() -> None:
    scored = score(compared([], []))
    assert (scored.instant_count, scored.height_count) == (0, 0)
    assert math.isnan(scored.availability) and math.isnan(scored.rmse_m) and math.isnan(scored.jumps_per_hour)


def test_a_course_is_the_same_whenever_it_is_simulated_and_begins_at_solar_noon() -> None:
    first, again = (simulate_course(5, HELD_OUT, step_s=3600) for _ in range(2))
    np.testing.assert_array_equal(first.unix_s, again.unix_s)
    for one, other in zip(first.observations, again.observations, strict=True):
        np.testing.assert_array_equal(one.beta, other.beta)
    latitude_deg, longitude_deg = first.site
    solar_hour = (first.unix_s / 3600 + longitude_deg / 15) % 24
    assert 11.9 <= solar_hour[0] < 12.1
    assert 22 <= abs(latitude_deg) <= 66  # as the climate says
    other_climate = simulate_course(5, TRAINING, step_s=3600)
    assert other_climate.site != first.site


@pytest.mark.parametrize("version", [GradientHeight, VarianceHeight, ShortestPathHeight])
def test_decoded_profiles_give_the_heights_that_real_telegrams_give(
    version: type[GradientHeight | VarianceHeight | ShortestPathHeight],
) -> None:
    course = simulate_course(3, FAIR, model="cl51", step_s=600)
    decoded, _ = retrieve(version(), course)
    telegrams, _ = retrieve_telegrams(version(), course)
    # a telegram rounds a cloud's base to whole metres
    np.testing.assert_allclose(heights(decoded), heights(telegrams), atol=1)


def test_the_wavelet_version_is_asked_the_same_way() -> None:
    course = simulate_course(3, FAIR, model="cl51", step_s=600)
    analysis = load_analysis(NAME, WAVELET)
    decoded, _ = retrieve(analysis, course)
    telegrams, _ = retrieve_telegrams(analysis, course)
    np.testing.assert_allclose(heights(decoded), heights(telegrams), atol=1)
    assert score(compare(course, decoded)).median_m < 60


def test_the_command_scores_versions_and_prints_json() -> None:
    command = [sys.executable, "-m", "server.analyses.boundary_layer.score", "--versions", "1", "--courses", "1"]
    command += ["--climate", "fair", "--instrument", "cl51", "--step-s", "3600", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    scores = json.loads(done.stdout)
    assert scores["1"]["instant_count"] == 24
    assert scores["1"]["regimes"]["night"]["availability"] is not None
