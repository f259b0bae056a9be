"""Which days a run looks at, how it says what it did, and how it refuses."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest
from archive_support import DAY, NOW_NANOS, archive_day, ingest_all, ingest_telegrams, make_archivist, open_site
from hypothesis import given
from hypothesis import strategies as st
from server_support import make_observation

from fieldpost.errors import BrokenStateError, InvalidRequestError, TryAgainError
from flows.__main__ import exit_status
from flows.archiving.archivist import Archivist, FailedDay
from flows.archiving.parameters import ArchiveParams
from flows.archiving.report import to_error, to_rows, to_text
from flows.parameters import make_params
from flows.site import open_site as open_flow_site
from server.archive.bags import day_to_unix_nanos, list_instrument_days

TODAY = date(2025, 6, 16)


def test_without_days_a_run_means_yesterday() -> None:
    assert ArchiveParams().days(TODAY) == (date(2025, 6, 15), date(2025, 6, 15))


def test_from_a_first_day_a_run_goes_on_until_yesterday() -> None:
    assert make_params(ArchiveParams, first_day="2025-06-01").days(TODAY) == (date(2025, 6, 1), date(2025, 6, 15))


def test_late_days_come_before_the_first_day() -> None:
    params = make_params(ArchiveParams, first_day="2025-06-10", last_day="2025-06-11", late_days=3)
    assert params.days(TODAY) == (date(2025, 6, 7), date(2025, 6, 11))


def test_today_is_archived_only_where_it_is_named() -> None:
    with pytest.raises(InvalidRequestError, match="at or before 2025-06-15, but got 2025-06-16"):
        make_params(ArchiveParams, first_day="2025-06-16").days(TODAY)
    assert make_params(ArchiveParams, first_day="2025-06-16", last_day="2025-06-16").days(TODAY) == (TODAY, TODAY)


@pytest.mark.parametrize(
    ("given_parameters", "expected"),
    [
        ({"first_day": "2025-06-02", "last_day": "2025-06-01"}, "expected a last day at or after 2025-06-02"),
        ({"first_day": "June"}, "first_day: "),
        ({"late_days": -1}, "late_days: .*greater than or equal to 0"),
        ({"station": "../etc"}, "station: String should match pattern"),
        ({"instruments": "cl51"}, "instruments: Extra inputs are not permitted"),
    ],
)
def test_wrong_parameters_are_named(given_parameters: dict[str, object], expected: str) -> None:
    with pytest.raises(InvalidRequestError, match=expected):
        make_params(ArchiveParams, **given_parameters)


def test_the_form_has_a_title_a_description_and_a_place_for_each_field() -> None:
    schema = ArchiveParams.model_json_schema()
    fields = schema["properties"].values()
    assert all(field["title"] and field["description"] for field in fields)
    assert sorted(field["position"] for field in fields) == list(range(1, len(fields) + 1))


@given(st.dates(date(1970, 1, 1), date(2200, 1, 1)))
def test_a_day_begins_where_the_day_before_ends(day: date) -> None:
    nanos_per_day = 86_400 * 10**9
    assert day_to_unix_nanos(day) == (day.toordinal() - date(1970, 1, 1).toordinal()) * nanos_per_day


def test_a_day_goes_from_its_first_nanosecond_to_its_last(tmp_path: Path) -> None:
    store = open_site(tmp_path)
    start = day_to_unix_nanos(DAY)
    sent = [make_observation(sequence) for sequence in (1, 2, 3, 4)]
    end = start + 86_400 * 10**9
    for observation, nanos in zip(sent, (start - 1, start, end - 1, end), strict=True):
        observation.header.measure_time.FromNanoseconds(nanos)
    ingest_all(store, sent)
    with store.read() as connection:
        days = list_instrument_days(connection, date(2025, 1, 1), date(2025, 12, 31))
    assert [each.day for each in days] == [date(2025, 6, 14), date(2025, 6, 15), date(2025, 6, 16)]
    archivist = make_archivist(store, tmp_path / "archive")
    assert [archivist.archive(each, NOW_NANOS).record.observation_count for each in days] == [1, 2, 1]
    store.close()


def test_stations_and_instruments_can_be_chosen(tmp_path: Path) -> None:
    store = open_site(tmp_path, instruments=("cl31", "cl51"))
    ingest_telegrams(store, 1, instrument="cl31")
    ingest_telegrams(store, 2, instrument="cl51")
    archivist = make_archivist(store, tmp_path / "archive")
    assert [each.instrument for each in archivist.find_days(DAY, DAY)] == ["cl31", "cl51"]
    assert [each.instrument for each in archivist.find_days(DAY, DAY, instrument="cl31")] == ["cl31"]
    assert [each.instrument for each in archivist.find_days(DAY, DAY, station="lindenberg")] == ["cl31", "cl51"]
    assert archivist.find_days(DAY, DAY, station="payerne") == []
    assert archivist.find_days(date(2025, 6, 1), date(2025, 6, 14)) == []
    store.close()


def test_a_report_says_what_became_of_each_day(tmp_path: Path) -> None:
    store = open_site(tmp_path)
    ingest_telegrams(store, 1, 2)
    archived = archive_day(make_archivist(store, tmp_path / "archive"))
    store.close()
    failed = FailedDay(archived.day, TryAgainError("the disk is full", hint="make room"))
    good, bad = to_rows([archived, failed])
    bag = tmp_path / "archive" / archived.record.path
    assert good["bytes archived"] == sum(path.stat().st_size for path in bag.rglob("*") if path.is_file())
    assert (good["observations"], good["verified hashes"], good["outcome"]) == (2, 2, "archived")
    assert bad["outcome"] == "failed: the disk is full"
    assert list(good) != [] and set(good) == set(bad)
    assert "lindenberg/cl51/2025/2025-06-15.v1" in to_text([archived, failed])
    assert to_text([]).startswith("no observations")
    assert to_error([archived]) is None


def test_a_run_in_which_every_failure_may_pass_can_be_tried_again(tmp_path: Path) -> None:
    store = open_site(tmp_path)
    ingest_telegrams(store, 1)
    (day,) = make_archivist(store, tmp_path / "archive").find_days(DAY, DAY)
    store.close()
    passing, lasting = FailedDay(day, TryAgainError("full")), FailedDay(day, BrokenStateError("damaged"))
    assert exit_status(to_error([passing, passing]) or pytest.fail("no error")) == 75
    assert exit_status(to_error([passing, lasting]) or pytest.fail("no error")) == 1


def test_a_flow_without_the_servers_settings_does_not_make_an_empty_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FIELDPOST_DATA_FOLDER", str(tmp_path / "nothing"))
    with pytest.raises(InvalidRequestError, match="expected the server's database at"), open_flow_site(None):
        pytest.fail("opened what is not there")
    assert not (tmp_path / "nothing").exists()


def test_an_archive_that_is_not_mounted_is_not_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_site(tmp_path / "data")
    ingest_telegrams(store, 1)
    archive_day(make_archivist(store, tmp_path / "data" / "archive"))
    store.close()
    monkeypatch.setenv("FIELDPOST_DATA_FOLDER", str(tmp_path / "data"))
    with open_flow_site(None) as site:
        assert archive_day(Archivist(site)).status == "present"
    (tmp_path / "mount-point").mkdir()
    monkeypatch.setenv("FIELDPOST_ARCHIVE_FOLDER", str(tmp_path / "mount-point"))
    with pytest.raises(BrokenStateError, match="but it holds none"), open_flow_site(None):
        pytest.fail("opened an empty mount point")
