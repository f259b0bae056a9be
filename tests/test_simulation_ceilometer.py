"""The simulated ceilometers: their noise is as stated, their telegrams say what they measured, and they miss things."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest

from fieldpost.errors import InvalidRequestError
from fieldpost.simulation import FAIR, HELD_OUT, TRAINING, Atmosphere, SimulatedCeilometer
from fieldpost.simulation.instruments import KINDS, draw_instrument
from fieldpost.simulation.sky import CLOUD, FOG, RAIN
from fieldpost.telegrams import decode_cl

DAY = 20_000 * 86400.0
MODELS = ("cl31", "cl51", "cl61", "chm15k")
EVERY_MODEL = pytest.mark.parametrize("model", MODELS)


def look(model: str, seed: int) -> SimulatedCeilometer:
    return SimulatedCeilometer(model, seed, Atmosphere(seed, TRAINING), TRAINING)


@EVERY_MODEL
def test_a_profile_is_the_same_alone_and_in_company(model: str) -> None:
    unix_s = DAY + np.array([0.0, 30_000.5, 43_200, 70_000, 100_000])
    truth, together = look(model, 3).profiles(unix_s)
    step = KINDS[model].quantum
    for index in (3, 0, 4):
        alone_truth, alone = look(model, 3).profiles(unix_s[index : index + 1])
        np.testing.assert_allclose(alone.beta[0], together.beta[index], rtol=1e-5, atol=1.01 * step + 1e-12)
        np.testing.assert_array_equal(alone.cloud_base_m[0], together.cloud_base_m[index])
        assert alone.is_obscured[0] == together.is_obscured[index]
        assert alone_truth.regime[0] == truth.regime[index]


@pytest.mark.parametrize(
    ("model", "lowest_noise", "highest_noise", "lowest_correlation", "highest_correlation"),
    [
        ("cl31", 5e-14, 5e-13, 0.2, 0.75),
        ("cl51", 2e-14, 1e-13, 0.28, 0.57),
        ("cl61", 1e-14, 1e-13, 0.8, 0.9),
        ("chm15k", 3e-15, 2e-14, -0.08, 0.08),
    ],
)
def test_the_noise_is_that_of_real_instruments_and_correlated_like_theirs(
    model: str,
    lowest_noise: float,
    highest_noise: float,
    lowest_correlation: float,
    highest_correlation: float,
) -> None:
    # by night, over the far half of the range, without what the baseline adds
    quiet = replace(TRAINING, baseline_error=(0.0, 0.0), cirrus_share=0.0, middle_share=0.0)
    for seed in range(4):
        atmosphere = Atmosphere(seed, replace(FAIR, lofted_share=0.0))
        instrument = SimulatedCeilometer(model, seed, atmosphere, quiet)
        far = instrument.range_m > 0.5 * instrument.range_m[-1]
        unix_s = DAY + np.arange(0, 1200, 60.0)
        clean = atmosphere.attenuated_backscatter(unix_s, instrument.range_m)[:, far]
        signal = (instrument.profiles(unix_s)[1].beta[:, far] - clean) / np.square(instrument.range_m[far])
        stated = draw_instrument(model, seed, quiet).night_noise
        assert signal.std() == pytest.approx(stated, rel=0.05)
        assert lowest_noise < stated < highest_noise
        correlation = float((signal[:, 1:] * signal[:, :-1]).mean() / np.square(signal).mean())
        assert lowest_correlation < correlation < highest_correlation


@pytest.mark.parametrize("model", ["cl31", "cl51"])
def test_a_telegram_decodes_to_the_profile_and_the_clouds_that_were_measured(model: str) -> None:
    grids, skies = set(), set()
    foggy = replace(TRAINING, fog_share=0.5)
    for seed in range(14):
        instrument = SimulatedCeilometer(model, seed, Atmosphere(seed, foggy), foggy)
        unix_s = DAY + np.arange(0, 86400, 3000.0)
        truth, profiles = instrument.profiles(unix_s)
        grids.add(len(instrument.range_m))
        for sky in (CLOUD, RAIN, FOG):
            for index in np.flatnonzero(truth.sky == sky)[:2]:
                skies.add(sky)
                decoded = decode_cl(instrument.telegram(float(unix_s[index]), "3"), int(profiles.unix_nanos[index]))
                np.testing.assert_allclose(decoded.height_m, profiles.height_m)
                np.testing.assert_allclose(decoded.beta[0], profiles.beta[index], rtol=1e-5, atol=1.01e-8)
                np.testing.assert_allclose(decoded.cloud_base_m[0], profiles.cloud_base_m[index], atol=0.5)
                assert decoded.is_obscured[0] == profiles.is_obscured[index]
    assert skies == {CLOUD, RAIN, FOG}
    assert grids == {grid[1] for grid in KINDS[model].grids}


@EVERY_MODEL
def test_cloud_bases_are_reported_with_errors_and_some_are_missed(model: str) -> None:
    errors, missed = [], []
    for seed in range(12):
        instrument = look(model, seed)
        truth, profiles = instrument.profiles(DAY + np.arange(0, 2 * 86400, 2100.0))
        is_cloud = (truth.sky == CLOUD) & (truth.cloud_base_m < KINDS[model].highest_base_m - 200)
        found = np.isfinite(profiles.lowest_cloud_base_m)
        assert not found[np.isnan(truth.cloud_base_m) & (truth.sky != FOG)].any()
        missed.append(~found[is_cloud])
        errors.append((profiles.lowest_cloud_base_m - truth.cloud_base_m)[is_cloud & found])
    error_m = np.concatenate(errors)
    assert 0.05 < np.concatenate(missed).mean() < 0.25
    assert 5 < error_m.std() < 35 and abs(error_m.mean()) < 5


def test_instruments_of_a_seed_differ_and_calibrations_spread_as_the_climate_says() -> None:
    far = [float(draw_instrument("chm15k", seed, TRAINING).gain[-1]) for seed in range(300)]
    assert np.std(np.log(far)) == pytest.approx(TRAINING.calibration_log_spread, rel=0.15)
    ground = [float(i.gain[0] / i.gain[-1]) for i in (draw_instrument("chm15k", seed, TRAINING) for seed in range(300))]
    assert min(ground) < 0.75 and max(ground) > 1.05
    vapour = [float(i.gain[700] / i.gain[30]) for i in (draw_instrument("cl61", seed, TRAINING) for seed in range(100))]
    assert 0.75 < min(vapour) < 0.9


def test_gaps_come_as_often_as_the_climate_says_and_fair_weather_has_none() -> None:
    unix_s = DAY + np.arange(0, 20 * 86400, 600.0)
    shares = [SimulatedCeilometer("cl51", s, Atmosphere(s, HELD_OUT), HELD_OUT).is_recording(unix_s) for s in range(8)]
    lost = 1 - np.mean(shares)
    # a gap lasts 0.4 to 12 h, 3.4 h on average
    expected = HELD_OUT.dropout_share * 3.4 / 24 + HELD_OUT.lost_share
    assert lost == pytest.approx(expected, rel=0.3)
    instrument = SimulatedCeilometer("cl51", 2, Atmosphere(2, HELD_OUT), HELD_OUT)
    whole = instrument.is_recording(unix_s)
    assert [bool(instrument.is_recording(unix_s[i : i + 1])[0]) for i in range(0, 2880, 97)] == whole[::97].tolist()
    assert SimulatedCeilometer("cl51", 1, Atmosphere(1)).is_recording(unix_s).all()


def test_the_background_is_brighter_under_a_high_sun_and_under_clouds() -> None:
    atmosphere = Atmosphere(4, FAIR, latitude_deg=20.0)
    instrument = SimulatedCeilometer("cl51", 4, atmosphere)
    far = instrument.range_m > 12_000

    def noise(hour: float) -> float:
        unix_s = DAY + hour * 3600 + np.arange(0, 600, 30.0)
        beta = instrument.profiles(unix_s)[1].beta[:, far]
        return float((beta / np.square(instrument.range_m[far])).std())

    assert 1.5 < noise(8) / noise(0) < noise(12) / noise(0) < 4.5


def test_simulations_travel_to_other_processes() -> None:
    instrument = look("cl61", 5)
    unix_s = DAY + np.array([1000.0])
    np.testing.assert_array_equal(
        pickle.loads(pickle.dumps(instrument)).profiles(unix_s)[1].beta, instrument.profiles(unix_s)[1].beta
    )


def test_an_unknown_model_is_refused_and_so_are_telegrams_of_those_that_write_files() -> None:
    with pytest.raises(InvalidRequestError, match=r"expected a model of cl31, .*, but got 'cl99'"):
        SimulatedCeilometer("cl99", 1, Atmosphere(1))
    with pytest.raises(InvalidRequestError, match="cl31 or cl51, but got 'cl61'"):
        look("cl61", 1).telegram(DAY)
