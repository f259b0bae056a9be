"""Version 3: the layer that fluctuates is found, memory is a fold, and quiet nights fall back on the gradient."""

from __future__ import annotations

import numpy as np
import pytest
from boundary_layer_support import EQUINOX_NOON_UNIX_S, SITE, heights, layered

from fieldpost.errors import BrokenStateError
from fieldpost.simulation import SimulatedCl51
from fieldpost.telegrams import Profiles
from server.analyses import AnalysisInput, AnalysisResult, FollowingAnalysis, Stretch
from server.analyses.boundary_layer.classical.gradient import GradientHeight
from server.analyses.boundary_layer.classical.shortest_path import ShortestPathHeight
from server.analyses.boundary_layer.classical.variance import VarianceHeight


def flapping(minutes: int, top_m: float, other_m: float) -> list[Profiles]:
    """A steady step low down, and a fainter one above that thermals move by 5 % from minute to minute."""
    random = np.random.default_rng(1)
    tops_m = top_m * (1 + 0.05 * random.standard_normal(minutes))
    return [
        layered(EQUINOX_NOON_UNIX_S + 60.0 * n, [other_m, top], levels=(1.6e-6, 1e-6))
        for n, top in enumerate(tops_m.tolist())
    ]


def test_the_top_that_fluctuates_wins_over_a_steady_one_below() -> None:
    profiles = flapping(40, top_m=1300.0, other_m=500.0)
    [followed] = VarianceHeight().follow_profiles([(b"", profiles, *SITE)])
    found = heights(followed.results)
    np.testing.assert_allclose(found[-10:], 1300, atol=100)
    steady = heights(GradientHeight().predict_profiles(profiles, *SITE))
    assert abs(np.median(steady) - 500) < 30  # what a method without memory says


def test_where_nothing_fluctuates_the_height_is_that_of_the_gradient() -> None:
    still = [layered(EQUINOX_NOON_UNIX_S + 60.0 * n, [700.0]) for n in range(40)]
    [followed] = VarianceHeight().follow_profiles([(b"", still, *SITE)])
    np.testing.assert_allclose(heights(followed.results), 700, atol=25)


@pytest.mark.parametrize("version", [VarianceHeight, ShortestPathHeight])
def test_however_a_course_is_cut_the_results_are_the_same(version: type[VarianceHeight | ShortestPathHeight]) -> None:
    profiles = [p for n, p in enumerate(flapping(60, 1200.0, 400.0)) if n not in range(20, 28)]
    analysis = version()
    [whole] = analysis.follow_profiles([(b"", profiles, *SITE)])
    found, state = [], b""
    for start, stop in ((0, 1), (1, 2), (2, 17), (17, 52)):
        [part] = analysis.follow_profiles([(state, profiles[start:stop], *SITE)])
        found += part.results
        state = part.state
    np.testing.assert_array_equal(heights(found), heights(whole.results))
    assert state == whole.state
    assert len(state) < 64 * 1024


@pytest.mark.parametrize("version", [VarianceHeight, ShortestPathHeight])
def test_telegrams_of_several_instruments_are_followed_each_by_itself(
    version: type[VarianceHeight | ShortestPathHeight],
) -> None:
    analysis = version()
    assert isinstance(analysis, FollowingAnalysis)
    stretches = []
    for seed in (1, 2):
        instrument = SimulatedCl51(seed)
        times = [EQUINOX_NOON_UNIX_S + 15.0 * n for n in range(12)]
        stretches.append(
            Stretch(b"", [AnalysisInput(instrument.telegram(t), "cl51", int(t * 1e9), None, *SITE) for t in times])
        )
    broken = stretches[0].observations[3]._replace(payload=b"x")
    with_broken = Stretch(b"", [*stretches[0].observations[:3], broken, *stretches[0].observations[3:]])
    together = analysis.follow([with_broken, stretches[1], Stretch(b"", [])])
    assert isinstance(together[0].results[3], Exception)
    for followed, stretch in zip(together, stretches, strict=False):
        [alone] = analysis.follow([stretch])
        results = [each for each in followed.results if isinstance(each, AnalysisResult)]
        np.testing.assert_array_equal(heights(results), heights(alone.results))
        assert followed.state == alone.state
    assert together[2] == ([], b"")
    [first] = analysis.predict(stretches[0].observations[:1])
    np.testing.assert_array_equal(heights([first]), heights(together[0].results[:1]))


@pytest.mark.parametrize("version", [VarianceHeight, ShortestPathHeight])
def test_a_state_of_another_version_is_refused(version: type[VarianceHeight | ShortestPathHeight]) -> None:
    with pytest.raises(BrokenStateError, match="expected a state of"):
        version().follow_profiles([(b"something", [layered(EQUINOX_NOON_UNIX_S, [700.0])], *SITE)])
