"""What a bag's files say is enough to make every header and every prediction again, field for field."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Callable
from datetime import date
from pathlib import Path

import netCDF4
import numpy as np
import pytest
from numpy.typing import NDArray
from server_support import EPOCH, START_NANOS, make_observation

from fieldpost.errors import BrokenStateError
from fieldpost.v1 import observation_pb2 as pb
from fieldpost.v1 import prediction_pb2
from flows.bags.cf import NO_SAMPLE
from flows.bags.day import Contents, Series, SeriesCount
from flows.bags.observations_file import COLUMNS, write_observations
from flows.bags.predictions_file import file_name, verify_predictions, write_predictions
from flows.bags.provenance import describe
from server.archive.bags import DayModel, DayObservation, DayPrediction, Extent, InstrumentDay
from server.storage.segments import Place

DAY = InstrumentDay(1, "lindenberg", "cl51", date(2025, 6, 15), "cl51", 52.21, 14.12, 103.0, None)
MODEL = DayModel(1, "sky", 7)
YEARS_NANOS = 20 * 365 * 86_400 * 10**9


def write_line(folder: Path, change: Callable[[pb.ObservationHeader], None]) -> dict[str, str]:
    """The line of the table about an observation whose header was changed so."""
    content = b"a telegram"
    header = make_observation(7, content).header
    change(header)
    place = Place("s", 0, len(content))
    row = DayObservation(1, EPOCH, 7, START_NANOS, START_NANOS, len(content), hashlib.sha256(content).digest(), place)
    write_observations(folder, [(row, header, content)], 8)
    with (folder / "observations.csv").open(newline="", encoding="utf-8") as table:
        (line,) = csv.DictReader(table)
    return line


def test_the_hash_stays_the_last_column() -> None:
    assert COLUMNS[-1] == "sha256"


def test_a_quick_look_is_in_the_table_to_the_last_digit(tmp_path: Path) -> None:
    def change(header: pb.ObservationHeader) -> None:
        look = header.quick_look
        look.model, look.mixing_layer_height_m, look.duration_ms = "small@0123456789ab", 1 / 3, 12.1
        look.quality = pb.QUICK_LOOK_QUALITY_DOUBTFUL

    line = write_line(tmp_path, change)
    assert (line["quick_look_model"], line["quick_look_quality"]) == ("small@0123456789ab", "doubtful")
    assert (float(line["quick_look_height_m"]), float(line["quick_look_duration_ms"])) == (1 / 3, 12.1)


def test_a_quick_look_without_a_height_differs_from_none(tmp_path: Path) -> None:
    (tmp_path / "with").mkdir()
    (tmp_path / "without").mkdir()
    line = write_line(tmp_path / "with", lambda header: header.quick_look.SetInParent())
    assert (line["quick_look_height_m"], line["quick_look_quality"]) == ("", "unspecified")
    line = write_line(tmp_path / "without", lambda header: header.ClearField("quick_look"))
    assert (line["quick_look_height_m"], line["quick_look_quality"]) == ("", "")


def test_both_clocks_of_the_station_are_in_the_table(tmp_path: Path) -> None:
    def change(header: pb.ObservationHeader) -> None:
        header.capture_clock.wall_time.FromNanoseconds(123)
        header.corrected_wall_time.FromNanoseconds(START_NANOS + 1)

    line = write_line(tmp_path, change)
    assert line["station_time"] == "1970-01-01T00:00:00.000000123Z"
    assert line["corrected_time"] == "2025-06-15T15:06:40.000000001Z"
    assert line["capture_time_source"] == "station, corrected"


def test_a_clock_that_was_never_read_is_empty(tmp_path: Path) -> None:
    line = write_line(tmp_path, lambda header: header.ClearField("capture_clock"))
    assert (line["station_time"], line["corrected_time"], line["clock_sync"]) == ("", "", "")


def test_a_word_of_a_newer_station_stands_as_its_number(tmp_path: Path) -> None:
    def change(header: pb.ObservationHeader) -> None:
        header.capture_clock.clock_sync = 17  # type: ignore[assignment]

    assert write_line(tmp_path, change)["clock_sync"] == "17"


class Predictions:
    """The predictions of one model version, as the store would hand them out."""

    def __init__(self) -> None:
        self.rows: list[DayPrediction] = []
        self._count = SeriesCount(MODEL)

    def add(
        self,
        *variables: tuple[str, str, list[float], tuple[str, ...]],
        samples: tuple[int, ...] = (START_NANOS,),
        failure: str = "",
        predicted: int = START_NANOS,
        is_provisional: bool = False,
    ) -> None:
        """The prediction of the next observation."""
        message = prediction_pb2.Prediction(sample_unix_nanos=samples, failure=failure)
        for name, unit, values, meanings in variables:
            message.variables.add(name=name, unit=unit, values=values, flag_meanings=meanings)
        sequence = len(self.rows) + 1
        measured = START_NANOS + sequence
        content = message.SerializeToString()
        row = DayPrediction(sequence, EPOCH, sequence, measured, predicted, content, is_provisional)
        self._count.add(row)
        self.rows.append(row)

    @property
    def series(self) -> Series:
        """What was counted."""
        return self._count.series()

    def write(self, folder: Path) -> netCDF4.Dataset:
        """Writes them, compares the file with them, and opens it."""
        contents = Contents(Extent(0, 0), len(self.rows), 0, (EPOCH,), (self.series,), "")
        path = folder / file_name(self.series)
        write_predictions(path, DAY, contents, self.series, self.rows, history="now")
        assert verify_predictions(path, DAY, contents, self.series, self.rows) == self.series.row_count
        file = netCDF4.Dataset(path)
        file.set_auto_mask(False)
        return file


@pytest.fixture
def predictions() -> Predictions:
    return Predictions()


def bits(values: NDArray[np.float32]) -> list[int]:
    """Of each value: not-a-number differs from not-a-number by its bits alone."""
    return [int(each) for each in values.view(np.uint32)]


def test_classes_are_flags_by_the_conventions(predictions: Predictions, tmp_path: Path) -> None:
    predictions.add(("sky", "1", [2.0], ("clear", "cloud", "rain")), ("height", "m", [5.0], ()))
    with predictions.write(tmp_path) as file:
        assert file["sky"].flag_values.tolist() == [0, 1, 2]
        assert file["sky"].flag_values.dtype == file["sky"].dtype  # CF section 3.5 asks for it
        assert file["sky"].flag_meanings == "clear cloud rain"
        assert "flag_labels" not in file["sky"].ncattrs()
        assert "flag_meanings" not in file["height"].ncattrs()
        assert file.predicted_variables == "sky height"


def test_meanings_of_several_words_are_kept_beside_those_of_the_conventions(
    predictions: Predictions, tmp_path: Path
) -> None:
    predictions.add(("sky", "1", [0.0], ("low cloud", "")))
    with predictions.write(tmp_path) as file:
        assert file["sky"].flag_meanings == "low_cloud _"
        assert list(file["sky"].flag_labels) == ["low cloud", ""]


def test_what_is_to_be_predicted_again_says_so(predictions: Predictions, tmp_path: Path) -> None:
    predictions.add(("height", "m", [5.0], ()))
    predictions.add(("height", "m", [6.0], ()), is_provisional=True)
    with predictions.write(tmp_path) as file:
        assert file["is_provisional"][:].tolist() == [0, 1]
        assert file["is_provisional"].dtype == np.int8
        assert file["is_provisional"].flag_meanings == "final provisional"


def test_instants_far_from_the_day_keep_every_nanosecond(predictions: Predictions, tmp_path: Path) -> None:
    samples = (START_NANOS - YEARS_NANOS + 1, START_NANOS - YEARS_NANOS + 2)
    predictions.add(("height", "m", [5.0, 6.0], ()), samples=samples, predicted=START_NANOS + YEARS_NANOS + 3)
    with predictions.write(tmp_path) as file:
        assert file["sample_unix_nanos"][:].tolist() == list(samples)
        assert file["predict_unix_nanos"][:].tolist() == [START_NANOS + YEARS_NANOS + 3] * 2
        assert file["time"][0] == file["time"][1]  # seconds of the day cannot tell these two apart


def test_no_sample_differs_from_a_sample_at_the_time_of_the_observation(
    predictions: Predictions, tmp_path: Path
) -> None:
    predictions.add(("height", "m", [5.0], ()), samples=(START_NANOS + 1,))
    predictions.add(samples=(), failure="too short")
    with predictions.write(tmp_path) as file:
        assert file["sample_unix_nanos"][:].tolist() == [START_NANOS + 1, NO_SAMPLE]
        assert file["time"][1] > file["time"][0]


def test_predictions_that_differ_in_their_variables_say_which_they_have(
    predictions: Predictions, tmp_path: Path
) -> None:
    height, cloud = ("height", "m", [5.0], ()), ("cloud", "m", [float("nan")], ())
    predictions.add(height, cloud)
    predictions.add(cloud, height)
    predictions.add(height)
    predictions.add(samples=())
    predictions.add(samples=(), failure="too short")
    with predictions.write(tmp_path) as file:
        assert file["variable_names"][:].tolist() == ["height cloud", "cloud height", "height", "", ""]
        assert file["failure"][:].tolist() == ["", "", "", "", "too short"]


def test_predictions_that_are_alike_need_no_names(predictions: Predictions, tmp_path: Path) -> None:
    predictions.add(("height", "m", [5.0], ()))
    predictions.add(samples=(), failure="too short")
    with predictions.write(tmp_path) as file:
        assert "variable_names" not in file.variables


def test_a_variable_that_changes_its_unit_is_refused(predictions: Predictions) -> None:
    predictions.add(("height", "m", [5.0], ()))
    with pytest.raises(BrokenStateError, match="expected height as in earlier predictions"):
        predictions.add(("height", "km", [0.005], ()))


def test_values_keep_their_bits(predictions: Predictions, tmp_path: Path) -> None:
    values = np.array([-0.0, np.inf, 1e-45, np.nan, 16777217.0], np.float32)
    samples = tuple(range(START_NANOS, START_NANOS + 5))
    predictions.add(("height", "m", values.tolist(), ()), samples=samples)
    with predictions.write(tmp_path) as file:
        assert bits(file["height"][:]) == bits(values)


def test_a_reason_with_a_null_character_is_archived_all_the_same(predictions: Predictions, tmp_path: Path) -> None:
    predictions.add(("height", "m", [5.0], ()))
    predictions.add(samples=(), failure="expected text, but got \0\1")
    with predictions.write(tmp_path) as file:
        assert file["failure"][1] == "expected text, but got \N{SYMBOL FOR NULL}\1"


def test_provenance_names_the_format() -> None:
    contents = Contents(Extent(0, 0), 0, 0, (), (), "")
    assert b'"format": 2' in describe(DAY, contents, 1, START_NANOS)
