"""What a backfill decides, without store or worker: pieces, batches, rates, agreement, and how it refuses."""

from __future__ import annotations

import math
from datetime import date, timedelta
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from worker_support import make_card

from fieldpost.errors import InvalidRequestError
from fieldpost.v1 import prediction_pb2
from flows.backfilling.archived_days import BaggedDay
from flows.backfilling.comparing import Agreement, match_values
from flows.backfilling.parameters import DAYS_MAX, BackfillParams
from flows.backfilling.plan import choose_meant, plan_span
from flows.backfilling.rate import SETTLE_S, MovingRate
from flows.backfilling.span import Batch, Span, find_spans, make_batches
from flows.backfilling.waiting import SpanCounts
from server.analyses.boundary_layer import LEARNED, course_start
from server.archive.bags import NANOS_PER_DAY, InstrumentDay, day_to_unix_nanos
from server.models.card import ModelState, Restriction
from server.prediction.course import Course

FIRST = date(2025, 6, 1)
PARAMS: dict[str, Any] = {"analysis": "a", "model_version": 2, "first_day": "2025-06-01", "last_day": "2025-06-02"}


def make_day(number: int, *, instrument_id: int = 1, model: str = "cl51", name: str = "cl51") -> InstrumentDay:
    day = FIRST + timedelta(days=number)
    return InstrumentDay(instrument_id, "lindenberg", name, day, model, 52.2, 14.1, None, None)


def make_params(**given_parameters: object) -> BackfillParams:
    return BackfillParams.model_validate(PARAMS | given_parameters)


def test_a_version_that_forgets_is_given_days() -> None:
    spans = find_spans([make_day(1), make_day(0), make_day(0)], 1, None)
    assert [each.days for each in spans] == [(date(2025, 6, 1),), (date(2025, 6, 2),)]


def test_a_version_that_remembers_is_given_whole_courses_each_once() -> None:
    spans = find_spans([make_day(0), make_day(1)], LEARNED, course_start)
    assert len(spans) == 3  # two days touch three courses from noon to noon
    assert all(first.course.end_unix_nanos == then.course.start_unix_nanos for first, then in pairwise(spans))
    assert spans[0].days == (date(2025, 5, 31), date(2025, 6, 1))
    assert spans[0].course.holds(day_to_unix_nanos(FIRST))
    assert spans[-1].course.holds(day_to_unix_nanos(FIRST) + 2 * NANOS_PER_DAY - 1)


@given(
    st.lists(st.tuples(st.integers(1, 3), st.integers(0, 12)), unique=True),
    st.sets(st.tuples(st.integers(1, 3), st.integers(-1, 13))),
    st.integers(1, 5),
    st.booleans(),
)
def test_each_piece_is_predicted_once_with_all_its_days_there_and_few_days_are_there_at_once(
    asked: list[tuple[int, int]], gone: set[tuple[int, int]], days_at_once: int, remembers: bool
) -> None:
    days = [make_day(number, instrument_id=instrument_id, name=f"cl{instrument_id}") for instrument_id, number in asked]
    spans = find_spans(days, LEARNED, course_start if remembers else None)
    archived = {(instrument_id, FIRST + timedelta(days=number)) for instrument_id, number in gone}
    batches = make_batches(spans, archived, days_at_once)
    done = [span for batch in batches for span in batch.spans]
    assert sorted(done, key=_order) == sorted(spans, key=_order)
    there: set[tuple[int, date]] = set()
    brought: list[tuple[int, date]] = []
    for batch in batches:
        assert not there & set(batch.restored)
        there |= set(batch.restored)
        brought += batch.restored
        for span in batch.spans:
            assert {(span.instrument.instrument_id, day) for day in span.days} & archived <= there
        assert len(there) <= max(days_at_once, 2) + remembers  # a course alone may need two; one may stay for the next
        there -= set(batch.released)
    assert not there  # nothing is left behind
    assert len(brought) == len(set(brought)) or not remembers


def _order(span: Span) -> tuple[int, Course]:
    return span.instrument.instrument_id, span.course


def test_what_needs_nothing_from_the_archive_comes_first() -> None:
    hot, cold = find_spans([make_day(0), make_day(1)], 1, None)
    key = (1, date(2025, 6, 1))
    assert make_batches([hot, cold], [key], 4) == [Batch((cold,), (), ()), Batch((hot,), (key,), (key,))]


def test_the_rate_is_that_of_late_and_tells_what_is_left() -> None:
    rate = MovingRate(window_s=10.0)
    assert rate.left_s(5) is None
    for second in range(100):
        rate.note(float(second), 100 * second)
    assert rate.per_s == pytest.approx(100)
    for second in range(100, 120):
        rate.note(float(second), 10_000 + 10 * (second - 100))
    assert rate.per_s == pytest.approx(10)  # what was long ago counts no more
    assert rate.left_s(1000) == pytest.approx(100)
    assert rate.left_s(0) == 0.0


def test_nothing_is_said_of_the_rate_before_it_has_settled() -> None:
    rate = MovingRate()
    rate.note(0.0, 0)
    rate.note(SETTLE_S / 2, 400)
    assert (rate.per_s, rate.left_s(10)) == (0.0, None)


SAMPLES = st.lists(
    st.tuples(*[st.one_of(st.just(math.nan), st.floats(-1000, 1000).map(lambda x: round(x, 3)))] * 2), max_size=30
)


@given(st.lists(SAMPLES, min_size=1, max_size=4))
def test_agreement_is_the_same_however_the_samples_are_handed_in(parts: list[list[tuple[float, float]]]) -> None:
    agreement = Agreement()
    for part in parts:
        agreement.add(np.array([x for x, _ in part]), np.array([y for _, y in part]))
    x, y = np.array([pair for part in parts for pair in part]).reshape(-1, 2).T
    both = np.isfinite(x) & np.isfinite(y)
    assert agreement.pair_count == both.sum()
    assert agreement.ours_only_count == (np.isfinite(x) & ~np.isfinite(y)).sum()
    assert agreement.theirs_only_count == (~np.isfinite(x) & np.isfinite(y)).sum()
    if both.any():
        assert agreement.mean_difference == pytest.approx((x - y)[both].mean(), abs=1e-9)
        assert agreement.mean_absolute_difference == pytest.approx(np.abs(x - y)[both].mean(), abs=1e-9)
    else:
        assert math.isnan(agreement.mean_difference)
    if both.sum() > 1 and min(x[both].std(), y[both].std()) > 1e-2:
        assert agreement.correlation == pytest.approx(np.corrcoef(x[both], y[both])[0, 1], abs=1e-6)


def test_only_quantities_at_the_same_instants_are_compared_and_no_classes() -> None:
    ours, theirs = (
        prediction_pb2.Prediction(sample_unix_nanos=[1, 2]),
        prediction_pb2.Prediction(sample_unix_nanos=[1, 2]),
    )
    for message in (ours, theirs):
        message.variables.add(name="height", unit="m", values=[1.0, 2.0])
        message.variables.add(name="sky", unit="1", values=[0.0, 1.0], flag_meanings=["clear", "cloud"])
    ours.variables.add(name="error", unit="m", values=[5.0, 5.0])
    found = list(match_values(ours.SerializeToString(), theirs.SerializeToString()))
    assert [name for name, *_ in found] == ["height"]
    theirs.sample_unix_nanos[0] = 0
    assert not list(match_values(ours.SerializeToString(), theirs.SerializeToString()))


def test_instruments_that_a_version_does_not_answer_for_are_named() -> None:
    days = [make_day(0), make_day(0, instrument_id=2, model="disdrometer", name="rain"), make_day(1)]
    meant, notes = choose_meant(make_card(), days)
    assert meant == [days[0], days[2]]
    assert notes == ["length@1 does not answer for lindenberg/rain, a disdrometer, but for cl51"]
    card = make_card(restriction=Restriction(stations=("magurele",)))
    assert choose_meant(card, days[:1]) == ([], ["length@1 is restricted, and not to lindenberg/cl51"])


def bag(waiting_count: int, *, is_here: bool = False, failed_count: int = 0) -> BaggedDay:
    return BaggedDay(make_day(0), 10, waiting_count, failed_count, is_here)


HOT = SpanCounts(10, 4, 0)
NONE = SpanCounts(0, 0, 0)


@pytest.mark.parametrize(
    ("given_parameters", "state", "hot", "bagged", "left"),
    [
        ({}, ModelState.READY, HOT, [], ""),
        ({}, ModelState.READY, SpanCounts(10, 0, 3), [], "everything is predicted"),
        ({"retry_failures": True}, ModelState.READY, SpanCounts(10, 0, 3), [], ""),
        ({"retry_failures": True}, ModelState.READY, NONE, [bag(0, failed_count=1)], ""),
        ({}, ModelState.READY, NONE, [bag(0)], "everything is predicted"),
        ({}, ModelState.READY, NONE, [bag(10)], ""),
        ({}, ModelState.READY, SpanCounts(10, 0, 0), [bag(10, is_here=True)], ""),  # predicted, and in no bag yet
        ({"where": "hot store"}, ModelState.READY, HOT, [bag(10)], "a part of it is in the archive alone"),
        ({"where": "archive"}, ModelState.READY, HOT, [], "it is in the hot store"),
        ({"where": "archive"}, ModelState.READY, HOT, [bag(10)], ""),
        ({}, ModelState.ACTIVE, HOT, [], "length@1 is active: the server itself"),
        ({}, ModelState.SHADOW, HOT, [], "length@1 is shadow: the server itself"),
        ({}, ModelState.ACTIVE, NONE, [bag(10)], ""),
    ],
)
def test_a_piece_is_predicted_where_something_waits_that_nobody_else_predicts(
    given_parameters: dict[str, object], state: ModelState, hot: SpanCounts, bagged: list[BaggedDay], left: str
) -> None:
    (span,) = find_spans([make_day(0)], 1, None)
    planned = plan_span(make_params(**given_parameters), make_card(state=state), span, hot, bagged)
    assert planned.left_because.startswith(left)
    assert bool(planned.left_because) == bool(left)


def test_what_is_in_a_bag_and_in_the_hot_store_is_counted_once() -> None:
    (span,) = find_spans([make_day(0)], 1, None)
    planned = plan_span(make_params(), make_card(), span, HOT, [bag(10, is_here=True), bag(7)])
    assert planned.counts == SpanCounts(20, 11, 0)


def test_the_days_are_checked_where_the_form_cannot() -> None:
    make_params().check()
    with pytest.raises(InvalidRequestError, match="a last day at or after 2025-06-01, but got 2025-05-31"):
        make_params(last_day="2025-05-31").check()
    with pytest.raises(InvalidRequestError, match=f"at most {DAYS_MAX} days"):
        make_params(first_day="0225-06-01").check()


def test_the_form_has_a_title_a_description_and_a_place_for_each_field() -> None:
    schema = BackfillParams.model_json_schema()
    fields = schema["properties"]
    assert sorted(each["position"] for each in fields.values()) == list(range(1, len(fields) + 1))
    assert all(each["title"] and each["description"] for each in fields.values())
    assert sorted(schema["required"]) == sorted(PARAMS)
    assert fields["where"]["enum"] == ["hot store", "archive", "both"]
