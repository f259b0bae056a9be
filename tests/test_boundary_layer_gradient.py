"""Version 2: gradients found where layers end, within the limits that the sun sets, and not in noise, cloud or rain."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from boundary_layer_support import EQUINOX_NOON_UNIX_S, GATE_COUNT, SITE, column, heights, layered

from fieldpost.errors import InvalidObservationError
from fieldpost.simulation import SimulatedCl51
from server.analyses import AnalysisInput, AnalysisResult
from server.analyses.boundary_layer.classical.gradient import SETTINGS, GradientHeight
from server.analyses.boundary_layer.classical.guides import limits, sun_hours

HOUR_S = 3600.0
MIDNIGHT_UNIX_S = EQUINOX_NOON_UNIX_S + 12 * HOUR_S


@pytest.mark.parametrize("is_logarithmic", [False, True])
@pytest.mark.parametrize("top_m", [305.0, 800.0, 1600.0])
def test_the_top_of_a_single_layer_is_found_within_a_gate(top_m: float, is_logarithmic: bool) -> None:
    analysis = GradientHeight(replace(SETTINGS, is_logarithmic=is_logarithmic))
    found = heights(analysis.predict_profiles([layered(EQUINOX_NOON_UNIX_S + s, [top_m]) for s in range(20)], *SITE))
    np.testing.assert_allclose(found, top_m, atol=25)
    assert abs(np.median(found) - top_m) < 10


def test_of_two_tops_the_lower_wins_and_the_textbooks_argmin_takes_the_steeper() -> None:
    profile = layered(EQUINOX_NOON_UNIX_S, [600.0, 1500.0], levels=(2e-6, 1.2e-6))
    ours = heights(GradientHeight().predict_profiles([profile], *SITE))
    argmin = heights(GradientHeight(replace(SETTINGS, min_share=1.0)).predict_profiles([profile], *SITE))
    assert abs(ours[0] - 600) < 25
    assert abs(argmin[0] - 1500) < 25


def test_by_night_a_residual_layer_is_above_the_limit_where_the_place_is_known() -> None:
    profile = layered(MIDNIGHT_UNIX_S, [250.0, 1500.0], levels=(1.2e-6, 1.15e-6))
    assert abs(heights(GradientHeight().predict_profiles([profile], None, None))[0] - 1500) < 25
    known = heights(GradientHeight().predict_profiles([profile], *SITE))
    assert np.isnan(known[0]) or known[0] < 500


def test_noise_alone_hardly_ever_has_a_height() -> None:
    nothing = [layered(EQUINOX_NOON_UNIX_S + s, [], free=1e-9) for s in range(200)]
    assert np.isfinite(heights(GradientHeight().predict_profiles(nothing, *SITE))).mean() < 0.03


def test_rain_and_a_hidden_sky_have_no_height_and_flag_none() -> None:
    rain = layered(EQUINOX_NOON_UNIX_S, [1500.0], levels=(5e-5,))
    hidden = layered(EQUINOX_NOON_UNIX_S, [800.0], is_obscured=True)
    results = GradientHeight().predict_profiles([rain, hidden], *SITE)
    assert np.isnan(heights(results)).all()
    assert column(results, "quality_flag").tolist() == [0, 0]
    assert np.isnan(column(results, "atmosphere_boundary_layer_thickness_standard_error")).all()


def test_what_lies_above_a_cloud_is_not_looked_at() -> None:
    profile = layered(EQUINOX_NOON_UNIX_S, [1500.0], cloud_base_m=1000.0)
    results = GradientHeight().predict_profiles([profile], *SITE)
    assert heights(results)[0] == 1000  # a low cloud sits on the layer
    assert column(results, "quality_flag")[0] == 1


def test_telegrams_give_what_their_decoded_profiles_give_and_errors_stay_in_their_place() -> None:
    instrument = SimulatedCl51(3)
    times = [EQUINOX_NOON_UNIX_S + 600.0 * n for n in range(6)]
    batch = [AnalysisInput(instrument.telegram(t), "cl51", int(t * 1e9), None, *SITE) for t in times]
    answers = GradientHeight().predict([batch[0], AnalysisInput(b"x", "cl51", 0), *batch[1:]])
    assert isinstance(answers.pop(1), InvalidObservationError)
    for one, answer in zip(batch, answers, strict=True):
        [alone] = GradientHeight().predict([one])
        assert isinstance(answer, AnalysisResult) and isinstance(alone, AnalysisResult)
        np.testing.assert_array_equal(heights([alone]), heights([answer]))
        assert [v.name for v in answer.variables][:4] == [
            "atmosphere_boundary_layer_thickness",
            "atmosphere_boundary_layer_thickness_standard_error",
            "cloud_base_height",
            "quality_flag",
        ]


def test_a_grid_too_short_for_the_window_is_survived() -> None:
    profile = layered(EQUINOX_NOON_UNIX_S, [100.0])
    short = replace(profile, height_m=profile.height_m[:12], beta=profile.beta[:, :12])
    assert np.isnan(heights(GradientHeight().predict_profiles([short], *SITE))).all()
    assert GATE_COUNT > 12


def test_hours_from_sunrise_and_to_sunset_are_those_of_the_almanac() -> None:
    hours = np.array([-6.0, 0.0, 3.0, 6.0])
    since, to = sun_hours(EQUINOX_NOON_UNIX_S + hours * HOUR_S, *SITE)
    np.testing.assert_allclose(since, hours + 6, atol=0.2)
    np.testing.assert_allclose(to, 6 - hours, atol=0.2)
    june_noon = np.array([20_260 * 86400.0 + 43200])  # 2025-06-21
    assert sun_hours(june_noon, 60.0, 0.0)[0][0] == pytest.approx(9.25, abs=0.2)  # 18.5 h between sunrise and sunset
    assert sun_hours(june_noon, 80.0, 0.0)[1][0] == pytest.approx(12, abs=0.1)  # it does not set
    assert sun_hours(june_noon, -80.0, 0.0)[1][0] == pytest.approx(0, abs=0.1)  # it does not rise


def test_the_limits_are_low_by_night_and_wide_in_the_afternoon() -> None:
    night, morning, afternoon = MIDNIGHT_UNIX_S, MIDNIGHT_UNIX_S + 7 * HOUR_S, MIDNIGHT_UNIX_S + 14 * HOUR_S
    floor_m, ceiling_m = limits(np.array([night, morning, afternoon]), *SITE)
    assert ceiling_m[0] < ceiling_m[1] < 1000 < 3500 < ceiling_m[2]
    assert floor_m[0] == 60 and floor_m[2] == 200
    everywhere = limits(np.array([night]), None, None)
    assert (everywhere.floor_m[0], everywhere.ceiling_m[0]) == (60, 4000)
