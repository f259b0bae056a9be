"""10-minute and hourly mixing heights: the network's rules, the reasons for a gap, and the files that others open."""

from __future__ import annotations

import json
import subprocess
import sysconfig
from collections.abc import Iterable
from datetime import date
from pathlib import Path

import netCDF4
import numpy as np
import pytest
import xarray
from hypothesis import given
from hypothesis import strategies as st

from fieldpost.errors import BrokenStateError, TryAgainError
from fieldpost.v1.prediction_pb2 import Prediction
from server.analyses.boundary_layer.products.cells import IN_ANY_SKY, Product, average, find_cadence_s
from server.analyses.boundary_layer.products.command import json_lines, summary_lines, write_aside
from server.analyses.boundary_layer.products.figure import draw_products
from server.analyses.boundary_layer.products.netcdf_file import describe_rules, write_product, write_products
from server.analyses.boundary_layer.products.retrievals import CLOUD_BASE, MIXING_HEIGHT, RESIDUAL_LAYER, Sky, gather
from server.analyses.boundary_layer.products.rules import HOUR_S, TEN_MINUTES_S, Reason, Rules
from server.cf import Site

DAY = date(2026, 5, 1)
FIRST_S = (DAY - date(1970, 1, 1)).days * 86_400
SITE = Site("lindenberg", "cl51", "cl51", 52.21, 14.12, 103.0)
SKIES = ("clear", "cloud", "rain", "fog")
NAN = float("nan")


def predict(second: float, height_m: float = 1000.0, *, sky: str | None = None, **more: float) -> Prediction:
    """What a version says of one profile, so many seconds into the day; `more` are other variables."""
    message = Prediction(sample_unix_nanos=[round((FIRST_S + second) * 1e9)])
    values = {MIXING_HEIGHT: height_m, f"{MIXING_HEIGHT}_standard_error": 50.0, "quality_flag": 2.0} | more
    for name, value in values.items():
        message.variables.add(name=name, unit="m", values=[value])
    if sky is not None:
        message.variables.add(name="sky_condition", unit="1", values=[SKIES.index(sky)], flag_meanings=SKIES)
    return message


def every_minute(start_s: int = 0, end_s: int = 86_400) -> range:
    return range(start_s, end_s, 60)


def make(
    predictions: Iterable[Prediction], cell_s: int = TEN_MINUTES_S, day_count: int = 1, **rules: object
) -> Product:
    return average(gather(predictions), FIRST_S * 10**9, day_count, cell_s, Rules(**rules))


def reasons(product: Product, cell: int, name: str = MIXING_HEIGHT) -> Reason:
    return Reason(int(product.heights[name].reasons[cell]))


def test_ten_minutes_have_their_mean_median_spread_and_count() -> None:
    heights_m = np.random.default_rng(1).normal(1200, 80, 1440)
    product = make(predict(second, heights_m[k]) for k, second in enumerate(every_minute()))
    cells = product.heights[MIXING_HEIGHT]
    assert len(cells.mean_m) == 144
    np.testing.assert_allclose(cells.mean_m[7], heights_m[70:80].mean())
    np.testing.assert_allclose(cells.median_m[7], np.median(heights_m[70:80]))
    np.testing.assert_allclose(cells.standard_deviation_m[7], heights_m[70:80].std(ddof=1))
    assert cells.count[7] == product.expected_count[7] == 10
    assert product.start_unix_nanos[7] == (FIRST_S + 4200) * 10**9
    assert not cells.reasons.any()


@pytest.mark.parametrize(("kept_count", "has_value"), [(4, False), (5, True)])
def test_half_of_the_expected_profiles_make_ten_minutes_valid(kept_count: int, has_value: bool) -> None:
    product = make(predict(second) for second in every_minute() if not kept_count * 60 <= second < 600)
    assert np.isfinite(product.heights[MIXING_HEIGHT].mean_m[0]) == has_value
    assert reasons(product, 0) == (0 if has_value else Reason.INCOMPLETE | Reason.MISSING)
    assert product.heights[MIXING_HEIGHT].count[0] == kept_count


@pytest.mark.parametrize(("half_range_m", "has_value"), [(185.0, True), (195.0, False)])
def test_ten_minutes_that_scatter_by_more_than_200_m_have_no_value(half_range_m: float, has_value: bool) -> None:
    product = make(predict(second, 1000 + half_range_m * (-1) ** (second // 60)) for second in every_minute())
    assert np.isfinite(product.heights[MIXING_HEIGHT].mean_m[3]) == has_value
    assert reasons(product, 3) == (0 if has_value else Reason.SPREAD)
    assert product.heights[MIXING_HEIGHT + IN_ANY_SKY].mean_m[3] == pytest.approx(1000)


@pytest.mark.parametrize(("sky", "reason"), [("rain", Reason.RAIN), ("fog", Reason.FOG), ("cloud", Reason.CLOUD)])
def test_what_hides_the_sky_is_named_as_the_reason(sky: str, reason: Reason) -> None:
    skies = ("clear" if second < 600 else sky for second in every_minute())
    product = make(predict(second, sky=each) for second, each in zip(every_minute(), skies, strict=True))
    assert reasons(product, 0) == 0
    assert reasons(product, 1) == Reason.INCOMPLETE | reason


def test_a_cloud_screens_where_a_version_tells_its_base_and_no_sky() -> None:
    bases_m = {0: NAN, 1: 1500.0, 2: 9000.0}
    product = make(predict(second, **{CLOUD_BASE: bases_m.get(second // 600, NAN)}) for second in every_minute())
    assert [int(reasons(product, cell)) for cell in range(3)] == [0, Reason.INCOMPLETE | Reason.CLOUD, 0]
    assert np.isnan(product.heights[CLOUD_BASE].mean_m[0])
    assert product.heights[CLOUD_BASE].mean_m[1] == 1500.0


def test_cloud_topped_layers_are_kept_where_asked_and_unscreened_always() -> None:
    cloudy = [predict(second, 800.0, sky="cloud", **{CLOUD_BASE: 900.0}) for second in every_minute()]
    screened, kept = make(cloudy), make(cloudy, is_cloud_screened=False)
    assert np.isnan(screened.heights[MIXING_HEIGHT].mean_m).all()
    assert (kept.heights[MIXING_HEIGHT].mean_m == 800.0).all()
    assert (screened.heights[MIXING_HEIGHT + IN_ANY_SKY].mean_m == 800.0).all()
    assert "or cloud" in describe_rules(screened) and "or cloud" not in describe_rules(kept)


def test_rain_is_not_kept_with_the_clouds() -> None:
    product = make((predict(second, sky="rain") for second in every_minute()), is_cloud_screened=False)
    assert np.isnan(product.heights[MIXING_HEIGHT].mean_m).all()


def test_an_hour_is_the_mean_of_its_valid_ten_minutes_however_many_profiles_they_have() -> None:
    first_full = [predict(second, 600.0) for second in every_minute(0, 600)]
    then_half = [predict(second, 1200.0) for second in every_minute(600, 3600) if second % 600 < 300]
    product = make([*first_full, *then_half], HOUR_S)
    cells = product.heights[MIXING_HEIGHT]
    assert cells.mean_m[0] == pytest.approx((600 + 5 * 1200) / 6)
    assert (cells.count[0], product.expected_count[0]) == (10 + 5 * 5, 60)


@pytest.mark.parametrize(("valid_count", "has_value"), [(2, False), (3, True)])
def test_an_hour_needs_half_of_its_ten_minutes(valid_count: int, has_value: bool) -> None:
    skies = ("clear" if second % 3600 < valid_count * 600 else "rain" for second in every_minute())
    product = make((predict(second, sky=each) for second, each in zip(every_minute(), skies, strict=True)), HOUR_S)
    assert np.isfinite(product.heights[MIXING_HEIGHT].mean_m).all() == has_value
    assert reasons(product, 5) == (0 if has_value else Reason.INCOMPLETE | Reason.RAIN)


def test_a_layer_that_grows_by_500_m_within_an_hour_keeps_its_hourly_mean() -> None:
    product = make((predict(second, 300 + second * 500 / 3600) for second in every_minute(0, 7200)), HOUR_S)
    assert product.heights[MIXING_HEIGHT].mean_m[0] == pytest.approx(550, abs=5)


def test_an_average_takes_little_away_from_errors_that_last_longer_than_its_cell() -> None:
    product = make(predict(second) for second in every_minute())
    hourly = make((predict(second) for second in every_minute()), HOUR_S)
    ten_minutes_m, hour_m = (each.heights[MIXING_HEIGHT].standard_error_m[8] for each in (product, hourly))
    assert 45 < ten_minutes_m < 50  # and not 50 / sqrt(10)
    assert 35 < hour_m < ten_minutes_m
    brief = make((predict(second) for second in every_minute()), error_correlation_s=1e-3)
    assert brief.heights[MIXING_HEIGHT].standard_error_m[8] == pytest.approx(50 / np.sqrt(10))


def test_the_standard_error_is_that_of_means_of_correlated_errors() -> None:
    seconds = np.arange(0, 600, 60.0)
    covariance = 50.0**2 * np.exp(-np.abs(seconds[:, None] - seconds) / 1800)
    drawn = np.random.default_rng(7).multivariate_normal(np.zeros(10), covariance, 20_000).mean(axis=1)
    product = make(predict(second) for second in every_minute(0, 1200))
    assert product.heights[MIXING_HEIGHT].standard_error_m[0] == pytest.approx(drawn.std(), rel=0.02)


def test_an_interval_stands_in_for_a_standard_error() -> None:
    ends = {f"{MIXING_HEIGHT}_lower": 900.0, f"{MIXING_HEIGHT}_upper": 1100.0, f"{MIXING_HEIGHT}_standard_error": NAN}
    found = gather([predict(0, **ends)])
    assert found.standard_error_m[0] == pytest.approx(200 / 3.2898, rel=1e-3)


def test_what_a_version_lacks_is_absent_from_its_products(tmp_path: Path) -> None:
    write_product(tmp_path / "a.nc", make(predict(second) for second in every_minute()), SITE, 2, "made")
    with netCDF4.Dataset(tmp_path / "a.nc") as file:
        assert not [name for name in file.variables if name.startswith((RESIDUAL_LAYER, CLOUD_BASE))]
        assert MIXING_HEIGHT in file.variables


def test_a_residual_layer_has_its_own_means_and_gaps() -> None:
    product = make(predict(second, **{RESIDUAL_LAYER: 1800.0 if second < 600 else NAN}) for second in every_minute())
    assert product.heights[RESIDUAL_LAYER].mean_m[0] == 1800.0
    assert reasons(product, 1, RESIDUAL_LAYER) == Reason.INCOMPLETE | Reason.NO_LAYER


def test_low_quality_counts_unless_it_is_ruled_out() -> None:
    low = [predict(second, quality_flag=1.0) for second in every_minute()]
    assert np.isfinite(make(low).heights[MIXING_HEIGHT].mean_m).all()
    assert reasons(make(low, quality_min=2), 0) == Reason.INCOMPLETE | Reason.LOW_QUALITY


def test_a_provisional_profile_makes_its_cell_provisional() -> None:
    said = [predict(second) for second in every_minute()]
    said[41].is_provisional = True
    assert np.flatnonzero(make(said).is_provisional).tolist() == [4]


@given(
    cadence_s=st.sampled_from([2.0, 15.0, 30.0, 60.0, 300.0]),
    lost_share=st.floats(0, 0.6),
    jitter_share=st.floats(0, 0.02),
    seed=st.integers(0, 1000),
)
def test_the_cadence_is_found_through_gaps_and_jitter(
    cadence_s: float, lost_share: float, jitter_share: float, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    seconds = np.arange(0, 43_200, cadence_s)
    seconds = seconds + generator.uniform(-1, 1, len(seconds)) * jitter_share * cadence_s
    kept = seconds[generator.random(len(seconds)) > lost_share]
    assert find_cadence_s((kept * 1e9).astype(np.int64)) == pytest.approx(cadence_s, rel=0.06)


def test_each_day_has_its_own_cadence_and_a_given_one_wins() -> None:
    seconds = [*range(0, 86_400, 300), *every_minute(86_400, 2 * 86_400)]
    said = [predict(second) for second in seconds]
    product = make(said, day_count=2)
    assert product.expected_count[[0, 143, 144, 287]].tolist() == [2, 2, 10, 10]
    assert np.isfinite(product.heights[MIXING_HEIGHT].mean_m).all()
    assert reasons(make(said, day_count=2, cadence_s=60.0), 0) == Reason.INCOMPLETE | Reason.MISSING


def test_an_instrument_slower_than_a_cell_fills_its_hours() -> None:
    product = make((predict(second) for second in range(0, 86_400, 1800)), HOUR_S)
    assert np.isfinite(product.heights[MIXING_HEIGHT].mean_m).all()
    assert (product.expected_count == 2).all()


@pytest.mark.parametrize("cell_s", [TEN_MINUTES_S, HOUR_S])
def test_one_profile_alone_tells_no_cadence_and_makes_no_mean(cell_s: int) -> None:
    product = make([predict(30)], cell_s)
    assert np.isnan(product.heights[MIXING_HEIGHT].mean_m).all()
    assert reasons(product, 0) == Reason.INCOMPLETE | Reason.MISSING
    assert product.heights[MIXING_HEIGHT + IN_ANY_SKY].mean_m[0] == 1000.0


def test_what_lies_outside_the_day_and_what_comes_twice_counts_once_or_not_at_all() -> None:
    said = [predict(second, 1000.0) for second in every_minute(-600, 86_400 + 600)]
    again = [predict(second, 5000.0) for second in every_minute(0, 600)]
    product = make([*said, *again])
    assert product.heights[MIXING_HEIGHT].count.tolist() == [10] * 144
    assert product.heights[MIXING_HEIGHT].mean_m[0] == 1000.0


def test_a_failure_is_a_profile_that_is_missing() -> None:
    said = [predict(second) for second in every_minute(600)]
    product = make([Prediction(failure="cannot be decoded"), *said])
    assert reasons(product, 0) == Reason.INCOMPLETE | Reason.MISSING


@given(
    st.lists(
        st.tuples(
            st.integers(0, 7199),
            st.sampled_from([NAN, 100.0, 900.0, 1500.0]),
            st.sampled_from([*SKIES, None]),
            st.integers(0, 2),
        ),
        max_size=60,
    ),
    st.sampled_from([TEN_MINUTES_S, HOUR_S]),
)
def test_a_cell_has_either_a_value_or_a_reason(drawn: list[tuple[int, float, str | None, int]], cell_s: int) -> None:
    product = make((predict(second, height, sky=sky, quality_flag=flag) for second, height, sky, flag in drawn), cell_s)
    for cells in product.heights.values():
        assert (np.isfinite(cells.mean_m) == (cells.reasons == 0)).all()
        assert (np.isfinite(cells.median_m) == (cells.reasons == 0)).all()
        assert (cells.count[cells.reasons == 0] > 0).all()


def test_classes_go_by_their_meaning_and_not_by_their_number() -> None:
    said = predict(0)
    said.variables.add(name="sky_condition", unit="1", values=[0.0], flag_meanings=["rain", "hail"])
    other = predict(15)
    other.variables.add(name="sky_condition", unit="1", values=[1.0], flag_meanings=["rain", "hail"])
    assert gather([said, other]).sky.tolist() == [Sky.RAIN, Sky.UNKNOWN]


def test_a_prediction_with_too_few_values_is_refused() -> None:
    said = predict(0)
    said.sample_unix_nanos.append(15)
    with pytest.raises(BrokenStateError, match="expected 2 values"):
        gather([said])


def a_day_of_all_kinds() -> list[Prediction]:
    """Clear, an hour of cloud, an hour of rain, an hour without telegrams; a residual layer at night."""
    said = []
    for second in every_minute():
        hour = second // 3600
        sky = {9: "cloud", 15: "rain"}.get(hour, "clear")
        height_m = NAN if sky == "rain" else 800 + 500 * np.sin(second / 86_400 * 2 * np.pi)
        base_m = 1400.0 if sky == "cloud" else NAN
        residual_m = 1700.0 if hour < 6 else NAN
        if hour != 20:
            said.append(predict(second, height_m, sky=sky, **{CLOUD_BASE: base_m, RESIDUAL_LAYER: residual_m}))
    return said


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("products")
    return write_products(folder, SITE, 5, DAY, a_day_of_all_kinds(), "2026-05-02T01:30:00Z made")


def check_cf(*paths: Path) -> subprocess.CompletedProcess[str]:
    """The compliance checker of IOOS, with the standard name table that it brings: it asks no network."""
    command = [str(Path(sysconfig.get_path("scripts")) / "compliance-checker"), "--test", "cf:1.11"]
    return subprocess.run(
        [*command, "--criteria", "strict", *map(str, paths)], capture_output=True, text=True, timeout=60
    )


def test_the_files_pass_a_cf_checker(written: list[Path]) -> None:
    assert [path.name for path in written] == [
        "products-boundary-layer-height-v5-10min.nc",
        "products-boundary-layer-height-v5-1h.nc",
    ]
    checked = check_cf(*written)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert checked.stdout.count("All tests passed!") == 2


def test_the_cf_checker_would_find_what_is_wrong(written: list[Path], tmp_path: Path) -> None:
    path = tmp_path / "wrong.nc"
    path.write_bytes(written[0].read_bytes())
    with netCDF4.Dataset(path, "a") as file:
        file[MIXING_HEIGHT].units = "K"
    checked = check_cf(path)
    assert checked.returncode != 0 and "units" in checked.stdout


def test_xarray_opens_the_files_and_sees_cells_sites_and_reasons(written: list[Path]) -> None:
    with xarray.open_dataset(written[0]) as file:  # a warning would be an error here
        mean = file[MIXING_HEIGHT]
        assert mean.attrs["standard_name"] == "atmosphere_boundary_layer_thickness"
        assert mean.attrs["cell_methods"] == "time: mean"
        assert set(mean.attrs["ancillary_variables"].split()) <= set(file.variables)
        assert {"latitude", "longitude", "altitude", "station"} < set(mean.coords)
        assert file["time"].values[0] == np.datetime64("2026-05-01T00:05")
        assert file["time_bounds"].values[-1].tolist() == [
            np.datetime64(text, "ns").astype(int) for text in ("2026-05-01T23:50", "2026-05-02T00:00")
        ]
        reasons = file[f"{MIXING_HEIGHT}_missing_reason"]
        masks = dict(zip(reasons.attrs["flag_meanings"].split(), reasons.attrs["flag_masks"], strict=True))
        at_hours = {hour: int(reasons.sel(time=f"2026-05-01T{hour}:35").values) for hour in ("08", "09", "15", "20")}
        assert at_hours == {
            "08": 0,
            "09": masks["incomplete"] | masks["cloud"],
            "15": masks["incomplete"] | masks["rain"],
            "20": masks["incomplete"] | masks["missing"],
        }
        assert np.isnan(mean.sel(time="2026-05-01T09:35")) and np.isnan(mean.sel(time="2026-05-01T20:35"))
        assert np.isfinite(file[MIXING_HEIGHT + IN_ANY_SKY].sel(time="2026-05-01T09:35"))
        assert int(np.isfinite(mean).sum()) == 144 - 3 * 6
        assert float(file[f"{MIXING_HEIGHT}_completeness"].min()) == 0.0
        assert file.attrs["source"].startswith("model version boundary-layer-height@5")


def test_a_day_without_predictions_has_no_files(tmp_path: Path) -> None:
    assert write_products(tmp_path, SITE, 5, DAY, [Prediction(failure="no")], "made") == []
    assert not list(tmp_path.iterdir())


def test_a_site_whose_place_is_not_known_is_left_without_coordinates(tmp_path: Path) -> None:
    site = Site("lindenberg", "cl51", "cl51", None, None, None)
    write_product(tmp_path / "a.nc", make(a_day_of_all_kinds()), site, 5, "made")
    assert check_cf(tmp_path / "a.nc").returncode == 0
    with netCDF4.Dataset(tmp_path / "a.nc") as file:
        assert file[MIXING_HEIGHT].coordinates == "station"


def test_a_file_is_replaced_as_a_whole_and_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    product = make(a_day_of_all_kinds())
    (tmp_path / "a.nc").write_bytes(b"an old one")
    write_aside(tmp_path / "a.nc", product, SITE, 5, "made")
    assert [path.name for path in tmp_path.iterdir()] == ["a.nc"]
    assert xarray.open_dataset(tmp_path / "a.nc").sizes["time"] == 144
    with pytest.raises(TryAgainError, match="nowhere"):
        write_aside(tmp_path / "nowhere" / "a.nc", product, SITE, 5, "made")


def test_json_has_a_line_for_each_cell_with_its_reasons_in_words() -> None:
    rows = [json.loads(line) for line in json_lines(make(a_day_of_all_kinds(), HOUR_S))]
    assert len(rows) == 24
    assert (rows[9]["start"], rows[9]["end"]) == ("2026-05-01T09:00:00Z", "2026-05-01T10:00:00Z")
    assert rows[9][MIXING_HEIGHT] is None
    assert rows[9][f"{MIXING_HEIGHT}_missing_reason"] == ["incomplete", "cloud"]
    assert rows[8][MIXING_HEIGHT] == pytest.approx(1188, abs=40)


def test_the_summary_counts_valid_cells_and_reasons() -> None:
    lines = list(summary_lines(make(a_day_of_all_kinds(), HOUR_S)))
    assert lines[0] == (f"{MIXING_HEIGHT}: 21 of 24 cells have a value (incomplete 3, missing 1, rain 1, cloud 1)")


def test_the_picture_shows_cells_and_gaps(tmp_path: Path) -> None:
    said = a_day_of_all_kinds()
    draw_products(tmp_path / "day.png", "lindenberg/cl51", make(said), gather(said))
    assert (tmp_path / "day.png").read_bytes().startswith(b"\x89PNG")
