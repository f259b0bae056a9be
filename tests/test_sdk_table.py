"""Queries and columns: what is asked for, and what predictions look like as numbers."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime

import numpy as np
import pytest

from fieldpost._render import csv_lines, json_lines, message_json, station_lines, table_lines, watch_line
from fieldpost._requests import list_request, prediction_pages, retry_request, watch_request
from fieldpost._table import json_rows, to_table
from fieldpost.errors import BrokenStateError, InvalidRequestError
from fieldpost.testing import make_prediction
from fieldpost.v1 import prediction_pb2, station_pb2
from fieldpost.v1 import predictions_service_pb2 as predictions_pb2
from fieldpost.v1 import stations_service_pb2 as stations_pb2

HEIGHT = ("atmosphere_boundary_layer_thickness", "m")
DENSITY = ("capillary_density", "mm-2")


def test_a_query_becomes_a_request_and_what_is_left_out_matches_all() -> None:
    request = list_request(
        station="s",
        instrument="i",
        analysis="a",
        model_version=3,
        since="2025-06-01",
        until=np.datetime64("2025-06-02"),
    )
    assert (request.station, request.instrument, request.analysis, request.model_version) == ("s", "i", "a", 3)
    assert request.end_time.seconds - request.start_time.seconds == 86400
    assert list_request() == type(request)()


def test_the_next_page_is_the_same_query_with_the_token() -> None:
    pages = prediction_pages(list_request(station="s"), patience_s=1)
    assert (pages.request().list.station, pages.request().list.page_token) == ("s", "")
    pages.take(predictions_pb2.StreamPredictionsResponse(next_page_token="t"))
    assert (pages.request().list.station, pages.request().list.page_token) == ("s", "t")
    assert not pages.is_complete(has_ended_well=False)
    pages.take(predictions_pb2.StreamPredictionsResponse(next_page_token=""))
    assert pages.is_complete(has_ended_well=False)  # else a break behind the last page would begin all over again


def test_failures_to_be_tried_again_are_those_of_an_analysis() -> None:
    request = retry_request("a", station="s", since="2025-06-01")
    assert (request.analysis, request.station, request.HasField("start_time"), request.HasField("end_time")) == (
        *("a", "s", True),
        False,
    )
    with pytest.raises(InvalidRequestError, match="analysis"):
        retry_request("")


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ({"instrument": "i"}, "expected a station together"),
        ({"model_version": 1}, "together with its analysis"),
        ({"analysis": "a", "model_version": 0}, "1 or more"),
        ({"since": "2025-06-02", "until": "2025-06-01"}, "since before until"),
        ({"since": "2025-06-01", "until": "2025-06-01"}, "since before until"),
        ({"station": "No Name"}, "station name"),
    ],
)
def test_a_query_that_makes_no_sense_is_refused_before_it_is_asked(query: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        list_request(**query)  # type: ignore[arg-type]


def test_a_word_that_is_no_part_of_a_query_is_refused() -> None:
    with pytest.raises(TypeError, match="statoin"):
        list_request(statoin="s")  # type: ignore[call-arg]


def test_a_watch_takes_names_alone() -> None:
    assert watch_request(station="s", instrument="i").instrument == "i"
    with pytest.raises(InvalidRequestError, match="expected a station"):
        watch_request(instrument="i")


def test_samples_become_rows_in_the_order_of_time() -> None:
    noon, later = "2025-06-01T12:00:00Z", "2025-06-01T12:00:10Z"
    table = to_table(
        [
            make_prediction([noon, later], {HEIGHT: [800.0, math.nan]}, instrument="a"),
            make_prediction(["2025-06-01T12:00:05Z"], {HEIGHT: [700.5]}, instrument="b", model_version=2),
        ]
    )
    assert len(table) == 3
    assert table.time.dtype == np.dtype("datetime64[ns]")
    assert list(table.instrument) == ["a", "b", "a"]
    assert list(table.model_version) == [1, 2, 1]
    assert table.units == {HEIGHT[0]: "m"}
    assert table[HEIGHT[0]].dtype == np.float32
    np.testing.assert_array_equal(table[HEIGHT[0]], np.float32([800.0, 700.5, np.nan]))
    assert table.time[1] == np.datetime64("2025-06-01T12:00:05")


def test_a_variable_that_a_prediction_lacks_is_missing_there() -> None:
    table = to_table(
        [
            make_prediction(["2025-06-01"], {HEIGHT: [1.0]}),
            make_prediction(["2025-06-02"], {DENSITY: [2.0]}, analysis="capillary-density"),
        ]
    )
    np.testing.assert_array_equal(table[HEIGHT[0]], np.float32([1.0, np.nan]))
    np.testing.assert_array_equal(table[DENSITY[0]], np.float32([np.nan, 2.0]))


def test_failures_are_kept_beside_the_rows() -> None:
    failed = make_prediction(["2025-06-01"], {})
    failed.failure = "expected 770 values but got 12"
    table = to_table([failed, make_prediction(["2025-06-01"], {HEIGHT: [1.0]})])
    assert len(table) == 1
    assert [each.failure for each in table.failures] == ["expected 770 values but got 12"]


def test_the_table_of_nothing_has_no_rows_and_says_so_when_asked_for_a_variable() -> None:
    table = to_table([])
    assert len(table) == 0
    assert table.to_dict() == []
    with pytest.raises(KeyError, match="the table is empty"):
        table["height"]


def test_one_variable_in_two_units_is_refused_since_one_column_cannot_hold_both() -> None:
    two = [
        make_prediction(["2025-06-01"], {("h", "m"): [1.0]}),
        make_prediction(["2025-06-01"], {("h", "km"): [1.0]}, model_version=2),
    ]
    with pytest.raises(InvalidRequestError, match="'m' and 'km'"):
        to_table(two)


def test_a_prediction_with_fewer_values_than_samples_is_an_error_and_not_a_shifted_column() -> None:
    damaged = make_prediction(["2025-06-01", "2025-06-02"], {HEIGHT: [1.0]})
    with pytest.raises(BrokenStateError, match=r"expected 2 values .* but got 1"):
        to_table([damaged])


def test_records_hold_plain_python_values() -> None:
    (record,) = to_table([make_prediction(["2025-06-01T12:00:00.25Z"], {HEIGHT: [800.5]}, station="s")]).to_dict()
    assert record == {
        "time": datetime(2025, 6, 1, 12, 0, 0, 250_000, tzinfo=UTC),
        "station": "s",
        "instrument": "ceilometer",
        "analysis": "boundary-layer-height",
        "model_version": 1,
        "prediction_id": 0,
        "is_provisional": False,
        HEIGHT[0]: 800.5,
    }


def example() -> prediction_pb2.Prediction:
    return make_prediction(["2025-06-01T12:00:00Z", "2025-06-01T12:00:16Z"], {HEIGHT: [812.25, math.nan]})


def test_json_lines_are_one_object_a_sample_with_null_where_missing() -> None:
    rows = [json.loads(line) for line in json_lines(example())]
    assert [row["time"] for row in rows] == ["2025-06-01T12:00:00Z", "2025-06-01T12:00:16Z"]
    assert [row[HEIGHT[0]] for row in rows] == [812.25, None]


def test_a_failure_is_a_json_line_of_its_own() -> None:
    failed = example()
    failed.failure = "no profile"
    assert [json.loads(line)["failure"] for line in json_lines(failed)] == ["no profile"]


def test_csv_brings_every_float32_back_bit_for_bit() -> None:
    values = np.float32([0.1, 1 / 3, 12345.678, 1e-30])
    times = [f"2025-06-01T12:00:0{n}Z" for n in range(4)]
    head, *lines = csv_lines(to_table([make_prediction(times, {HEIGHT: values.tolist()})]))
    assert head == "time,station,instrument,analysis,is_provisional,atmosphere_boundary_layer_thickness (m)"
    np.testing.assert_array_equal(np.float32([line.split(",")[-1] for line in lines]), values)


def test_what_will_be_made_again_says_so_in_every_form() -> None:
    provisional = example()
    provisional.is_provisional = True
    stands, again = make_prediction(["2025-06-01"], {HEIGHT: [1.0]}), list(json_rows(provisional))
    assert [row["is_provisional"] for row in again] == [True, True]
    assert "@1 (provisional)  " in watch_line(again[0])
    assert "provisional" not in watch_line(next(iter(json_rows(stands))))
    table = to_table([stands, provisional])
    assert table.is_provisional.tolist() == [False, True, True]
    assert [row["is_provisional"] for row in table.to_dict()] == [False, True, True]
    assert ["(provisional)" in line for line in table_lines(table)][2:] == [False, True, True]
    assert [line.split(",")[4] for line in csv_lines(table)] == ["is_provisional", "0", "1", "1"]


def test_csv_has_an_empty_field_where_a_value_is_missing() -> None:
    assert list(csv_lines(to_table([example()])))[2].endswith("boundary-layer-height@1,0,")


def test_the_table_for_people_has_its_columns_below_each_other() -> None:
    head, units, first, second = table_lines(to_table([example()]))
    column = head.index(HEIGHT[0]) + len(HEIGHT[0])
    assert units[:column].endswith(" m")
    assert first[:column].endswith(" 812.25")
    assert second[:column].endswith(" -")


def a_station() -> stations_pb2.Station:
    instrument = stations_pb2.Instrument(
        instrument="cl51", instrument_model="cl51", latitude_deg=math.nan, altitude_m=12.5, observation_count=2**40
    )
    status = station_pb2.StationStatus(station="s", is_online=True, backlog_count=3)
    return stations_pb2.Station(station="s", status=status, instruments=[instrument])


def test_json_of_a_station_has_numbers_for_counts_and_null_for_what_is_not_registered() -> None:
    facts = json.loads(message_json(a_station()))
    (instrument,) = facts["instruments"]
    assert instrument["observation_count"] == 2**40
    assert instrument["latitude_deg"] is None
    assert instrument["altitude_m"] == 12.5
    assert facts["status"]["backlog_count"] == 3


def test_a_station_without_status_or_instruments_has_a_line_all_the_same() -> None:
    lines = list(station_lines([a_station(), stations_pb2.Station(station="silent")]))
    assert len(lines) == 3
    assert lines[1].split() == ["s", "yes", "3", "cl51", "cl51", str(2**40), "-"]
    assert lines[2].split() == ["silent", *"------"]


def test_what_is_wrong_with_a_station_stands_below_the_table() -> None:
    station = a_station()
    station.status.alarms.append("cl51: no observation for 70 min")
    *_, last = station_lines([station, stations_pb2.Station(station="silent")])
    assert last == "ALARM  s: cl51: no observation for 70 min"


def test_classes_have_their_names_in_tables_json_and_csv() -> None:
    prediction = make_prediction(["2025-06-01", "2025-06-02"], {("tissue", "1"): [1.0, float("nan")]})
    prediction.variables[0].flag_meanings.extend(["healthy", "burnt"])
    table = to_table([prediction])
    assert table.labels("tissue") == ["burnt", None]
    with pytest.raises(KeyError, match=r"variables \(tissue\)"):
        table.labels("height")
    assert [line.split()[-1] for line in table_lines(table)][2:] == ["burnt", "-"]
    assert [line.rpartition(",")[2] for line in csv_lines(table)][1:] == ["burnt", ""]
    assert '"tissue": "burnt"' in next(iter(json_lines(prediction)))


def test_classes_that_mean_different_things_are_not_mixed() -> None:
    first, second = (make_prediction(["2025-06-01"], {("tissue", "1"): [1.0]}) for _ in range(2))
    first.variables[0].flag_meanings.extend(["healthy", "burnt"])
    second.variables[0].flag_meanings.extend(["burnt", "healthy"])
    with pytest.raises(InvalidRequestError, match="mean the same"):
        to_table([first, second])
