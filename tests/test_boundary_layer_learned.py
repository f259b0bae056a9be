"""The learned retrieval as a fold: its memory, and that stretches may be cut anywhere."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from learned_support import HEIGHT_M, START_NANOS, drawn_weights, make_profiles

from fieldpost.errors import BrokenStateError, InvalidRequestError
from fieldpost.telegrams import Profiles
from server.analyses import AnalysisInput, FollowingAnalysis, Stretch
from server.analyses.boundary_layer import LEARNED, course_start, load_trained
from server.analyses.boundary_layer.clock import STEP_S, course_start_unix_s
from server.analyses.boundary_layer.learned.distribution import heights_at
from server.analyses.boundary_layer.learned.features import no_sums, sums_of_each, to_channels
from server.analyses.boundary_layer.learned.grid import CENTRES_M, EDGES_M, GATE_COUNT, WIDTHS_M, reach, to_grid
from server.analyses.boundary_layer.learned.memory import Memory
from server.analyses.boundary_layer.learned.retrieval import LearnedHeight
from server.analyses.boundary_layer.learned.weights import Weights

WEIGHTS = drawn_weights()
MODEL = LearnedHeight(WEIGHTS, LEARNED)
NEGLIGIBLE_M = 0.01
"""Batches of other sizes are summed in another order: the last bit of a float32."""


def _observations(gaps_s):
    instants = START_NANOS + np.cumsum(gaps_s) * 10**9
    return [make_profiles([int(instant)]) for instant in instants]


def _heights(results):
    return np.array([[v.values for v in r.variables if v.unit == "m"] for r in results])[..., 0]


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.sampled_from([5, 15, 15, 15, 60, 290, 301, 2000]), min_size=4, max_size=24),
    st.lists(st.integers(1, 9), min_size=24, max_size=24),
)
def test_wherever_a_course_is_cut_the_heights_are_the_same(gaps_s, lengths):
    observations = _observations(gaps_s)
    ((whole, end_state),) = MODEL.follow_profiles([(b"", observations, 45.0, 10.0)])
    parts, state, first = [], b"", 0
    for length in lengths:
        ((some, state),) = MODEL.follow_profiles([(state, observations[first : first + length], 45.0, 10.0)])
        parts += some
        first += length
    np.testing.assert_allclose(_heights(parts), _heights(whole), atol=NEGLIGIBLE_M)
    now, then = (Memory.from_bytes(each, WEIGHTS.network.config) for each in (state, end_state))
    assert now.step == then.step
    torch.testing.assert_close(now.layers, then.layers, atol=1e-5, rtol=1e-4)


def test_instruments_in_one_batch_do_not_disturb_each_other():
    several = [_observations([15] * n) for n in (1, 30, 7)]
    together = MODEL.follow_profiles([(b"", each, None, None) for each in several])
    for each, (results, _) in zip(several, together, strict=True):
        ((alone, _),) = MODEL.follow_profiles([(b"", each, None, None)])
        np.testing.assert_allclose(_heights(results), _heights(alone), atol=NEGLIGIBLE_M)


def test_what_was_seen_an_hour_ago_still_counts():
    now = make_profiles([START_NANOS + 3600 * 10**9])
    before = [make_profiles([START_NANOS + i * 60 * 10**9], top_m=2000.0) for i in range(59)]
    ((with_history, _),) = MODEL.follow_profiles([(b"", [*before, now], None, None)])
    ((without, _),) = MODEL.follow_profiles([(b"", [now], None, None)])
    assert np.nanmax(abs(_heights(with_history)[-1] - _heights(without)[-1])) > 10 * NEGLIGIBLE_M


def test_what_comes_later_does_not_count():
    observations = _observations([15] * 40)
    ((whole, _),) = MODEL.follow_profiles([(b"", observations, 45.0, 10.0)])
    ((part, _),) = MODEL.follow_profiles([(b"", observations[:20], 45.0, 10.0)])
    np.testing.assert_allclose(_heights(whole[:20]), _heights(part), atol=NEGLIGIBLE_M)


def test_a_profile_that_cannot_be_decoded_is_told_and_passed_over():
    stretch = Stretch(b"", [AnalysisInput(b"nothing", "cl31", START_NANOS)])
    assert isinstance(MODEL, FollowingAnalysis)
    (followed,) = MODEL.follow([stretch])
    assert isinstance(followed.results[0], Exception)
    assert followed.state == b""


def test_an_interval_holds_the_height_and_the_standard_error_is_narrower():
    ((results, _),) = MODEL.follow_profiles([(b"", _observations([15] * 5), None, None)])
    for result in results:
        named = {
            variable.name.removeprefix("atmosphere_boundary_layer_thickness"): variable for variable in result.variables
        }
        height, lower, upper = (named[end].values[0] for end in ("", "_lower", "_upper"))
        if np.isfinite(height):
            assert lower <= height <= upper
            assert 0 < named["_standard_error"].values[0] <= (upper - lower)


def test_a_memory_comes_back_from_its_bytes_and_another_one_is_refused():
    ((_, state),) = MODEL.follow_profiles([(b"", _observations([15] * 45), None, None)])
    assert Memory.from_bytes(state, WEIGHTS.network.config).to_bytes() == state
    with pytest.raises(BrokenStateError):
        Memory.from_bytes(state[:-1], WEIGHTS.network.config)
    with pytest.raises(BrokenStateError):
        Memory.from_bytes(b"\x07" + state[1:], WEIGHTS.network.config)


def test_weights_come_back_from_their_file_and_anything_else_is_refused():
    again = Weights.from_bytes(WEIGHTS.to_bytes())
    assert again.calibration == WEIGHTS.calibration
    for name, value in WEIGHTS.network.state_dict().items():
        assert torch.equal(again.network.state_dict()[name], value)
    content = WEIGHTS.to_bytes()
    for broken in (b"", b"nothing of the kind", content[:-10], content[:200]):
        with pytest.raises(InvalidRequestError):
            load_trained(1001, broken)


def test_a_course_lasts_a_day_from_about_solar_noon_and_steps_fit_into_it():
    for longitude_deg in (-170.0, -33.3, None, 26.03, 179.0):
        for unix_s in (0.0, 1.7e9, 1.7e9 + 12_345.6):
            start = course_start_unix_s(unix_s, longitude_deg)
            assert start <= unix_s < start + 86400
            assert start % STEP_S == 0
            assert course_start_unix_s(start, longitude_deg) == start
            assert course_start_unix_s(start - 1, longitude_deg) == start - 86400
            solar_hour = (start / 3600 + (longitude_deg or 0) / 15) % 24
            assert abs(solar_hour - 12) < 0.1
    assert course_start(1, 0, None) is None
    assert course_start(1001, 0, None) == -43_200 * 10**9


def test_the_grid_keeps_the_mean_whatever_the_gates():
    for gate_m, count in ((4.8, 3276), (10.0, 770), (15.0, 1024), (30.0, 256)):
        height_m = (np.arange(count) + 0.5) * gate_m
        beta = (1e-6 * (2 + np.sin(height_m / 300)))[None].astype(np.float32)
        on_grid = to_grid(beta, height_m)
        fine_m = np.linspace(0, EDGES_M[-1], 200_001)
        true = 1e-6 * (2 + np.sin(fine_m / 300))
        gate = np.clip(np.searchsorted(EDGES_M, fine_m, side="right") - 1, 0, GATE_COUNT - 1)
        expected = np.bincount(gate, true, GATE_COUNT) / np.bincount(gate, minlength=GATE_COUNT)
        np.testing.assert_allclose(on_grid[0], expected, rtol=0.03)
        assert reach(height_m) == GATE_COUNT


def test_a_missing_gate_does_not_pull_the_mean_down():
    beta = np.full((1, len(HEIGHT_M)), 1e-6, np.float32)
    beta[0, 100] = np.nan
    np.testing.assert_allclose(to_grid(beta, HEIGHT_M)[0], 1e-6, rtol=1e-5)


def test_a_grown_sum_reads_as_the_mean_and_an_empty_one_as_nothing():
    profiles = make_profiles([START_NANOS + i * 10**9 for i in range(4)])
    alone = sums_of_each(
        to_grid(profiles.beta, profiles.height_m), np.full(4, 1e-27), np.full(4, np.nan, np.float32), np.zeros(4, bool)
    )
    total = type(alone)(*(values.sum(dim=0) for values in alone))
    everywhere = torch.ones(GATE_COUNT, dtype=torch.float64)
    mean = alone.total.mean(dim=0)
    torch.testing.assert_close(
        to_channels(total, everywhere)[0].double(), torch.asinh(mean / 1e-7) / 4, atol=1e-6, rtol=1e-5
    )
    assert not to_channels(no_sums(), everywhere).any()


def test_quantiles_of_an_even_distribution_lie_where_they_must():
    logits = torch.log(torch.from_numpy(WIDTHS_M))[None]
    found = heights_at(logits, (0.05, 0.5, 0.95))[0]
    np.testing.assert_allclose(found, EDGES_M[-1] * np.array([0.05, 0.5, 0.95]), rtol=1e-6)
    sharp = torch.full((1, GATE_COUNT), -50.0)
    sharp[0, 40] = 0
    assert heights_at(sharp, (0.5,))[0, 0] == pytest.approx(CENTRES_M[40], abs=0.1)


def test_an_instrument_in_profiles_of_a_file_is_followed_through_the_file():
    instants = [START_NANOS + i * 15 * 10**9 for i in range(60)]
    whole: Profiles = make_profiles(instants)
    ((file, _),) = MODEL.follow_profiles([(b"", [whole], None, None)])
    ((single, _),) = MODEL.follow_profiles([(b"", [make_profiles([each]) for each in instants], None, None)])
    assert len(file) == 1
    np.testing.assert_allclose(file[0].variables[0].values, _heights(single)[:, 0], atol=NEGLIGIBLE_M)
