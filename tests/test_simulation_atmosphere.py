"""The simulated atmosphere: reproducible, continuous, and as high as its truth says."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fieldpost.simulation import FAIR, HELD_OUT, TRAINING, Atmosphere, Climate
from fieldpost.simulation.profile import erf_top, two_way_transmission
from fieldpost.simulation.sky import CLEAR

RANGE_M = np.arange(1540) * 10.0 + 5
DAY = 20_000 * 86400.0
HOURS = DAY + np.arange(0, 48, 0.25) * 3600


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), times=st.lists(st.floats(0, 4e9), min_size=2, max_size=6))
def test_the_same_seed_and_time_give_the_same_air_in_any_order_of_asking(seed: int, times: list[float]) -> None:
    together = Atmosphere(seed, TRAINING).scene(np.array(times), RANGE_M)
    for index, unix_s in reversed(list(enumerate(times))):
        truth, backscatter = Atmosphere(seed, TRAINING).scene(np.array([unix_s]), RANGE_M)
        assert truth.mixing_height_m[0] == pytest.approx(together[0].mixing_height_m[index], rel=1e-9, nan_ok=True)
        assert truth.sky[0] == together[0].sky[index]
        np.testing.assert_allclose(backscatter[0], together[1][index], rtol=1e-5)


def test_other_seeds_give_other_air() -> None:
    heights = [Atmosphere(seed).truth(HOURS).mixing_height_m for seed in range(5)]
    assert all(np.abs(a - b).max() > 50 for a, b in pairwise(heights))


def turns_of(atmosphere: Atmosphere) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Seconds about which something begins or ends: whole hours, and where the regime changes, to the second."""
    minutes = DAY + np.arange(0, 3 * 86400, 60.0)
    starts = minutes[np.flatnonzero(np.diff(atmosphere.truth(minutes).regime))]
    seconds = (starts[:, None] + np.arange(60.0)).ravel()
    return np.sort(np.concatenate([minutes[::60], seconds]))


@pytest.mark.parametrize("climate", [FAIR, TRAINING, HELD_OUT], ids=["fair", "training", "held out"])
@pytest.mark.parametrize("seed", range(6))
def test_nothing_jumps_at_midnight_or_at_any_other_turn_of_the_day(seed: int, climate: Climate) -> None:
    atmosphere = Atmosphere(seed, climate)
    turns = turns_of(atmosphere)
    before, after = (atmosphere.scene(turns + shift_s, RANGE_M[:300:2]) for shift_s in (-0.5, 0.5))
    # thermals lift the top by a few metres in a second at most
    has_both = np.isfinite(before[0].mixing_height_m) & np.isfinite(after[0].mixing_height_m)
    assert np.abs(after[0].mixing_height_m - before[0].mixing_height_m)[has_both].max() < 6
    is_clear = (before[0].sky == CLEAR) & (after[0].sky == CLEAR)
    change = np.abs(after[1] - before[1])[is_clear]
    assert change.max() < 0.1 * before[1][is_clear].max()
    assert np.median(change / before[1][is_clear]) < 3e-3


@pytest.mark.parametrize("seed", range(6))
def test_a_day_has_a_shallow_night_a_high_afternoon_and_a_residual_layer_after_sunset(seed: int) -> None:
    atmosphere = Atmosphere(seed)
    night, afternoon, evening = (
        atmosphere.truth(DAY + np.arange(start, end, 0.1) * 3600) for start, end in ((0, 5), (14, 16.5), (20, 24))
    )
    assert 80 < night.mixing_height_m.mean() < 350
    assert 800 < afternoon.mixing_height_m.mean() < 2300
    assert np.isnan(afternoon.residual_layer_height_m).mean() > 0.5
    assert np.all(evening.residual_layer_height_m > evening.mixing_height_m)


@pytest.mark.parametrize("hour", [3.0, 10.0, 15.0, 23.0])
def test_backscatter_falls_most_steeply_near_the_true_mixing_height(hour: float) -> None:
    times = DAY + np.arange(10) * 86400 + hour * 3600
    truth, backscatter = Atmosphere(4).scene(times, RANGE_M)
    is_clear = np.isnan(truth.cloud_base_m)
    assert is_clear.sum() >= 4
    for height_m, profile in zip(truth.mixing_height_m[is_clear], backscatter[is_clear], strict=True):
        near = slice(max(0, int(height_m / 10) - 12), int(height_m / 10) + 12)
        steepest = RANGE_M[near][np.argmin(np.diff(np.convolve(profile, np.ones(5) / 5, "same")[near]))]
        assert abs(steepest - height_m) <= max(60.0, 0.12 * height_m)


def test_clouds_lie_at_the_top_of_the_mixing_layer_and_hide_what_is_above() -> None:
    unix_s = DAY + np.arange(0, 20 * 86400, 1200.0)
    truth, backscatter = Atmosphere(2).scene(unix_s, RANGE_M)
    cloudy = np.flatnonzero(np.isfinite(truth.cloud_base_m))
    assert 0.01 < len(cloudy) / len(unix_s) < 0.3
    for index in cloudy[::5]:
        base = int(truth.cloud_base_m[index] / 10)
        assert backscatter[index, base : base + 15].max() > 1e-4
        assert backscatter[index, base + 60] < 0.1 * backscatter[index, base - 20]


def test_the_units_are_those_of_a_ceilometer() -> None:
    backscatter = Atmosphere(1).attenuated_backscatter(HOURS, RANGE_M)
    assert backscatter.dtype == np.float32
    assert backscatter.shape == (len(HOURS), len(RANGE_M))
    assert np.all(np.isfinite(backscatter)) and np.all(backscatter > 0)
    assert 3e-7 < np.median(backscatter[:, 5]) < 6e-6


def test_transmission_of_even_air_is_the_exponential_law() -> None:
    extinction = np.full((1, 500), 1e-4, np.float32)
    transmission = two_way_transmission(extinction, RANGE_M[:500].astype(np.float32))
    expected = np.exp(-2 * 1e-4 * (RANGE_M[:500] + 5))
    np.testing.assert_allclose(transmission[0], expected, rtol=1e-4)


def test_the_error_function_is_the_error_function() -> None:
    z = np.linspace(0, 3000, 601, dtype=np.float32)
    top = erf_top(z, np.array([[1000]], np.float32), np.float32(200))[0]
    expected = [0.5 * (1 - math.erf((float(x) - 1000) / (math.sqrt(2) * 200))) for x in z]
    np.testing.assert_allclose(top, expected, atol=1e-6)
