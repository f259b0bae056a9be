"""Memory does not grow with the day: a bag of thirty thousand observations needs no more than one of a thousand."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import numpy as np
import pytest

from fieldpost.v1 import observation_pb2 as pb
from fieldpost.v1 import prediction_pb2
from flows.bags.day import Contents, SeriesCount
from flows.bags.observations_file import verify_observations, write_observations
from flows.bags.predictions_file import file_name, verify_predictions, write_predictions
from server.analyses.boundary_layer.products.cells import average
from server.analyses.boundary_layer.products.retrievals import MIXING_HEIGHT, Retrievals
from server.analyses.boundary_layer.products.rules import TEN_MINUTES_S, Rules
from server.archive.bags import (
    NANOS_PER_DAY,
    DayModel,
    DayObservation,
    DayPrediction,
    Extent,
    InstrumentDay,
)
from server.storage.segments import Place

DAY = InstrumentDay(1, "lindenberg", "cl51", date(2025, 6, 15), "cl51", 52.21, 14.12, 103.0, None)
EPOCH = "0123456789abcdef" * 2
MODEL = DayModel(1, "sky", 1)
FEW, MANY = 1000, 30_000
DAY_BYTES = 12_000_000
"""Of either day: enough to fill the jobs of the compressor, whose memory goes by bytes."""
GROWTH_MB_MAX = 6.0
CLEAR_REFS = Path("/proc/self/clear_refs")


def rows(count: int) -> Iterator[tuple[DayObservation, pb.ObservationHeader, bytes]]:
    """So many observations over the day."""
    for index in range(count):
        content = hashlib.sha256(b"%d" % index).digest() * (DAY_BYTES // count // 32)
        sha256 = hashlib.sha256(content).digest()
        measured = DAY.first_unix_nanos + index * (NANOS_PER_DAY // count)
        header = pb.ObservationHeader(epoch=EPOCH, sequence=index + 1, payload_format="file")
        place = Place("segment", 0, len(content))
        yield DayObservation(index, EPOCH, index + 1, measured, measured, len(content), sha256, place), header, content


def predictions(count: int) -> Iterator[DayPrediction]:
    """One prediction of each."""
    for index in range(count):
        measured = DAY.first_unix_nanos + index * (NANOS_PER_DAY // count)
        message = prediction_pb2.Prediction(sample_unix_nanos=[measured])
        message.variables.add(name="height", unit="m", values=[float(index % 977)])
        yield DayPrediction(index, EPOCH, index + 1, measured, measured, message.SerializeToString())


def write_and_verify(folder: Path, count: int) -> None:
    """The large files of a bag, written and read back."""
    folder.mkdir()
    series_count = SeriesCount(MODEL)
    for row in predictions(count):
        series_count.add(row)
    series = series_count.series()
    contents = Contents(Extent(0, 0), count, 0, (EPOCH,), (series,), "")
    write_observations(folder, rows(count), 8)
    path = folder / file_name(series)
    write_predictions(path, DAY, contents, series, predictions(count), history="now")
    assert verify_observations(folder, (row for row, *_ in rows(count))) == count
    assert verify_predictions(path, DAY, contents, series, predictions(count)) == count


def peak_mb() -> float:
    """The most memory that this process had since the peak was last forgotten."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024


@pytest.mark.skipif(not CLEAR_REFS.exists(), reason="the kernel does not let a process forget its peak of memory")
def test_a_large_day_needs_no_more_memory_than_a_small_one(tmp_path: Path) -> None:
    peaks = []
    for count in (FEW, FEW, MANY):  # the first one loads what stays loaded
        CLEAR_REFS.write_text("5")
        write_and_verify(tmp_path / str(len(peaks)), count)
        peaks.append(peak_mb())
    assert peaks[-1] - peaks[1] < GROWTH_MB_MAX, peaks


def ten_minutes(count: int) -> Retrievals:
    """So many heights in the first ten minutes of a day, at odd instants, each with an error of its own."""
    generator = np.random.default_rng(3)
    unix_nanos = np.unique(DAY.first_unix_nanos + generator.integers(0, TEN_MINUTES_S * 10**9, count))
    heights = {MIXING_HEIGHT: generator.normal(1000, 5, count)}
    ones = np.ones(count, np.int8)
    return Retrievals(unix_nanos, heights, generator.uniform(20, 80, count), 2 * ones, 0 * ones, ones < 0)


def error_of_first_ten_minutes_m(found: Retrievals) -> float:
    """As the product of the day says it."""
    rules = Rules(cadence_s=TEN_MINUTES_S / len(found))
    product = average(found, DAY.first_unix_nanos, 1, TEN_MINUTES_S, rules)
    return float(product.heights[MIXING_HEIGHT].standard_error_m[0])


def test_the_error_of_an_average_is_what_all_pairs_of_profiles_would_say() -> None:
    found = ten_minutes(300)
    unix_s = (found.unix_nanos - DAY.first_unix_nanos) / 1e9
    correlation = np.exp(-np.abs(unix_s[:, None] - unix_s) / Rules().error_correlation_s)
    expected_m2 = found.standard_error_m @ correlation @ found.standard_error_m / 300**2
    assert error_of_first_ten_minutes_m(found) == pytest.approx(np.sqrt(expected_m2), rel=1e-12)


@pytest.mark.skipif(not CLEAR_REFS.exists(), reason="the kernel does not let a process forget its peak of memory")
def test_an_average_of_many_profiles_makes_no_table_of_their_pairs() -> None:
    found = ten_minutes(10_000)
    CLEAR_REFS.write_text("5")
    before_mb = peak_mb()
    assert np.isfinite(error_of_first_ten_minutes_m(found))
    assert peak_mb() - before_mb < 50  # all pairs of one ten minutes would be 800 MB
