"""Choosing a layer among edges, judging the sky, and estimating noise: plain numbers in, plain numbers out."""

from __future__ import annotations

import numpy as np
import pytest

from fieldpost.telegrams.noise import NOISE_FLOOR, estimate_noise
from server.analyses.boundary_layer.classical.layers import (
    FLAG_GOOD,
    FLAG_LOW,
    FLAG_NONE,
    Candidates,
    Layers,
    Sky,
    choose_layers,
)
from server.analyses.boundary_layer.classical.sky import below_cloud, judge_sky

HEIGHT_M = np.arange(500) * 10.0 + 5


def choose(
    *edges: tuple[float, float],
    noise: float = 1e-8,
    cloud_base_m: float = np.nan,
    is_hidden: bool = False,
    droplets_m: float = np.nan,
    level: float = 1e-6,
) -> Layers:
    """The choice among edges (height, strength) of one profile."""

    def column(values: list[float]) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        return np.array([values + [np.nan] * (5 - len(values))], np.float32)

    count = len(edges)
    candidates = Candidates(
        height_m=column([height for height, _ in edges]),
        strength=column([strength for _, strength in edges]),
        noise=column([noise] * count),
        level=column([level] * count),
        spread_m=column([10.0] * count),
    )
    sky = Sky(np.array([cloud_base_m], np.float32), np.array([is_hidden]), np.array([droplets_m], np.float32))
    return choose_layers(candidates, sky, 10.0)


def test_the_stable_layer_wins_below_a_residual_layer() -> None:
    layers = choose((200, 5e-7), (1400, 4e-7))
    assert (layers.height_m[0], layers.flag[0]) == (200, FLAG_GOOD)


def test_a_stronger_edge_above_leaves_the_lower_one_with_low_quality() -> None:
    layers = choose((200, 3e-7), (1400, 5e-7))
    assert (layers.height_m[0], layers.flag[0]) == (200, FLAG_LOW)


def test_a_faint_stratum_below_the_top_is_passed_over() -> None:
    assert choose((400, 1.5e-7), (1400, 5e-7)).height_m[0] == 1400
    assert choose((400, 0.9e-7)).flag[0] == FLAG_NONE


def test_an_edge_that_hardly_stands_out_of_the_noise_is_of_low_quality_and_a_weaker_one_none() -> None:
    assert choose((1000, 7e-7), noise=1e-7).flag[0] == FLAG_GOOD
    assert choose((1000, 5e-7), noise=1e-7).flag[0] == FLAG_LOW
    assert choose((1000, 3e-7), noise=1e-7).flag[0] == FLAG_NONE


def test_without_an_edge_a_low_cloud_tops_the_layer_and_a_high_one_does_not() -> None:
    topped = choose(cloud_base_m=1200)
    assert (topped.height_m[0], topped.flag[0], topped.standard_error_m[0]) == (1200, FLAG_LOW, 120)
    assert np.isnan(topped.significance[0])
    assert np.isnan(choose(cloud_base_m=6000).height_m[0])


def test_an_edge_below_the_cloud_wins_over_the_cloud() -> None:
    assert choose((300, 5e-7), cloud_base_m=1200).height_m[0] == 300


def test_where_the_sky_is_hidden_there_is_no_height() -> None:
    hidden = choose((300, 5e-7), cloud_base_m=1200, is_hidden=True)
    assert hidden.flag[0] == FLAG_NONE
    assert all(np.isnan(values[0]) for values in (hidden.height_m, hidden.standard_error_m, hidden.significance))


def test_an_edge_above_droplets_that_nobody_reported_is_of_low_quality() -> None:
    assert choose((900, 5e-7), droplets_m=850).flag[0] == FLAG_LOW
    assert choose((900, 5e-7), droplets_m=1500).flag[0] == FLAG_GOOD


def test_the_standard_error_grows_with_noise_and_is_never_below_the_gate() -> None:
    errors = [choose((1000, 6e-7), noise=noise).standard_error_m[0] for noise in (1e-10, 1e-8, 5e-8, 1e-7)]
    assert errors == sorted(errors)
    assert errors[0] > 10 / np.sqrt(12)
    assert errors[-1] > 40


def test_profiles_end_below_their_cloud() -> None:
    beta = np.ones((2, 500), np.float32)
    clear = below_cloud(beta, HEIGHT_M, np.array([1000, np.nan], np.float32))
    assert HEIGHT_M[np.isfinite(clear[0])].max() < 1000
    assert np.isfinite(clear[1]).all()


@pytest.mark.parametrize(
    ("low_backscatter", "cloud_base_m", "is_obscured", "is_hidden"),
    [
        (2e-6, np.nan, False, False),
        (2e-6, 1500, False, False),
        (2e-5, np.nan, False, True),  # rain or fog
        (8e-6, np.nan, False, False),  # dense haze
        (8e-6, 1500, False, True),  # drizzle out of the cloud
        (2e-6, 40, False, True),  # the cloud lies on the ground
        (2e-6, np.nan, True, True),  # the instrument says so
    ],
)
def test_rain_and_fog_hide_the_sky(
    low_backscatter: float, cloud_base_m: float, is_obscured: bool, is_hidden: bool
) -> None:
    beta = np.full((1, 500), low_backscatter, np.float32)
    base = np.array([cloud_base_m], np.float32)
    sky = judge_sky(below_cloud(beta, HEIGHT_M, base), HEIGHT_M, base, np.array([is_obscured]))
    assert sky.is_hidden.tolist() == [is_hidden]


def test_a_low_cloud_alone_is_not_taken_for_rain() -> None:
    beta = np.full((1, 500), 1e-6, np.float32)
    beta[0, 27:40] = 2e-4
    base = np.array([270], np.float32)
    assert not judge_sky(below_cloud(beta, HEIGHT_M, base), HEIGHT_M, base, np.array([False])).is_hidden[0]


def test_unreported_droplets_are_found_at_their_lowest_height() -> None:
    beta = np.full((2, 500), 1e-6, np.float32)
    beta[0, 80:90] = 1e-4
    none = np.array([np.nan, np.nan], np.float32)
    sky = judge_sky(beta, HEIGHT_M, none, np.array([False, False]))
    np.testing.assert_array_equal(sky.droplets_m, [805, np.nan])


@pytest.mark.parametrize("neighbour", [0.0, 0.4])
def test_noise_is_that_of_averages_over_many_gates(neighbour: float) -> None:
    random = np.random.default_rng(3)
    height_m = np.arange(1540) * 10.0 + 5
    white = random.normal(0, 1, (200, 1541))
    signal = 4e-14 * (white[:, :-1] + neighbour * white[:, 1:]) / np.sqrt(1 + neighbour**2)
    estimate = np.median(estimate_noise((signal * height_m**2).astype(np.float32), height_m))
    of_averages = signal.reshape(200, 77, 20).mean(axis=2).std() * np.sqrt(20)
    assert estimate == pytest.approx(of_averages, rel=0.06)


def test_missing_gates_do_not_count_as_noise_and_silence_has_the_floor() -> None:
    height_m = np.arange(1000) * 10.0 + 5
    beta = np.zeros((2, 1000), np.float32)
    beta[1, 900:950] = np.nan
    assert estimate_noise(beta, height_m).tolist() == [NOISE_FLOOR, NOISE_FLOOR]
    beta[:] = np.nan
    assert estimate_noise(beta, height_m).tolist() == [NOISE_FLOOR, NOISE_FLOOR]
