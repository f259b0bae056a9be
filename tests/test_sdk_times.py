"""Instants as callers write them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldpost._times import from_timestamp, iso_utc, parse_moment, to_timestamp, unix_nanos
from fieldpost.errors import InvalidRequestError

NOON = datetime(2025, 6, 1, 12, tzinfo=UTC)
NOON_NANOS = 1_748_779_200_000_000_000


@pytest.mark.parametrize(
    "moment",
    [
        NOON,
        NOON.astimezone(timezone(timedelta(hours=5, minutes=30))),
        np.datetime64("2025-06-01T12:00"),
        np.datetime64("2025-06-01T12:00:00.000000000"),
        "2025-06-01T12:00:00Z",
        "2025-06-01T12:00",
        " 2025-06-01T14:00+02:00 ",
    ],
)
def test_all_forms_of_one_instant_are_the_same_nanoseconds(moment: object) -> None:
    assert unix_nanos(moment) == NOON_NANOS  # type: ignore[arg-type]


def test_a_datetime_without_a_time_zone_is_refused_since_it_would_mean_another_instant_on_each_computer() -> None:
    with pytest.raises(InvalidRequestError, match="time zone") as caught:
        unix_nanos(datetime(2025, 6, 1))
    assert "UTC" in caught.value.hint


@pytest.mark.parametrize("moment", [np.datetime64("NaT"), "yesterday", "", "2025-13-01"])
def test_what_is_no_instant_is_refused(moment: object) -> None:
    with pytest.raises(InvalidRequestError, match="expected an instant"):
        unix_nanos(moment)  # type: ignore[arg-type]


def test_nanoseconds_of_numpy_are_kept() -> None:
    assert unix_nanos(np.datetime64("2025-06-01T12:00:00.000000001")) == NOON_NANOS + 1


@given(st.integers(-(10**18), 4 * 10**18))
def test_timestamps_of_the_protocol_hold_every_nanosecond_also_before_1970(nanos: int) -> None:
    stamp = to_timestamp(nanos)
    assert 0 <= stamp.nanos < 10**9
    assert from_timestamp(stamp) == nanos


@given(st.datetimes(datetime(1678, 1, 1), datetime(2262, 1, 1), timezones=st.just(UTC)))
def test_text_of_an_instant_is_read_back_as_the_same(moment: datetime) -> None:
    nanos = unix_nanos(moment)
    assert unix_nanos(iso_utc(nanos)) == nanos


@pytest.mark.parametrize(
    ("text", "before"),
    [
        ("2h", timedelta(hours=2)),
        ("1d", timedelta(days=1)),
        ("30min", timedelta(minutes=30)),
        ("90s", timedelta(seconds=90)),
        ("1.5 h", timedelta(minutes=90)),
        ("2w", timedelta(days=14)),
    ],
)
def test_a_span_is_counted_back_from_now(text: str, before: timedelta) -> None:
    assert parse_moment(text, NOON) == NOON - before


def test_an_instant_is_read_where_a_span_could_stand() -> None:
    assert parse_moment("2025-05-01", NOON) == datetime(2025, 5, 1, tzinfo=UTC)


@pytest.mark.parametrize("text", ["2x", "h", "-2h", "2 months", "99999999999999d"])
def test_what_is_neither_span_nor_instant_is_refused_with_the_forms_that_are(text: str) -> None:
    with pytest.raises(InvalidRequestError, match="expected"):
        parse_moment(text, NOON)
