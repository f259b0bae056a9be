"""Version 4: a path that does not jump to noise, follows growth and collapse, and is better when the day is known."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from boundary_layer_support import EQUINOX_NOON_UNIX_S, SITE, column, heights, layered
from numpy.typing import NDArray

from fieldpost.simulation import TRAINING
from fieldpost.telegrams import Profiles
from server.analyses.boundary_layer.classical.gradient import GradientHeight
from server.analyses.boundary_layer.classical.shortest_path import ShortestPathHeight
from server.analyses.boundary_layer.scoring.metrics import score
from server.analyses.boundary_layer.scoring.simulated_courses import beside_truth, compare, retrieve, simulate_course


def follow(profiles: list[Profiles]) -> NDArray[np.float32]:
    [followed] = ShortestPathHeight().follow_profiles([(b"", profiles, *SITE)])
    return heights(followed.results)


def test_a_steady_layer_is_found_and_noise_beside_it_does_not_win() -> None:
    found = follow([layered(EQUINOX_NOON_UNIX_S + 60.0 * n, [900.0]) for n in range(60)])
    np.testing.assert_allclose(found, 900, atol=30)


def test_a_growing_layer_is_followed() -> None:
    start = EQUINOX_NOON_UNIX_S - 3 * 3600
    tops_m = np.linspace(400, 1200, 180)
    found = follow([layered(start + 60.0 * n, [top, 1500.0]) for n, top in enumerate(tops_m.tolist())])
    error_m = found - tops_m
    assert np.mean(np.abs(error_m) < 120) > 0.95
    assert -80 < error_m.mean() < 20  # it trails by some minutes, as the mean over a quarter of an hour does


def test_a_layer_that_collapses_is_followed() -> None:
    sunset = EQUINOX_NOON_UNIX_S + 6 * 3600
    before = [layered(sunset - 7200 + 60.0 * n, [1400.0], levels=(1e-6,)) for n in range(60)]
    after = [layered(sunset + 60.0 * n, [200.0, 1400.0], levels=(1.6e-6, 1e-6)) for n in range(40)]
    found = follow(before + after)
    np.testing.assert_allclose(found[40:60], 1400, atol=40)
    np.testing.assert_allclose(found[-20:], 200, atol=40)


def test_a_flash_of_another_edge_does_not_make_the_path_jump() -> None:
    times = [EQUINOX_NOON_UNIX_S + 60.0 * n for n in range(60)]
    flash = range(30, 33)
    profiles = [
        layered(t, [500.0, 1500.0] if n in flash else [1500.0], levels=(4e-6, 2e-6) if n in flash else (2e-6,))
        for n, t in enumerate(times)
    ]
    found = follow(profiles)
    np.testing.assert_allclose(found[25:], 1500, atol=40)
    alone = heights(GradientHeight().predict_profiles(profiles, *SITE))
    assert abs(alone[31] - 500) < 40  # so the flash is an edge


def test_a_hidden_sky_has_no_height_and_the_path_goes_on_behind_it() -> None:
    times = [EQUINOX_NOON_UNIX_S + 60.0 * n for n in range(40)]
    profiles = [layered(t, [900.0], is_obscured=15 <= n < 25) for n, t in enumerate(times)]
    found = follow(profiles)
    assert np.isnan(found[15:25]).all()
    np.testing.assert_allclose(found[25:], 900, atol=40)


def test_a_path_that_is_known_as_a_whole_is_steadier_than_its_end_as_it_goes() -> None:
    course = simulate_course(700_301, TRAINING, model="cl51", step_s=120.0)
    analysis = ShortestPathHeight()
    results, _ = retrieve(analysis, course)
    online = compare(course, results)
    layers = analysis.find_path(course.observations, *course.site)
    columns = [np.asarray(c, np.float64) for c in (layers.height_m, layers.standard_error_m, layers.flag)]
    whole = beside_truth(course, columns[0], columns[0] - columns[1], columns[0] + columns[1], columns[2])
    assert score(whole).jumps_per_hour <= score(online).jumps_per_hour
    assert score(whole).rmse_m <= score(online).rmse_m
    flags = column(results, "quality_flag")
    assert set(np.unique(flags)) <= {0, 1, 2}
    assert all(a <= b for a, b in pairwise(course.unix_s))
