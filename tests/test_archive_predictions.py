"""Predictions in a bag: a CF-NetCDF file that others can open, with every value that the store has."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import netCDF4
import numpy as np
import pytest
from archive_support import (
    DAY,
    ERROR,
    FLAG,
    HEIGHT,
    NOW_NANOS,
    archive_day,
    fail_prediction,
    ingest_all,
    ingest_telegrams,
    make_archivist,
    open_site,
    predict,
    write_prediction,
)
from hypothesis import given
from hypothesis import strategies as st
from server_support import EPOCH, START_NANOS, make_observation

from fieldpost.errors import BrokenStateError, InvalidRequestError
from flows.archiving.archivist import Archivist
from flows.bags.day import DayReader
from flows.bags.predictions_file import file_name, seconds_of_day, verify_predictions
from server.analyses import AnalysisResult, AnalysisVariable
from server.archive.bags import day_to_unix_nanos
from server.queries.predictions import encode_result
from server.storage.store import Store

STEP_NANOS = 15_000_000_000


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = open_site(tmp_path / "data")
    yield store
    store.close()


@pytest.fixture
def archivist(store: Store, tmp_path: Path) -> Archivist:
    return make_archivist(store, tmp_path / "archive")


def archive_and_open(archivist: Archivist, name: str = "predictions-boundary-layer-height-v1.nc") -> netCDF4.Dataset:
    file = netCDF4.Dataset(Path(archivist.site.shelf.url) / archive_day(archivist).record.path / "data" / name)
    file.set_auto_mask(False)
    return file


def test_the_file_follows_the_conventions_for_a_time_series(archivist: Archivist, store: Store) -> None:
    ingest_telegrams(store, 1, 2, 3)
    predict(store, 1, 2, 3)
    with archive_and_open(archivist) as file:
        assert file.Conventions == "CF-1.11"
        assert file.featureType == "timeSeries"
        assert file.history.startswith("2025-06-16T15:06:40.000000000Z")
        for name in ("title", "source", "references", "comment"):
            assert file.getncattr(name)
        time = file["time"]
        assert (time.dimensions, time.standard_name, time.axis) == (("time",), "time", "T")
        assert time.units == "seconds since 2025-06-15T00:00:00Z"
        assert file["station"].cf_role == "timeseries_id"
        assert file["station"][...] == "lindenberg"
        assert {name: float(file[name][...]) for name in ("latitude", "longitude", "altitude")} == {
            "latitude": 52.21,
            "longitude": 14.12,
            "altitude": 103.0,
        }
        height = file[HEIGHT]
        assert (height.dimensions, height.dtype, height.units) == (("time",), np.float32, "m")
        assert height.standard_name == HEIGHT
        assert height.long_name == "atmosphere boundary layer thickness"
        assert np.isnan(height.getncattr("_FillValue"))
        assert height.coordinates == "latitude longitude altitude station"
        assert height.ancillary_variables == f"{ERROR} {FLAG}"
        assert file[ERROR].standard_name == f"{HEIGHT} standard_error"
        assert "standard_name" not in file[FLAG].ncattrs()  # not in CF's table: better none than a wrong one


def test_times_and_values_are_those_of_the_store(archivist: Archivist, store: Store) -> None:
    ingest_telegrams(store, *range(1, 8))
    predict(store, *range(1, 8))
    with archive_and_open(archivist) as file:
        times = netCDF4.num2date(file["time"][:], file["time"].units, only_use_cftime_datetimes=False)
        assert [each.timestamp() for each in times] == [START_NANOS // 10**9 + 15 * i for i in range(1, 8)]
        expected = np.array([100, 200, np.nan, 400, 500, 600, 700], np.float32)
        assert np.array_equal(file[HEIGHT][:], expected, equal_nan=True)
        assert file["sequence"][:].tolist() == list(range(1, 8))
        meanings = file["epoch"].flag_meanings.split()
        assert [meanings[each] for each in file["epoch"][:]] == [EPOCH] * 7


def test_a_failed_prediction_is_a_row_that_says_why(archivist: Archivist, store: Store) -> None:
    ingest_telegrams(store, 1, 2)
    predict(store, 1)
    fail_prediction(store, 2, "InvalidObservationError: expected 1540 gates, but got 0")
    with archive_and_open(archivist) as file:
        assert file["failure"][:].tolist() == ["", "InvalidObservationError: expected 1540 gates, but got 0"]
        assert np.isnan(file[HEIGHT][1])


def test_every_model_version_has_its_file(archivist: Archivist, store: Store) -> None:
    ingest_telegrams(store, 1, 2)
    predict(store, 1, 2, version=1)
    predict(store, 2, version=2)
    archived = archive_day(archivist)
    data = Path(archivist.site.shelf.url) / archived.record.path / "data"
    assert sorted(path.name for path in data.glob("predictions-*.nc")) == [
        "predictions-boundary-layer-height-v1.nc",
        "predictions-boundary-layer-height-v2.nc",
    ]
    assert archived.record.prediction_count == 3
    with netCDF4.Dataset(data / "predictions-boundary-layer-height-v2.nc") as file:
        assert file["sequence"][:].tolist() == [2]
        assert file.model_version == "2"


def test_an_observation_of_many_samples_keeps_them_all(archivist: Archivist, store: Store) -> None:
    ingest_telegrams(store, 1, 2)
    for sequence in (1, 2):
        nanos = START_NANOS + sequence * STEP_NANOS + np.arange(5, dtype=np.int64) * 1_000_000_001
        values = np.arange(5, dtype=np.float32) + 10 * sequence
        content = encode_result(AnalysisResult(nanos, (AnalysisVariable(HEIGHT, "m", values),)))
        write_prediction(store, sequence, content)
    with archive_and_open(archivist) as file:
        assert file["sequence"][:].tolist() == [1] * 5 + [2] * 5
        assert file[HEIGHT][:].tolist() == [10, 11, 12, 13, 14, 20, 21, 22, 23, 24]
        nanos = np.rint(file["time"][:] * 1e9).astype(np.int64) + day_to_unix_nanos(DAY)
        assert nanos.tolist() == [START_NANOS + s * STEP_NANOS + i * 1_000_000_001 for s in (1, 2) for i in range(5)]


def test_an_instant_measured_twice_makes_time_an_auxiliary_coordinate(archivist: Archivist, store: Store) -> None:
    twin = make_observation(2, b"the same instant, of a new buffer", epoch="f" * 32)
    twin.header.measure_time.FromNanoseconds(START_NANOS + STEP_NANOS)
    ingest_all(store, [make_observation(1), twin])
    predict(store, 1)
    nanos = np.array([START_NANOS + STEP_NANOS], np.int64)
    content = encode_result(AnalysisResult(nanos, (AnalysisVariable(HEIGHT, "m", np.array([7], np.float32)),)))
    write_prediction(store, 2, content)
    with archive_and_open(archivist) as file:
        assert file["time"].dimensions == ("sample",)
        assert file["time"][0] == file["time"][1]
        assert file[HEIGHT].coordinates.split()[0] == "time"
        meanings = file["epoch"].flag_meanings.split()
        assert [meanings[each] for each in file["epoch"][:]] == [EPOCH, "f" * 32]


def test_a_variable_that_the_file_needs_for_itself_gets_another_name(archivist: Archivist, store: Store) -> None:
    ingest_telegrams(store, 1)
    nanos = np.array([START_NANOS + STEP_NANOS], np.int64)
    variable = AnalysisVariable("altitude", "m", np.array([7], np.float32))
    write_prediction(store, 1, encode_result(AnalysisResult(nanos, (variable,))), analysis="cloud-altitude")
    with archive_and_open(archivist, "predictions-cloud-altitude-v1.nc") as file:
        assert file["predicted_altitude"][:].tolist() == [7]
        assert float(file["altitude"][...]) == 103.0


@pytest.mark.parametrize(
    ("analysis", "variable", "expected"),
    [("../../etc", "height", "expected an analysis name"), ("fine", "height in m", "expected a variable name")],
)
def test_names_that_do_not_fit_a_file_are_refused(
    archivist: Archivist, store: Store, analysis: str, variable: str, expected: str
) -> None:
    ingest_telegrams(store, 1)
    nanos = np.array([START_NANOS + STEP_NANOS], np.int64)
    result = AnalysisResult(nanos, (AnalysisVariable(variable, "m", np.array([7], np.float32)),))
    write_prediction(store, 1, encode_result(result), analysis=analysis)
    with pytest.raises(InvalidRequestError, match=expected):
        archive_day(archivist)


def test_a_value_that_differs_from_the_store_is_noticed(archivist: Archivist, store: Store) -> None:
    ingest_telegrams(store, 1, 2, 3)
    predict(store, 1, 2, 3)
    (day,) = archivist.find_days(DAY, DAY)
    archived = archivist.archive(day, NOW_NANOS)
    reader = DayReader(store, day)
    contents = reader.look()
    (series,) = contents.series
    path = Path(archivist.site.shelf.url) / archived.record.path / "data" / file_name(series)

    def verify() -> int:
        return verify_predictions(path, day, contents, series, reader.predictions(contents.extent, series.model))

    assert verify() == 3
    with netCDF4.Dataset(path, "a") as file:
        file[HEIGHT][1] = 200.5
    with pytest.raises(BrokenStateError, match=f"rows 0 to 3 of {HEIGHT}"):
        verify()


@given(st.integers(0, 86_400 * 10**9 - 1))
def test_seconds_of_a_day_give_back_every_nanosecond(nanos_of_day: int) -> None:
    start = day_to_unix_nanos(DAY)
    (seconds,) = seconds_of_day(start, [start + nanos_of_day])
    assert round(float(seconds) * 1e9) == nanos_of_day
