"""The time-height picture: what it is made of, and that it can be drawn of whatever there is."""

from __future__ import annotations

from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from fieldpost.errors import InvalidRequestError
from fieldpost.simulation import SimulatedCl51
from fieldpost.telegrams.profiles import Profiles
from server.analyses import AnalysisInput, AnalysisResult, load_analysis
from server.analyses.boundary_layer import draw
from server.analyses.boundary_layer.curtain import average_in_time, break_at_gaps, make_curtain

SECOND = 1_000_000_000
DAY = 20_100 * 86400


def profile(
    unix_s: float, value: float, gate_m: float = 10.0, gate_count: int = 500, base_m: float = np.nan
) -> Profiles:
    return Profiles(
        unix_nanos=np.array([int(unix_s * SECOND)]),
        height_m=(np.arange(gate_count) + 0.5) * gate_m,
        beta=np.full((1, gate_count), value, np.float32),
        cloud_base_m=np.array([[base_m, np.nan, np.nan]], np.float32),
        is_obscured=np.array([False]),
    )


def test_a_gap_stays_a_gap() -> None:
    times = [0, 15, 30, 600, 615, 630]
    curtain = make_curtain([profile(t, 1e-6) for t in times], 4500, 900)
    is_empty = np.isnan(curtain.beta).all(axis=1)
    assert is_empty.tolist() == [False, False, False, True, False, False, False]
    starts, ends = curtain.time_edges_nanos[:-1][is_empty] / SECOND, curtain.time_edges_nanos[1:][is_empty] / SECOND
    assert (starts[0], ends[0]) == (37.5, 592.5)


def test_more_profiles_than_pixels_are_averaged_and_missing_values_do_not_count() -> None:
    profiles = [profile(15 * index, 1e-6 if index % 2 else 3e-6) for index in range(1000)]
    profiles[4].beta[:] = np.nan
    curtain = make_curtain(profiles, 4500, 100)
    assert len(curtain.column_nanos) == 100
    assert curtain.beta[10:].mean() == pytest.approx(2e-6, rel=1e-3)
    assert curtain.beta[0, 0] == pytest.approx((5 * 1e-6 + 4 * 3e-6) / 9, rel=1e-3)


def test_order_does_not_matter_and_grids_may_differ() -> None:
    coarse, fine = profile(0, 1e-6, gate_m=30, gate_count=100), profile(15, 2e-6)
    curtain = make_curtain([fine, coarse], 4500, 900)
    assert curtain.beta.shape == (2, 450)
    assert curtain.beta[0, :290] == pytest.approx(1e-6)
    assert np.isnan(curtain.beta[0, 310:]).all()
    assert curtain.beta[1] == pytest.approx(2e-6)


def test_the_lowest_cloud_base_of_a_column_is_kept() -> None:
    profiles = [profile(index, 1e-6, base_m=base) for index, base in enumerate([np.nan, 900, 700, np.nan] * 50)]
    curtain = make_curtain(profiles, 4500, 50)
    assert np.nanmax(curtain.cloud_base_m) == 700


def test_one_profile_alone_is_drawn_as_wide_as_one_profile() -> None:
    curtain = make_curtain([profile(1000, 1e-6)], 4500, 900)
    assert np.diff(curtain.time_edges_nanos).tolist() == [14 * SECOND + 999_999_998 + 2]


def test_values_belong_to_the_nearest_column_and_empty_columns_are_left_out() -> None:
    columns = np.array([0, 100, 200, 300])
    nanos, medians = average_in_time(np.array([1, 2, 3, 201, 290]), np.array([5, 6, 9, np.nan, 7], np.float32), columns)
    assert nanos.tolist() == [0, 300]
    assert medians.tolist() == [6, 7]


def test_a_line_is_broken_where_there_is_a_gap() -> None:
    nanos, values = break_at_gaps(np.array([0, 10, 20, 900, 910]), np.arange(5, dtype=np.float32))
    assert nanos.tolist() == [0, 10, 20, 899, 900, 910]
    assert np.isnan(values[3])
    assert values[[0, 1, 2, 4, 5]].tolist() == [0, 1, 2, 3, 4]


def simulated(times: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> list[AnalysisInput]:
    instrument = SimulatedCl51(4)
    return [AnalysisInput(instrument.telegram(t), "cl51", int(t * 1e9)) for t in times]


@pytest.mark.parametrize(("span_s", "step_s"), [(120, 15), (86_400, 600), (4 * 86_400, 3600)])
@pytest.mark.parametrize("has_truth", [False, True])
def test_minutes_days_and_weeks_are_drawn(tmp_path: Path, span_s: int, step_s: int, has_truth: bool) -> None:
    times = DAY + np.arange(0, span_s, step_s, dtype=np.float64)
    inputs = simulated(times)
    answers = load_analysis("boundary-layer-height", 1).predict(inputs)
    results = [answer if isinstance(answer, AnalysisResult) else None for answer in answers]
    heights = SimulatedCl51(4).atmosphere.truth(times).mixing_height_m.astype(np.float32)
    truth = ((times * 1e9).astype(np.int64), heights) if has_truth else None
    draw(tmp_path / "day.png", "Hohenfeld, cl51", inputs, results, truth)
    picture = matplotlib.image.imread(tmp_path / "day.png")
    assert picture.shape[0] > 400 and picture.shape[1] > 900
    # all of viridis' dark and light ends, and the red of the truth if there is one
    is_red = (picture[..., 0] > 0.95) & (picture[..., 1] < 0.3) & (picture[..., 2] < 0.3)
    assert is_red.any() == has_truth


def test_results_may_be_missing_and_what_cannot_be_decoded_is_a_gap(tmp_path: Path) -> None:
    inputs = simulated(DAY + np.arange(0, 150, 15.0))
    inputs[3] = AnalysisInput(b"torn", "cl51", inputs[3].measure_unix_nanos)
    draw(tmp_path / "a.png", "a", inputs, [None] * len(inputs))
    assert (tmp_path / "a.png").stat().st_size > 10_000


def test_nothing_at_all_cannot_be_drawn(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="can be decoded"):
        draw(tmp_path / "a.png", "a", [AnalysisInput(b"torn", "cl51", 0)], [None])
