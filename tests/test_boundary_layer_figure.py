"""The time-height picture: what it is made of, and that it can be drawn of whatever there is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.colors
import matplotlib.image
import numpy as np
import pytest

from fieldpost.errors import InvalidRequestError
from fieldpost.simulation import SKIES, SimulatedCl51
from fieldpost.telegrams.profiles import Profiles
from server.analyses import AnalysisInput, AnalysisResult, AnalysisVariable, load_analysis
from server.analyses.boundary_layer import draw
from server.analyses.boundary_layer.curtain import break_at_gaps, make_curtain, medians_in_columns
from server.analyses.boundary_layer.figure_marks import OTHER_COLOURS, SKY_COLOURS, TRUTH_COLOUR
from server.analyses.boundary_layer.samples import collect

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


def test_values_belong_to_the_nearest_column_and_empty_columns_have_none() -> None:
    columns = np.array([0, 100, 200, 300])
    medians = medians_in_columns(np.array([1, 2, 3, 201, 290]), np.array([5, 6, 9, np.nan, 7], np.float32), columns)
    assert medians.tolist() == pytest.approx([6, np.nan, np.nan, 7], nan_ok=True)


def test_a_line_is_broken_where_there_is_a_gap() -> None:
    nanos, values = break_at_gaps(np.array([0, 10, 20, 900, 910]), np.arange(5, dtype=np.float32))
    assert nanos.tolist() == [0, 10, 20, 899, 900, 910]
    assert np.isnan(values[3])
    assert values[[0, 1, 2, 4, 5]].tolist() == [0, 1, 2, 3, 4]


def simulated(times: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> list[AnalysisInput]:
    instrument = SimulatedCl51(4)
    return [AnalysisInput(instrument.telegram(t), "cl51", int(t * 1e9)) for t in times]


def count_pixels(picture: np.ndarray[tuple[int, ...], np.dtype[np.float32]], colour: str) -> int:
    return int((np.abs(picture[..., :3] - matplotlib.colors.to_rgb(colour)).max(axis=-1) < 0.02).sum())


@pytest.mark.parametrize(
    ("span_s", "step_s", "has_truth"),
    [(120, 15, True), (86_400, 600, False), (86_400, 600, True), (4 * 86_400, 3600, True)],
)
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
    assert (count_pixels(picture, TRUTH_COLOUR) > 0) == has_truth


def test_results_may_be_missing_and_what_cannot_be_decoded_is_a_gap(tmp_path: Path) -> None:
    inputs = simulated(DAY + np.arange(0, 150, 15.0))
    inputs[3] = AnalysisInput(b"torn", "cl51", inputs[3].measure_unix_nanos)
    draw(tmp_path / "a.png", "a", inputs, [None] * len(inputs))
    assert (tmp_path / "a.png").stat().st_size > 10_000


def test_nothing_at_all_cannot_be_drawn(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="can be decoded"):
        draw(tmp_path / "a.png", "a", [AnalysisInput(b"torn", "cl51", 0)], [None])


def told(unix_s: float, height_m: float, sky: int = 0, meanings: tuple[str, ...] = SKIES) -> AnalysisResult:
    """A result of a version that tells all there is to tell."""
    thickness = "atmosphere_boundary_layer_thickness"
    values = {
        thickness: height_m,
        f"{thickness}_lower": height_m - 100,
        f"{thickness}_upper": height_m + 100,
        "residual_layer_height": height_m + 600,
        "cloud_base_height": np.nan,
        "quality_flag": 2,
    }
    variables = [AnalysisVariable(name, "m", np.array([value], np.float32)) for name, value in values.items()]
    variables.append(AnalysisVariable("sky_condition", "1", np.array([sky], np.float32), meanings))
    return AnalysisResult(np.array([int(unix_s * SECOND)]), tuple(variables))


def draw_told(path: Path, skies: list[int], **arguments: Any) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """A day with a layer at 500 m and these skies one after the other; the picture as (rows, columns, colours)."""
    times = DAY + np.arange(0, 86_400, 86_400 / len(skies))
    results = [told(t, np.nan if sky >= 2 else 500, sky) for t, sky in zip(times, skies, strict=True)]
    draw(path, "Hohenfeld, cl51", simulated(times), results, **arguments)
    return matplotlib.image.imread(path)


def test_the_sky_condition_is_a_strip_as_long_as_it_lasted(tmp_path: Path) -> None:
    picture = draw_told(tmp_path / "a.png", [0] * 24 + [2] * 12 + [3] * 6 + [0] * 6)
    swatch = count_pixels(draw_told(tmp_path / "b.png", [0] * 48), SKY_COLOURS["rain"])
    rain, fog = (count_pixels(picture, SKY_COLOURS[name]) - swatch for name in ("rain", "fog"))
    assert rain == pytest.approx(2 * fog, rel=0.1)
    assert fog > 500


def test_a_sky_is_known_by_its_name_and_not_by_its_number() -> None:
    samples = collect(
        [told(DAY, 500, 1, ("fog", "rain", "clear")), None, told(DAY - 60, 500, 2, ("fog", "rain", "clear"))]
    )
    assert samples.unix_nanos.tolist() == [(DAY - 60) * SECOND, DAY * SECOND]
    assert samples.is_class("sky_condition", "rain").tolist() == [False, True]
    assert not samples.is_class("sky_condition", "cloud").any()


def test_a_version_that_tells_no_sky_has_no_strip_and_one_that_tells_no_interval_has_points(tmp_path: Path) -> None:
    times = DAY + np.arange(0, 86_400, 600.0)
    inputs = simulated(times)
    plain = [told(t, 500) for t in times]
    plain = [each._replace(variables=each.variables[:1] + each.variables[5:6]) for each in plain]
    draw(tmp_path / "a.png", "a", inputs, plain)
    picture = matplotlib.image.imread(tmp_path / "a.png")
    assert count_pixels(picture, SKY_COLOURS["clear"]) == 0
    whole = draw_told(tmp_path / "b.png", [0] * 144)
    assert count_pixels(whole, SKY_COLOURS["clear"]) > 5000


def test_a_single_height_is_seen_with_its_interval(tmp_path: Path) -> None:
    inputs = simulated(DAY + np.array([0.0]))
    draw(tmp_path / "none.png", "a", inputs, [None])
    draw(tmp_path / "one.png", "a", inputs, [told(DAY, 500)])
    none, one = (
        count_pixels(matplotlib.image.imread(tmp_path / f"{name}.png")[100:-130, 100:900], "white")
        for name in ("none", "one")
    )
    assert one > none + 20


def test_other_versions_are_drawn_beside_and_each_has_a_colour_of_its_own(tmp_path: Path) -> None:
    times = DAY + np.arange(0, 86_400, 1800.0)
    others = {f"version {n}": [told(t, 900 + 300 * n) for t in times] for n in range(2)}
    alone, beside = (draw_told(tmp_path / f"{len(each)}.png", [0] * 48, others=each) for each in ({}, others))
    for colour in OTHER_COLOURS[:2]:
        assert count_pixels(beside, colour) > count_pixels(alone, colour) + 48


def test_sunrise_and_sunset_are_marked_where_the_place_is_known(tmp_path: Path) -> None:
    times = DAY + np.arange(0, 86_400, 1800.0)
    inputs = simulated(times)
    draw(tmp_path / "nowhere.png", "a", inputs, [None] * 48)
    placed = [each._replace(latitude_deg=52.2, longitude_deg=14.1) for each in inputs]
    draw(tmp_path / "somewhere.png", "a", placed, [None] * 48)
    nowhere, somewhere = (matplotlib.image.imread(tmp_path / f"{name}.png") for name in ("nowhere", "somewhere"))
    changed = np.flatnonzero((nowhere != somewhere).any(axis=(0, 2)))  # columns of pixels
    begins = changed[np.diff(changed, prepend=-1000) > 100]
    day_px = nowhere.shape[1] * 0.83  # about the width of the axes
    assert len(begins) == 2, "one line each, with its name beside it"
    assert (begins[1] - begins[0]) / day_px == pytest.approx(8.2 / 24, rel=0.1), "the sun is up so long in January"
