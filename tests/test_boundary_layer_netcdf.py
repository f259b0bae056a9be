"""Decoding NetCDF files of the CHM15k and CL61: real ones, the dialects of other firmware, and damaged ones."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import netCDF4
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fieldpost.errors import InvalidObservationError
from fieldpost.telegrams.profiles import Profiles
from server.analyses import AnalysisInput
from server.analyses.boundary_layer.decoding.decode import decode

MAGURELE = "chm15k/00100_A202010220005_CHM170137.nc"
CL61 = "cl61/live_20210829_224520.nc"


def decode_file(path: Path, calibration: float | None = None) -> Profiles:
    return decode(AnalysisInput(path.read_bytes(), path.parent.name, 0, calibration))


def make_file(change: Callable[[Any], None], file_format: str = "NETCDF3_CLASSIC") -> bytes:
    """A small file as a CHM15k writes it, after `change` has changed it."""
    dataset = netCDF4.Dataset("made.nc", "w", memory=4096, format=file_format)
    dataset.software_version = "17.05.1 2.13 1.040 0"
    for name, length in (("time", 3), ("range", 40), ("layer", 3)):
        dataset.createDimension(name, length)
    add(dataset, "time", ("time",), 3_700_000_000.0 + 15 * np.arange(3), "seconds since 1904-01-01 00:00:00.000 00:00")
    add(dataset, "range", ("range",), 15.0 * np.arange(1, 41), "m")
    add(dataset, "zenith", (), np.float64(0), "degree")
    add(dataset, "cho", (), np.float64(70), "m")
    add(dataset, "cbh", ("time", "layer"), np.array([[270.0, -1, -1], [-1, -1, -1], [1070, 2070, -1]]), "m")
    add(dataset, "sci", ("time",), np.array([0.0, 2, 0]), "1")
    change(dataset)
    if "beta_raw" not in dataset.variables and "beta_att" not in dataset.variables:
        add(dataset, "beta_raw", ("time", "range"), np.full((3, 40), 1e5), "")
    return bytes(dataset.close())


def add(dataset: Any, name: str, dimensions: tuple[str, ...], values: Any, unit: str) -> None:
    variable = dataset.createVariable(name, "f8", dimensions)
    variable.units = unit
    variable[...] = values


def test_a_real_chm15k_file_gives_calibrated_profiles_at_the_middle_of_the_gates(shared_data: Path) -> None:
    profiles = decode_file(shared_data / "ceilometer" / MAGURELE)
    assert profiles.beta.shape == (10, 1024)
    start = datetime(2020, 10, 22, 0, 5, 15, tzinfo=UTC).timestamp()
    assert profiles.unix_nanos.tolist() == [int(start + 30 * index) * 10**9 for index in range(10)]
    assert profiles.height_m[0] == pytest.approx(14.985 / 2, rel=1e-4)
    with netCDF4.Dataset(shared_data / "ceilometer" / MAGURELE) as dataset:
        raw = dataset["beta_raw"][:]
    np.testing.assert_allclose(profiles.beta, raw * 3e-12, rtol=1e-6)
    calibrated = decode_file(shared_data / "ceilometer" / MAGURELE, calibration=4.5e-12)
    np.testing.assert_allclose(calibrated.beta, 1.5 * profiles.beta, rtol=1e-6)


def test_rain_and_fog_of_a_real_chm15k_file_are_known(shared_data: Path) -> None:
    profiles = decode_file(shared_data / "ceilometer" / "chm15k" / "raw_chm15k_lidar.nc")
    assert profiles.is_obscured.all()
    assert profiles.cloud_base_m[0, 0] == 15


def test_a_real_cl61_file_of_firmware_without_tilt_is_read(shared_data: Path) -> None:
    profiles = decode_file(shared_data / "ceilometer" / CL61)
    assert profiles.beta.shape == (12, 3276)
    assert np.diff(profiles.height_m) == pytest.approx(4.8)
    assert str(profiles.unix_nanos[0].astype("M8[ns]")).startswith("2021-08-29T22:44:20.988")
    assert profiles.cloud_base_m[0, 0] == pytest.approx(2006.4)
    assert np.isnan(profiles.cloud_base_m[0, 1:]).all()


def test_cloud_bases_lose_the_offset_and_minus_one_is_none() -> None:
    profiles = decode(AnalysisInput(make_file(lambda dataset: None), "chm15k", 0))
    np.testing.assert_array_equal(
        profiles.cloud_base_m, [[200, np.nan, np.nan], [np.nan, np.nan, np.nan], [1000, 2000, np.nan]]
    )
    np.testing.assert_array_equal(profiles.lowest_cloud_base_m, [200, np.nan, 1000])
    assert profiles.is_obscured.tolist() == [False, True, False]


def test_files_of_mode_1_hold_backscatter_that_is_calibrated_already() -> None:
    def mode_1(dataset: Any) -> None:
        add(dataset, "c_cal", (), np.float64(2e-12), "1")
        add(dataset, "beta_att", ("time", "range"), np.full((3, 40), 1e-6), "m-1 sr-1")

    payload = make_file(mode_1)
    assert decode(AnalysisInput(payload, "chm15k", 0)).beta[0, 0] == pytest.approx(1e-6)
    assert decode(AnalysisInput(payload, "chm15k", 0, calibration=3e-12)).beta[0, 0] == pytest.approx(1.5e-6)


def test_kilometres_and_tilt_are_respected() -> None:
    def dialect(dataset: Any) -> None:
        dataset["range"][:] = 0.015 * np.arange(1, 41)
        dataset["range"].units = "km"
        dataset["zenith"][...] = 60

    height_m = decode(AnalysisInput(make_file(dialect), "chm15k", 0)).height_m
    np.testing.assert_allclose(height_m, (np.arange(40) + 0.5) * 7.5)


@pytest.mark.parametrize("group", ["", "monitoring"])
def test_the_tilt_of_newer_cl61_firmware_is_found_where_it_is(group: str) -> None:
    dataset = netCDF4.Dataset("made.nc", "w", memory=4096)
    for name, length in (("time", 2), ("range", 10), ("layer", 5)):
        dataset.createDimension(name, length)
    add(dataset, "time", ("time",), [1.7e9, 1.7e9 + 5.5], "seconds since 1970-01-01 00:00:00.000")
    add(dataset, "range", ("range",), 4.8 * np.arange(10), "m")
    add(dataset, "beta_att", ("time", "range"), 1e-6, "m-1 sr-1")
    add(dataset, "cloud_base_heights", ("time", "layer"), np.nan, "m")
    add(dataset, "vertical_visibility", ("time",), [np.nan, 100], "m")
    place = dataset.createGroup(group) if group else dataset
    add(place, "tilt_angle", ("time",), 60.0, "degree")
    profiles = decode(AnalysisInput(bytes(dataset.close()), "cl61", 0))
    assert profiles.height_m[1] == pytest.approx(2.4)
    assert profiles.is_obscured.tolist() == [False, True]
    assert profiles.unix_nanos.tolist() == [1_700_000_000_000_000_000, 1_700_000_005_500_000_000]


def test_numbers_that_no_cloud_can_have_are_missing() -> None:
    def broken(dataset: Any) -> None:
        values = np.full((3, 40), 1e5)
        values[0, :3] = 1e300, -1e30, np.inf
        add(dataset, "beta_raw", ("time", "range"), values, "")

    beta = decode(AnalysisInput(make_file(broken), "chm15k", 0)).beta
    assert np.isnan(beta[0, :3]).all()
    assert np.isfinite(beta).sum() == 3 * 40 - 3


def old_firmware(dataset: Any) -> None:
    dataset.software_version = "12.03.1 2.10 0.680 0"


def backwards(dataset: Any) -> None:
    dataset["range"][:] = 15.0 * np.arange(40, 0, -1)


def strange_times(dataset: Any) -> None:
    dataset["time"].units = "fortnights since the flood"


def far_future(dataset: Any) -> None:
    dataset["time"][:] = 3e11


def wrong_shape(dataset: Any) -> None:
    add(dataset, "beta_raw", ("range",), np.ones(40), "")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (old_firmware, "firmware of 0.702 or newer"),
        (backwards, "ascends in even steps"),
        (strange_times, "expected a unit such as"),
        (far_future, "between 1970 and 2100"),
        (wrong_shape, "2 dimensions in 'beta_raw'"),
    ],
)
@pytest.mark.parametrize("file_format", ["NETCDF3_CLASSIC", "NETCDF4"])
def test_what_is_wrong_with_a_file_is_said(change: Callable[[Any], None], message: str, file_format: str) -> None:
    with pytest.raises(InvalidObservationError, match=message):
        decode(AnalysisInput(make_file(change, file_format), "chm15k", 0))


def test_a_file_of_another_instrument_is_refused(shared_data: Path) -> None:
    with pytest.raises(InvalidObservationError, match="firmware"):
        decode(AnalysisInput((shared_data / "ceilometer" / CL61).read_bytes(), "chm15k", 0))
    with pytest.raises(InvalidObservationError, match="expected a variable 'beta_att', but the file has"):
        decode(AnalysisInput((shared_data / "ceilometer" / MAGURELE).read_bytes(), "cl61", 0))


def test_a_count_that_would_kill_the_library_is_refused_before_it_sees_it() -> None:
    payload = bytearray(make_file(lambda dataset: None))
    payload[12] = 0x7F  # two thousand million dimensions
    with pytest.raises(InvalidObservationError, match="a count that fits the file"):
        decode(AnalysisInput(bytes(payload), "chm15k", 0))


GOOD_FILE = make_file(lambda dataset: None)


@settings(max_examples=150, deadline=None)
@given(
    changes=st.lists(st.tuples(st.integers(0, len(GOOD_FILE) - 1), st.integers(0, 255)), min_size=1, max_size=5),
    cut=st.none() | st.integers(0, len(GOOD_FILE)),
)
def test_a_damaged_file_is_decoded_or_refused_and_nothing_else(changes: list[tuple[int, int]], cut: int | None) -> None:
    damaged = bytearray(GOOD_FILE)
    for position, value in changes:
        damaged[position] = value
    try:
        profiles = decode(AnalysisInput(bytes(damaged[:cut]), "chm15k", 0))
    except InvalidObservationError:
        return
    assert profiles.beta.shape == (len(profiles.unix_nanos), len(profiles.height_m))
