"""The simulated skies: each looks as its truth says, and the layer does what its regime says."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
from numpy.typing import NDArray

from fieldpost.simulation import CALIBRATION, FAIR, HELD_OUT, REGIMES, SKIES, TRAINING, Atmosphere, Climate, Truth
from fieldpost.simulation.course import DECAY, GROWTH, MATURE, NIGHT
from fieldpost.simulation.sky import CLEAR, CLOUD, FOG, RAIN
from fieldpost.sun import solar_elevation_deg

DAY = 20_000 * 86400.0
RANGE_M = np.arange(500) * 10.0 + 5
TWO_DAYS = DAY + np.arange(0, 2 * 86400, 600.0)
LEARNING = pytest.mark.parametrize(
    "climate", [TRAINING, CALIBRATION, HELD_OUT], ids=["training", "calibration", "held out"]
)


def scenes(climate: Climate, seeds: range, unix_s: NDArray[np.float64]) -> tuple[Truth, NDArray[np.float32]]:
    """Truth and profiles of several atmospheres, one after the other."""
    truths, profiles = zip(*(Atmosphere(seed, climate).scene(unix_s, RANGE_M) for seed in seeds), strict=True)
    joined = {field.name: np.concatenate([getattr(t, field.name) for t in truths]) for field in fields(Truth)}
    return Truth(**joined), np.concatenate(profiles)


@LEARNING
def test_every_sky_and_every_regime_occurs_and_no_height_is_defined_in_rain_and_fog(climate: Climate) -> None:
    truths = [Atmosphere(seed, climate).truth(DAY + np.arange(0, 5 * 86400, 300.0)) for seed in range(12)]
    sky, regime = (np.concatenate([getattr(t, name) for t in truths]) for name in ("sky", "regime"))
    height_m = np.concatenate([t.mixing_height_m for t in truths])
    residual_m = np.concatenate([t.residual_layer_height_m for t in truths])
    assert (np.bincount(sky, minlength=len(SKIES)) / len(sky) > 0.003).all()
    assert (np.bincount(regime, minlength=len(REGIMES)) / len(regime) > 0.03).all()
    is_hidden = (sky == RAIN) | (sky == FOG)
    np.testing.assert_array_equal(np.isnan(height_m), is_hidden)
    assert np.isnan(residual_m[is_hidden]).all()
    has_residual = np.isfinite(residual_m)
    assert (residual_m > height_m)[has_residual].all()


def test_rain_that_reaches_the_ground_shows_there_and_washes_the_air() -> None:
    rainy = replace(TRAINING, rain_share=1.0, virga_share=0.0, fog_share=0.0, lofted_share=0.0, washout=(0.6, 0.6))
    washed = []
    for seed in range(5):
        wet, beta = Atmosphere(seed, rainy).scene(TWO_DAYS, RANGE_M)
        _, dry_beta = Atmosphere(seed, replace(rainy, rain_share=0.0)).scene(TWO_DAYS, RANGE_M)
        is_raining = wet.sky == RAIN
        assert 0.01 < is_raining.mean() < 0.9
        # with streaks, shafts of rain are stronger and weaker by half
        assert (beta[is_raining, :5].max(axis=1) > 0.4 * dry_beta[is_raining, :5].max(axis=1) + 5e-7).all()
        is_dry = wet.sky == CLEAR
        washed.append(float((beta[is_dry, 4] / dry_beta[is_dry, 4]).min()))
    # two rains in two days take 60 % each at most; the air comes back in between
    assert 0.1 < min(washed) < 0.5


def test_virga_leaves_the_ground_dry_and_the_height_defined() -> None:
    virga = replace(TRAINING, rain_share=1.0, virga_share=1.0, fog_share=0.0, rain_backscatter=(5e-5, 1e-4))
    truth, beta = scenes(virga, range(4), TWO_DAYS)
    assert not (truth.sky == RAIN).any()
    assert np.isfinite(truth.mixing_height_m).all()
    base = np.nan_to_num(truth.cloud_base_m / 10, nan=0).astype(int)
    falls = np.array([b > 40 and beta[i, b - 25 : b - 8].mean() > 1.5e-5 for i, b in enumerate(np.minimum(base, 490))])
    assert falls.sum() > 20
    assert np.median(beta[falls, 3]) < 1e-5


def test_fog_lies_on_the_ground_and_dense_fog_hides_the_sky() -> None:
    foggy = replace(TRAINING, fog_share=1.0, rain_share=0.0, fog_depth_m=(80.0, 200.0), fog_backscatter=(5e-4, 1e-3))
    truth, beta = scenes(foggy, range(4), TWO_DAYS)
    _, clear_beta = scenes(replace(foggy, fog_share=0.0), range(4), TWO_DAYS)
    is_fog = truth.sky == FOG
    assert 0.05 < is_fog.mean() < 0.5
    assert (beta[is_fog, 0] > 1e-5).all()
    assert np.isnan(truth.cloud_base_m[is_fog]).all()
    assert is_fog.sum() > 50
    # while it is young it is shallow, and some light comes through
    assert np.median(beta[is_fog, 60] / clear_beta[is_fog, 60]) < 0.2


def test_the_backscatter_rises_steeply_at_each_cloud_base_and_low_clouds_hide_what_is_above() -> None:
    cloudy = replace(TRAINING, rain_share=0.0, fog_share=0.0, lofted_share=0.0, cumulus_share=0.7, deck_share=0.7)
    truth, beta = scenes(cloudy, range(4), TWO_DAYS)
    rows = np.flatnonzero((truth.sky == CLOUD) & (truth.cloud_base_m < 4000) & (truth.cloud_base_m > 200))
    assert len(rows) > 150
    rises = []
    for row in rows:
        base = int(truth.cloud_base_m[row] / 10)
        rises.append(beta[row, base : base + 6].max() / beta[row, base - 10])
        if truth.cloud_base_m[row] < 2500:
            assert beta[row, base + 60] < 1e-2 * beta[row, base : base + 6].max()
    assert np.quantile(rises, 0.05) > 10


def test_low_clouds_lie_at_the_top_of_the_mixing_layer_by_day() -> None:
    decks = replace(TRAINING, rain_share=0.0, middle_share=0.0, deck_share=0.9)
    truth, _ = scenes(decks, range(5, 10), TWO_DAYS)
    at_top = (truth.sky == CLOUD) & (truth.regime == MATURE) & np.isnan(truth.residual_layer_height_m)
    ratio = truth.cloud_base_m[at_top] / truth.mixing_height_m[at_top]
    assert at_top.sum() > 10
    # the top of a deck follows the thermals less than the mixing layer does
    assert 0.9 < np.median(ratio) < 1.02
    assert ratio.min() > 0.75 and ratio.max() < 1.25


@LEARNING
def test_the_layer_does_what_its_regime_says_while_the_sun_does(climate: Climate) -> None:
    rises: list[float] = []
    falls: list[float] = []
    for seed in range(12):
        atmosphere = Atmosphere(seed, replace(climate, rain_share=0.0, fog_share=0.0))
        unix_s = DAY + np.arange(0, 4 * 86400, 300.0)
        truth = atmosphere.truth(unix_s)
        sun_deg = solar_elevation_deg(unix_s, atmosphere.latitude_deg, atmosphere.longitude_deg)
        lowest_sun_deg = -12.0 if abs(atmosphere.latitude_deg) > 60 else -2.0
        assert (sun_deg[truth.regime == MATURE] > lowest_sun_deg).all()
        assert (sun_deg[truth.regime == GROWTH] > lowest_sun_deg).all()
        change_m = truth.mixing_height_m[6:] - truth.mixing_height_m[:-6]
        steady = truth.regime[6:] == truth.regime[:-6]
        rises += change_m[steady & (truth.regime[6:] == GROWTH)].tolist()
        falls += change_m[steady & (truth.regime[6:] == DECAY)].tolist()
        by_night, by_day = truth.regime == NIGHT, truth.regime == MATURE
        assert np.median(truth.mixing_height_m[by_night]) < np.median(truth.mixing_height_m[by_day])
    # thermals move the top up and down while the layer grows
    assert np.median(rises) > 10 and np.mean(np.array(rises) > -30) > 0.9
    assert np.median(falls) < -10 and np.mean(np.array(falls) < 30) > 0.9


def test_regimes_follow_the_sun_of_the_site_and_not_a_clock() -> None:
    unix_s = DAY + np.arange(0, 86400, 300.0)
    greenwich, far_east = (
        Atmosphere(3, FAIR, longitude_deg=longitude_deg).truth(unix_s).regime == MATURE for longitude_deg in (0, 90)
    )
    hours = (unix_s - DAY) / 3600
    assert np.median(hours[greenwich]) - np.median(hours[far_east]) == pytest.approx(6, abs=0.75)


def test_cumulus_does_not_come_down_with_the_collapsing_layer() -> None:
    cumulus = replace(FAIR, cumulus_share=1.0, cumulus_cover=(0.9, 0.95))
    truth, _ = scenes(cumulus, range(4), DAY + np.arange(0, 86400, 60.0))
    assert np.isfinite(truth.cloud_base_m[truth.regime == MATURE]).mean() > 0.7
    assert np.isnan(truth.cloud_base_m[truth.regime == DECAY]).all()


def test_just_after_the_collapse_the_air_is_alike_below_and_above_the_new_top_and_not_so_later() -> None:
    smooth = replace(FAIR, strata_share=(0.0, 0.0), night_wave_share=(0.0, 0.0), lofted_share=0.0, cumulus_share=0.0)
    contrasts: dict[str, list[float]] = {"after": [], "later": []}
    for seed in range(5):
        unix_s = DAY + np.arange(0, 2 * 86400, 120.0)
        truth, beta = Atmosphere(seed, smooth).scene(unix_s, RANGE_M)
        share = truth.mixing_height_m / truth.residual_layer_height_m
        after = (truth.regime == DECAY) & (share > 0.5) & (share < 0.85)
        later = np.roll(after, 240)  # eight hours after
        for name, rows in (("after", np.flatnonzero(after)), ("later", np.flatnonzero(later))):
            for row in rows:
                top = int(truth.mixing_height_m[row] / 10)
                below, above = beta[row, max(0, top - 7)], beta[row, top + 7]
                contrasts[name].append(below / above - 1)
    assert len(contrasts["after"]) > 20
    # humid air near the top makes a gradient of some per cent
    assert np.abs(contrasts["after"]).max() < 0.1
    assert np.median(contrasts["later"]) > 0.35


def test_turbulence_shows_by_day_and_dies_before_the_aerosol_shows_the_collapse() -> None:
    plain = replace(FAIR, cumulus_share=0.0, lofted_share=0.0)
    ratios = []
    for seed in range(4):
        atmosphere = Atmosphere(seed, plain)
        minutes = DAY + np.arange(0, 86400, 60.0)
        regime = atmosphere.truth(minutes).regime
        collapse_unix_s = minutes[np.flatnonzero((regime[1:] == DECAY) & (regime[:-1] == MATURE))[0]]
        spread = []
        for start_unix_s in (collapse_unix_s - 7200, collapse_unix_s + 5400):
            _, beta = atmosphere.scene(start_unix_s + np.arange(0, 1200, 20.0), RANGE_M[5:60])
            spread.append(float((np.diff(beta, axis=0) / beta[1:]).std()))
        ratios.append(spread[0] / spread[1])
    assert min(ratios) > 3


def test_the_climates_differ_and_the_held_out_one_reaches_beyond_the_training() -> None:
    for climate in (CALIBRATION, HELD_OUT):
        beyond = []
        for field in fields(Climate):
            known, other = getattr(TRAINING, field.name), getattr(climate, field.name)
            if isinstance(known, tuple):
                beyond.append(other[0] < known[0] or other[1] > known[1])
            else:
                beyond.append(other > known)
        assert sum(beyond) > 15
    heights = {}
    for name, climate in (("training", TRAINING), ("held out", HELD_OUT)):
        truths = [Atmosphere(seed, climate).truth(TWO_DAYS) for seed in range(60)]
        heights[name] = np.concatenate([t.mixing_height_m[(t.regime == MATURE)] for t in truths])
    assert np.nanquantile(heights["held out"], 0.99) > np.nanquantile(heights["training"], 0.99)
    assert np.nanquantile(heights["held out"], 0.02) < np.nanquantile(heights["training"], 0.02)
    fair = np.concatenate([Atmosphere(seed).truth(TWO_DAYS).sky for seed in range(20)])
    assert set(fair.tolist()) == {CLEAR, CLOUD}


@pytest.mark.parametrize("latitude_deg", [66.0, 22.0, -45.0])
@pytest.mark.parametrize("day", [20_080, 20_262])
def test_midsummer_and_midwinter_have_a_course_from_the_tropics_to_the_polar_circle(
    latitude_deg: float, day: int
) -> None:
    atmosphere = Atmosphere(1, replace(HELD_OUT, rain_share=0.0, fog_share=0.0), latitude_deg=latitude_deg)
    truth = atmosphere.truth(day * 86400 + np.arange(0, 86400, 300.0))
    assert set(truth.regime.tolist()) == {NIGHT, GROWTH, MATURE, DECAY}
    assert np.isfinite(truth.mixing_height_m).all() and truth.mixing_height_m.min() >= 40
